"""Compare kernels that read keys and values by pointers with the same kernels that read them by tensor descriptors.

    python tools/compare_reads.py --examples gpt streaming --dtypes bfloat16      # prints a Markdown table

Kernels are compiled ahead of time with the tiles given; no GPU is needed. Instructions are those of the loop over key
tiles that tests no mask, or of the shortest loop where each tests one, for each key of a tile.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch

from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.runtime.aot import KernelReport, compile_kernel
from attnc.runtime.tiles import Tiles
from attnc.tuning.disassembly import COPIES, matrix_loops

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("gpt", "streaming", "longformer", "gemma")
TILES = {
    ("sm_90", 64): (Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2)),
    ("sm_90", 128): (Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2)),
    ("sm_90", 256): (Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 2)),
    ("sm_100", 64): (Tiles(128, 64, 8, 2),),
    ("sm_100", 128): (Tiles(128, 32, 8, 2), Tiles(128, 64, 8, 2)),
    ("sm_100", 256): (Tiles(64, 32, 8, 2), Tiles(64, 64, 8, 2)),
}
"""What is compared: the tiles of pointers, and larger ones."""


def main() -> None:
    """Compile what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="*", default=EXAMPLES, help="names without .attn")
    parser.add_argument("--targets", nargs="*", default=("sm_90", "sm_100"))
    parser.add_argument("--head-sizes", nargs="*", type=int, default=(64, 128, 256))
    parser.add_argument("--dtypes", nargs="*", default=("bfloat16",))
    options = parser.parse_args()
    columns = ("registers", "spilled bytes", "instructions a key", "copies a tile")
    print("| type | head size | target | tiles | kernel | " + " | ".join(columns) + " |")
    print("|---" * (5 + len(columns)) + "|", flush=True)
    modules = {name: plan_source(read_pattern(ROOT / "examples" / f"{name}.attn")) for name in options.examples}
    loaded = {name: import_compiled(compiled) for name, compiled in modules.items()}
    for dtype, size, target in product(options.dtypes, options.head_sizes, options.targets):
        for tiles, name in product(TILES[target, size], options.examples):
            kernel = modules[name].plans[0].attention.name
            reports = [
                compile_kernel(loaded[name], target, getattr(torch, dtype), size, name=kernel, tiles=one)
                for one in (tiles, replace(tiles, descriptors=True))
            ]
            shape = f"{tiles.query}x{tiles.key}x{tiles.warps}x{tiles.stages}"
            cells = (f"{left}, {right}" for left, right in zip(*map(figures, reports), strict=True))
            print(f"| {dtype} | {size} | {target} | {shape} | {kernel} | " + " | ".join(cells) + " |", flush=True)


def figures(report: KernelReport) -> tuple[str, ...]:
    """Return the cells of one kernel: registers, spills, instructions a key, copies a tile."""
    loops = [loop for loop in matrix_loops(report) if loop.count(*COPIES)]
    loop = min(loops, key=lambda one: one.instructions)
    per_key = f"{loop.instructions / report.tiles.key:.1f}"
    return str(report.registers), str(report.spills), per_key, str(loop.count(*COPIES))


if __name__ == "__main__":
    main()
