"""Compare kernels that read keys and values by pointers with the same kernels that read them by tensor descriptors.

    python tools/compare_reads.py --examples gpt streaming --dtypes bfloat16      # prints a Markdown table

Kernels are compiled ahead of time with the tiles given; no GPU is needed. Instructions are those of the loop over key
tiles that tests no mask, or of the shortest loop where each tests one, for each key of a tile.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton

from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.runtime.aot import KernelReport, compile_kernel
from attnc.runtime.tiles import Tiles

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


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a binary that copies tiles ahead of their use, by how many instructions of a kind it has."""

    instructions: int
    copies: int
    descriptor_copies: int


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
    loop = min(loops(report.binary), key=lambda one: one.instructions)
    copies = loop.copies + loop.descriptor_copies
    return str(report.registers), str(report.spills), f"{loop.instructions / report.tiles.key:.1f}", str(copies)


def loops(binary: bytes) -> Iterator[Loop]:
    """Yield the innermost loops of a binary for NVIDIA devices that use matrix units and copy tiles ahead."""
    names, jumps = disassemble(binary)
    found = [(start, end) for start, end in jumps if any(_is_matrix(name) for name in names[start : end + 1])]
    for start, end in found:
        if any((start, end) != inner and start <= inner[0] and inner[1] <= end for inner in found):
            continue
        body = names[start : end + 1]
        copies = sum(name.startswith("LDGSTS") for name in body)
        described = sum(name.startswith("UTMALDG") for name in body)
        if copies or described:
            yield Loop(len(body), copies, described)


def disassemble(binary: bytes) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the names of all instructions, and from where to where jumps go backward."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[str, int]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(names)
        elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line):
            if code[1].startswith("BRA") and (target := re.search(r"`\((\.L_\w+)\)", code[2])):
                jumps.append((target[1], len(names)))
            names.append(code[1])
    return names, [(labels[label], at) for label, at in jumps if labels[label] <= at]


def _is_matrix(name: str) -> bool:
    return name.split(".")[0] in ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")


if __name__ == "__main__":
    main()
