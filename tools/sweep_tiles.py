"""Compile the examples' kernels ahead of time and print what the compilers made of them; no GPU is needed.

    python tools/sweep_tiles.py --targets sm_90 --head-sizes 128                         # the default tiles
    python tools/sweep_tiles.py --examples gpt --targets sm_90 --tiles 128x64x8x3 128x128x8x2   # others
    python tools/sweep_tiles.py --markdown docs/results/ahead_of_time.md                 # write a page

Tiles are queries x keys x warps x stages, with a `d` behind them where keys and values are read by tensor descriptors,
and, in the option, the keys that a second walk takes at once behind that: `128x128x8x2d64`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import product
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch

from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.runtime.aot import SHARED_LIMITS, KernelReport, compile_kernel
from attnc.runtime.launch import Tiles

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEAD_SIZES = (64, 128, 256)
DTYPES = ("bfloat16", "float16")


def main() -> int:
    """Sweep what the command line asks for; 1 if a kernel with default tiles is not clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="*", help="names without .attn")
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--head-sizes", nargs="*", type=int, default=HEAD_SIZES)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    parser.add_argument("--tiles", nargs="*", type=_tiles, default=[None])
    parser.add_argument("--markdown", type=Path, help="write the tables of the sweep to this file")
    options = parser.parse_args()
    paths = sorted((ROOT / "examples").glob("*.attn"))
    if options.examples is not None:
        paths = [path for path in paths if path.stem in options.examples]
    found = []
    for name, report in sweep(paths, options.targets, options.head_sizes, options.dtypes, options.tiles):
        print(json.dumps(_row(name, report)), flush=True)
        found.append((name, report))
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(_page(found))
    return int(options.tiles == [None] and not all(is_clean(report) for _, report in found))


def sweep(
    paths: Iterable[Path],
    targets: Iterable[str],
    head_sizes: Iterable[int],
    dtypes: Iterable[str],
    tiles: Iterable[Tiles | None],
) -> Iterator[tuple[str, KernelReport]]:
    """Compile every combination; None among the `tiles` stands for the default ones."""
    for path in paths:
        compiled = plan_source(read_pattern(path))
        module = import_compiled(compiled)
        for plan in compiled.plans:
            name = plan.attention.name
            for target, size, dtype, shape in product(targets, head_sizes, dtypes, tiles):
                yield name, compile_kernel(module, target, getattr(torch, dtype), size, name=name, tiles=shape)


def is_clean(report: KernelReport) -> bool:
    """Tell whether a kernel of a 16-bit type is without spills, on matrix units, and fits in shared memory."""
    return report.fits and (report.dtype == "float32" or (report.spills == 0 and report.matrix_instructions > 0))


def _row(name: str, report: KernelReport) -> dict[str, object]:
    return {
        "name": name,
        "target": report.target,
        "dtype": report.dtype,
        "head_size": report.head_size,
        "tiles": _show(report.tiles),
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "matrix": report.matrix_instructions,
        "clean": is_clean(report),
    }


def _tiles(text: str) -> Tiles:
    shape, mark, chunk = text.partition("d")
    return Tiles(*(int(part) for part in shape.split("x")), bool(mark), int(chunk or 0))


def _show(tiles: Tiles) -> str:
    return f"{tiles.query}x{tiles.key}x{tiles.warps}x{tiles.stages}{'d' if tiles.descriptors else ''}"


def _page(found: list[tuple[str, KernelReport]]) -> str:
    """Lay the sweep out as one table per head size and element type, a row for each kernel."""
    lines = [
        "# Kernels of the examples, compiled ahead of time",
        "",
        f"Triton {metadata.version('triton')}, default tiles, no GPU present. Written by",
        "",
        "    python tools/sweep_tiles.py --dtypes bfloat16 --markdown docs/results/ahead_of_time.md",
        "",
        "A cell says tiles (queries x keys x warps x stages), registers of a thread, KiB of shared memory of a program,"
        " and bytes spilled, in bold, where there are any. Every kernel of a 16-bit type uses matrix instructions"
        " unless its cell says otherwise. Programs may use "
        + ", ".join(f"{SHARED_LIMITS[target]} KiB on {target}" for target in TARGETS)
        + ".",
    ]
    cells = {(r.dtype, r.head_size, name, r.target): _cell(r) for name, r in found}
    targets = list(dict.fromkeys(report.target for _, report in found))
    names = list(dict.fromkeys(name for name, _ in found))
    for dtype, size in dict.fromkeys((report.dtype, report.head_size) for _, report in found):
        lines += ["", f"## {dtype}, head size {size}", ""]
        lines += ["| | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
        for name in names:
            row = (cells.get((dtype, size, name, target), "") for target in targets)
            lines.append(f"| {name} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _cell(report: KernelReport) -> str:
    text = f"{_show(report.tiles)}; {report.registers}; {-(-report.shared // 1024)}"
    if report.spills:
        text += f"; **{report.spills}**"
    if not report.matrix_instructions:
        text += "; no matrix instructions"
    return text


if __name__ == "__main__":
    sys.exit(main())
