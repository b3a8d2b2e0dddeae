"""Compile the examples' kernels ahead of time and print what the compilers made of them; no GPU is needed.

    python tools/sweep_tiles.py --targets sm_90 --head-sizes 128                         # the default tiles
    python tools/sweep_tiles.py --examples gpt --targets sm_90 --tiles 128x64x8x3 128x128x8x2   # others
    python tools/sweep_tiles.py --results build/sweep.jsonl --markdown docs/results/ahead_of_time.md   # write a page
    python tools/sweep_tiles.py --gradients --targets sm_80 sm_90 --head-sizes 64 128 --dtypes bfloat16  # backward

Tiles are queries x keys x warps x stages, with a `d` behind them where keys and values are read by tensor descriptors,
and, in the option, the keys that a second walk takes at once behind that: `128x128x8x2d64`. What stands in the file of
results is not compiled again, and with `--seconds` a run ends in time and the next one goes on. A page keeps its
sections from the first one on that this script does not write, and in italics cells that a sweep leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.runtime.aot import SHARED_LIMITS, KernelReport, compile_kernels
from attnc.runtime.tiles import Tiles

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
HEAD_SIZES = (64, 128, 256)
DTYPES = ("bfloat16", "float16")
SHARES = (1, 4)
"""Programs that share the keys of the same rows; with several, a further launch joins their sums."""

ALL_DTYPES = (*DTYPES, "float32")


def main() -> int:
    """Sweep what the command line asks for; 1 if a kernel with default tiles is not clean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", nargs="*", help="names without .attn")
    parser.add_argument("--targets", nargs="*", default=TARGETS)
    parser.add_argument("--head-sizes", nargs="*", type=int, default=HEAD_SIZES)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    parser.add_argument("--tiles", nargs="*", type=_tiles, default=[None])
    parser.add_argument("--gradients", action="store_true", help="compile the kernels of gradients instead")
    parser.add_argument("--markdown", type=Path, help="write the tables of the sweep to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--results", type=Path, help="keep what is found in this file, a JSON object per line")
    options = parser.parse_args()
    # before any process is started that imports triton
    os.environ.pop("TRITON_INTERPRET", None)
    paths = sorted((ROOT / "examples").glob("*.attn"))
    if options.examples is not None:
        paths = [path for path in paths if path.stem in options.examples]
    rows = _read_results(options.results)
    known = {(row["attention"], *_key(row)[1:]) for row in rows}
    axes = options.targets, options.head_sizes, options.dtypes, options.tiles
    work = {"gradients": options.gradients, "jobs": options.jobs, "seconds": options.seconds}
    for row in sweep(paths, *axes, known, **work):
        rows.append(row)
        print(json.dumps(rows[-1]), flush=True)
        if options.results is not None:
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        former = options.markdown.read_text() if options.markdown.exists() else ""
        options.markdown.write_text(_page(rows, former, gradients=options.gradients) + _other_sections(former))
    return int(options.tiles == [None] and not all(row["clean"] for row in rows))


def sweep(
    paths: Iterable[Path],
    targets: Iterable[str],
    head_sizes: Iterable[int],
    dtypes: Iterable[str],
    tiles: Iterable[Tiles | None],
    known: Container[tuple[str, str, str, int]] = (),
    *,
    gradients: bool = False,
    jobs: int = 1,
    seconds: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """Compile every combination: kernels of gradients, or forward ones, whose programs walk all keys or share them.

    None among the `tiles` stands for the default ones, which may be `known` already. Nothing is begun after `seconds`.
    """
    end = time.monotonic() + seconds
    plans = [(path, plan.attention.name) for path in paths for plan in plan_source(read_pattern(path)).plans]
    every = [
        (path, name, target, dtype, size, shape, gradients)
        for target, size, dtype, shape in product(targets, head_sizes, dtypes, tiles)
        for path, name in plans
        if shape is not None or (name, target, dtype, size) not in known
    ]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for first in range(0, len(every), 2 * jobs):
            if time.monotonic() > end:
                return
            for rows in pool.map(_compile, every[first : first + 2 * jobs]):
                yield from rows


_MODULES: dict[Path, ModuleType] = {}


def _compile(job: tuple[Path, str, str, str, int, Tiles | None, bool]) -> list[dict[str, Any]]:
    """Compile the kernels of one attention for one target, type and head size, in a process of its own."""
    path, name, target, dtype, size, shape, gradients = job
    torch.set_num_threads(1)
    if path not in _MODULES:
        _MODULES[path] = import_compiled(plan_source(read_pattern(path)))
    ways: list[dict[str, Any]] = [{"gradients": True}] if gradients else [{"shares": shares} for shares in SHARES]
    place = (_MODULES[path], target, getattr(torch, dtype), size)
    found = [compile_kernels(*place, name=name, tiles=shape, **way) for way in ways]
    return [_row(name, report) for report in {one.name: one for reports in found for one in reports}.values()]


def _read_results(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _key(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["name"], row["target"], row["dtype"], row["head_size"]


def _row(attention: str, report: KernelReport) -> dict[str, Any]:
    return {
        "attention": attention,
        "name": report.name,
        "target": report.target,
        "dtype": report.dtype,
        "head_size": report.head_size,
        "tiles": _show(report.tiles),
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "matrix": report.matrix_instructions,
        "clean": report.is_clean,
    }


def _tiles(text: str) -> Tiles:
    shape, mark, chunk = text.partition("d")
    return Tiles(*(int(part) for part in shape.split("x")), bool(mark), int(chunk or 0))


def _show(tiles: Tiles) -> str:
    return f"{tiles.query}x{tiles.key}x{tiles.warps}x{tiles.stages}{'d' if tiles.descriptors else ''}"


def _page(rows: list[dict[str, Any]], former: str, *, gradients: bool) -> str:
    """Lay the sweep out as one table per head size and element type, a row for each kernel.

    Cells that it has not are those of the former page.
    """
    chosen = re.sub(r"--(results|jobs|seconds) \S+ ?", "", shlex.join(sys.argv[1:]))
    lines = [
        f"# Kernels of the examples{' for gradients' if gradients else ''}, compiled ahead of time",
        "",
        f"Triton {metadata.version('triton')}, default tiles, no GPU present. Written by",
        "",
        f"    python tools/sweep_tiles.py {chosen}",
        "",
        "A cell says tiles (queries x keys x warps x stages, and `d` where keys and values are read through tensor"
        " descriptors), registers of a thread, KiB of shared memory of a program, and bytes spilled, in bold, where"
        " there are any. Every kernel of a 16-bit type uses matrix instructions unless its cell says otherwise."
        " Programs may use " + ", ".join(f"{SHARED_LIMITS[target]} KiB on {target}" for target in TARGETS) + ".",
    ]
    names = sorted({row["name"] for row in rows})
    own = {_key(row): _cell(row) for row in rows}
    kept = {key: cell for key, cell in _cells_of(former).items() if key not in own and key[0] in names}
    if kept:
        lines += ["", "Cells in italics are older than the present kernels and tiles."]
    cells = own | kept
    targets = [target for target in SHARED_LIMITS if any(key[1] == target for key in cells)]
    for dtype, size in sorted({key[2:] for key in cells}):
        lines += ["", f"## {dtype}, head size {size}", ""]
        lines += ["| | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
        for name in names:
            line = (cells.get((name, target, dtype, size), "") for target in targets)
            lines.append(f"| {name} | " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def _cells_of(page: str) -> dict[tuple[str, str, str, int], str]:
    """Return the cells of a page in italics, as what another one keeps."""
    cells: dict[tuple[str, str, str, int], str] = {}
    targets: list[str] = []
    for line in page[: len(page) - len(_other_sections(page))].splitlines():
        name, *parts = [part.strip() for part in line.split("|")[1:-1]] or [""]
        if title := re.match(r"## (\w+), head size (\d+)$", line):
            dtype, size = title[1], int(title[2])
        elif parts and not name:
            targets = parts
        elif parts and not name.startswith("-"):
            found = {(name, target, dtype, size): part for target, part in zip(targets, parts, strict=True) if part}
            cells |= {key: f"_{part.strip('_')}_" for key, part in found.items()}
    return cells


def _other_sections(page: str) -> str:
    """Return what stands in a page from the first section on whose title names no element type."""
    found = re.search(rf"^## (?!{'|'.join(ALL_DTYPES)})", page, re.MULTILINE)
    return "\n" + page[found.start() :] if found else ""


def _cell(row: dict[str, Any]) -> str:
    text = f"{row['tiles']}; {row['registers']}; {-(-row['shared'] // 1024)}"
    if row["spills"]:
        text += f"; **{row['spills']}**"
    if not row["matrix"]:
        text += "; no matrix instructions"
    return text


if __name__ == "__main__":
    sys.exit(main())
