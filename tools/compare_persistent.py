"""Compare kernels whose programs get several tiles of rows with those whose programs have one each, without a device.

    python tools/compare_persistent.py --markdown docs/results/persistent.md      # prints the table without --markdown

Both are compiled ahead of time with the default tiles of the target. Times are estimates of `attnc.tuning.model`, at a
length, for heads of one batch entry; nothing is measured.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton

from attnc.bench.cases import square
from attnc.compiler import import_compiled, plan_source
from attnc.files import write_text
from attnc.runtime.aot import KernelReport, compile_kernel
from attnc.source import SourceFile
from attnc.tuning.counting import FORWARD, TileCounter
from attnc.tuning.disassembly import main_loop
from attnc.tuning.model import STARTED, estimate, programs_at_once

PATTERNS = {
    "causal": "mask causal",
    "every pair": "",
    "window": "mask causal and i - j < 256",
    "sinks": "mask causal and (i - j < 256 or j < 4)",
}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
LENGTHS, HEADS = (2048, 8192), 16

HEADER = [
    "| target | head size | pattern | tiles of rows | registers | spilled bytes | instructions a full tile | programs "
    "at once | expected at 2048 (µs) | at 8192 (µs) |",
    "|---|---:|---|---|---:|---:|---:|---:|---:|---:|",
]


def main() -> None:
    """Compile what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS)
    parser.add_argument("--head-sizes", nargs="*", type=int, default=(64, 128))
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    lines = []
    for target in options.targets:
        for line in rows(target, options.head_sizes):
            print(line, flush=True)
            lines.append(line)
    if options.markdown:
        write_text(options.markdown, page(lines, options.targets))


def rows(target: str, head_sizes: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a target: of each pattern both kernels."""
    for head_size in head_sizes:
        for name, statements in PATTERNS.items():
            compiled = plan_source(SourceFile("<string>", f"attention a {{ {statements} }}"))
            module = import_compiled(compiled)
            counters = [
                TileCounter(compiled.plans[0], target, square(length, heads=HEADS, head_size=head_size), 2)
                for length in LENGTHS
            ]
            plain = compile_kernel(module, target, torch.bfloat16, head_size)
            tiles = replace(plain.tiles, persistent=1)
            dealt = compile_kernel(module, target, torch.bfloat16, head_size, tiles=tiles)
            dealt = replace(dealt, tiles=replace(tiles, persistent=max(1, programs_at_once(dealt))))
            for kind, report in (("one", plain), ("dealt", dealt)):
                yield f"| {target} | {head_size} | {name} | {kind} | {_figures(report, counters)} |"


def _figures(report: KernelReport, counters: Sequence[TileCounter]) -> str:
    loop = main_loop(report)
    found = [estimate(report, loop, counter.work(FORWARD, report.tiles)) for counter in counters]
    times = ["-" if one.problem else f"{1e6 * one.seconds:.1f}" for one in found]
    instructions = "-" if loop is None else str(loop.others)
    figures = (str(report.registers), str(report.spills), instructions, str(programs_at_once(report)), *times)
    return " | ".join(figures)


def page(lines: Sequence[str], targets: Sequence[str]) -> str:
    """Return the page of a table's lines."""
    return (
        "# Programs that get several tiles of rows\n\n"
        f"Triton {triton.__version__}, PyTorch {torch.__version__}, bfloat16, no GPU present. Written by\n\n"
        "    python tools/compare_persistent.py --markdown docs/results/persistent.md"
        f" --targets {' '.join(targets)}\n\n"
        "A program has one tile of rows, or, with `persistent` in its configuration, tiles are dealt to as many\n"
        "programs as run at once. Tiles are the defaults of each target. Instructions are those of a warp in the loop\n"
        f"over tiles that tests no mask, without those of matrix units. Times are estimates for {HEADS} heads of one\n"
        f"batch entry; that {STARTED:.0f} cycles of a tile go into starting its program is a guess. A dash stands for\n"
        "kernels that spill, which `attnc tune` discards.\n\n"
        "The loops over keys are much the same. A loop around everything costs registers: compilers keep in them\n"
        "what all tiles have in common; on some targets fewer programs then run at once. What is saved is the start\n"
        "of a program, so that rows with few keys gain the most. Uneven rows gain nothing: a device starts the next\n"
        "program where one has ended, and a deal that is made beforehand is no better than that. No default is\n"
        "persistent.\n\n" + "\n".join([*HEADER, *lines]) + "\n"
    )


if __name__ == "__main__":
    main()
