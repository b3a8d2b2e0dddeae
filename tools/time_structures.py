"""Time the structures of projections against the dense matrix of the same size, forward and backward.

    python tools/time_structures.py --markdown docs/results/structures.md
    python tools/time_structures.py --device cuda --dtype bfloat16 --width 4096 --tokens 16384

All structures take a step in turns, in rounds that alternate their order, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attnc.bench.machine import describe
from attnc.runtime.structures.convolutions import ConvProjection
from attnc.runtime.structures.factors import (
    BlockDiagonalProjection,
    DenseProjection,
    LowRankProjection,
    MonarchProjection,
)
from attnc.runtime.structures.projection import Projection
from attnc.runtime.structures.sparse import BandedProjection, MaskedProjection

ROUNDS = 7


def structures(inputs: int, outputs: int) -> dict[str, Projection]:
    """Return what is timed, by how it is written."""
    blocks = 16
    width = min(inputs, outputs)
    return {
        "dense": DenseProjection(inputs, outputs),
        f"low_rank({width // 8})": LowRankProjection(inputs, outputs, width // 8),
        f"block_diagonal({blocks})": BlockDiagonalProjection(inputs, outputs, blocks),
        f"monarch({blocks})": MonarchProjection(inputs, outputs, blocks),
        f"banded({width // 16})": BandedProjection(inputs, outputs, width // 16),
        "masked(i // 64 == j // 64)": MaskedProjection(inputs, outputs, lambda at: at.i // 64 == at.j // 64),
        "masked((i - j) % 16 == 0)": MaskedProjection(inputs, outputs, lambda at: (at.i - at.j) % 16 == 0),
        "masked(i >= j)": MaskedProjection(inputs, outputs, lambda at: at.i >= at.j),
        "conv(3, 1)": ConvProjection(inputs, outputs, 3),
    }


def main() -> None:
    """Measure what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    text = report(options.device, getattr(torch, options.dtype), options.width, options.tokens)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


def report(device: str, dtype: torch.dtype, width: int, tokens: int) -> str:
    """Measure everything and lay it out as Markdown."""
    machine = describe(torch.device(device))
    lines = [
        "# Structures of projections",
        "",
        "`python tools/time_structures.py`: a step of each structure, forward and with gradients of its input and "
        "parameters, in turns;",
        f"medians of {ROUNDS} rounds, in units of the dense matrix's time. {tokens} tokens, "
        f"{str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads.",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items() if isinstance(value, str | int)),
    ]
    for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width)):
        lines += ["", f"## {inputs} to {outputs} features", "", *_table(device, dtype, inputs, outputs, tokens)]
    return "\n".join(lines) + "\n"


def _table(device: str, dtype: torch.dtype, inputs: int, outputs: int, tokens: int) -> list[str]:
    made = {name: one.to(device, dtype) for name, one in structures(inputs, outputs).items()}
    x = torch.randn(1, tokens, inputs, device=device, dtype=dtype, requires_grad=True)
    upstream = torch.randn(1, tokens, outputs, device=device, dtype=dtype)
    forward = measure({name: _forward(one, x) for name, one in made.items()})
    both = measure({name: _both(one, x, upstream) for name, one in made.items()})
    lines = ["| structure | parameters | of dense | forward | and backward |", "|---|---|---|---|---|"]
    for name, one in made.items():
        count = sum(parameter.numel() for parameter in one.parameters())
        ratios = (found[name] / found["dense"] for found in (forward, both))
        cells = (f"`{name}`", f"{count:,}", f"{count / inputs / outputs:.1%}", *(f"{ratio:.2f}" for ratio in ratios))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Dense: {forward['dense'] * 1e3:.1f} ms, {both['dense'] * 1e3:.1f} ms with gradients."]


def _forward(one: Projection, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return one(x)

    return run


def _both(one: Projection, x: Tensor, upstream: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(one(x), [x, *one.parameters()], upstream)


def measure(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 2):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            begin = time.perf_counter()
            steps[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 2:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
