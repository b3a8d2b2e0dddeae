"""Time the forms of structured projections against the dense matrix of the same size, forward and backward.

    python tools/time_structures.py --markdown docs/results/structures.md
    python tools/time_structures.py --device cuda --dtype bfloat16 --width 4096 --tokens 16384

All take a step in turns, in rounds that alternate their order, and the least time of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from attnc.runtime.tuned import ProjectionForm, try_tiles

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}

ABOUT = """# Structures of projections

Each form of each structure, forward and with the gradients of its input and parameters, in units of the
time that the dense matrix of the same size takes. The first form of a structure is its chain of plain
operations, which is all that there was before other forms were written; **bold** is the one that a CPU takes
where `attnc tune` has measured nothing. Outputs are contiguous: a transposed view is copied. `FLOPs` and
`bytes` are the floors, both in units of the dense matrix's: multiplications, and parameters, inputs and
outputs that have to be moved once. Convolutions do all of the dense matrix's work, and more.

Written by `python tools/time_structures.py`: the least of {rounds} rounds in which all forms take turns, {dtype},
{clock} time.

{machine}
"""


@dataclass(frozen=True)
class Case:
    """One structure at one size.

    Attributes:
        label: as it is written.
        flops: multiplications of a token.
    """

    label: str
    module: Projection
    flops: int


def cases(inputs: int, outputs: int) -> Iterator[Case]:
    """Yield what is timed, the dense matrix first."""
    blocks, width = 16, min(inputs, outputs)
    modules: dict[str, Projection] = {
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
    for label, module in modules.items():
        yield Case(label, module, parameters_of(module))


def parameters_of(module: Projection) -> int:
    """Return how many numbers a structure has, each of which a token is multiplied with once."""
    return sum(one.numel() for one in module.parameters())


def main() -> None:
    """Measure what the command line asks for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", default="512,1024,2048")
    parser.add_argument("--tokens", default="1024,4096")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor time counts all threads")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    options = parser.parse_args()
    machine = describe(torch.device(options.device))
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if isinstance(value, str | int))
    text = ABOUT.format(rounds=options.rounds, dtype=options.dtype, clock=options.clock, machine=facts)
    widths, lengths = ([int(one) for one in given.split(",")] for given in (options.width, options.tokens))
    shapes = [(width, width, tokens) for width in widths for tokens in lengths]
    middle = widths[len(widths) // 2]
    shapes += [(middle, 4 * middle, lengths[0]), (4 * middle, middle, lengths[0])]
    for inputs, outputs, tokens in shapes:
        title = f"\n## {inputs} to {outputs} features, {tokens} tokens\n\n"
        timing = options.rounds, CLOCKS[options.clock]
        lines = table(options.device, getattr(torch, options.dtype), (inputs, outputs, tokens), timing)
        part = title + "\n".join(lines) + "\n"
        print(part, flush=True)
        text += part
    if options.markdown is not None:
        options.markdown.write_text(text)


def table(
    device: str, dtype: torch.dtype, shape: tuple[int, int, int], timing: tuple[int, Callable[[], float]]
) -> list[str]:
    """Measure one size by so many rounds and a clock, and return its rows."""
    inputs, outputs, tokens = shape
    x = torch.randn(1, tokens, inputs, device=device, dtype=dtype, requires_grad=True)
    upstream = torch.randn(1, tokens, outputs, device=device, dtype=dtype)
    steps: dict[tuple[str, str], tuple[Callable[[], object], Callable[[], object]]] = {}
    every = {one.label: one for one in cases(inputs, outputs)}
    for label, case in every.items():
        module = case.module.to(device, dtype)
        forms = module.table(x.device)
        suitable = [form.name for form in forms.others if form.suits(x, tuple(module.parameters()))]
        for form in (forms.chain, *suitable):
            steps[label, form] = forward_step(module, form, x), both_step(module, form, x, upstream)
    forward, both = (measure({name: step[which] for name, step in steps.items()}, *timing) for which in (0, 1))
    lines = ["| structure | form | FLOPs | bytes | forward | and backward |", "|---|---|---|---|---|---|"]
    dense = next(iter(steps))
    for label, form in steps:
        case = every[label]
        taken = case.module.table(x.device).default(x.device.type) == form
        moved = (case.flops + tokens * (inputs + outputs)) / (inputs * outputs + tokens * (inputs + outputs))
        ratios = [found[label, form] / found[dense] for found in (forward, both)]
        cells = [f"`{label}`", f"**{form}**" if taken else form, f"{case.flops / inputs / outputs:.3f}", f"{moved:.2f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{ratio:.2f}' for ratio in ratios)])} |")
    return [*lines, "", f"Dense: {forward[dense] * 1e3:.1f} ms, {both[dense] * 1e3:.1f} ms with gradients."]


def forward_step(module: Projection, form: str, x: Tensor) -> Callable[[], object]:
    """Return a step without gradients."""

    def run() -> object:
        with torch.no_grad(), try_tiles({module.measured_as: ProjectionForm(form)}):
            return module(x).contiguous()

    return run


def both_step(module: Projection, form: str, x: Tensor, upstream: Tensor) -> Callable[[], object]:
    """Return a step with all gradients."""

    def run() -> object:
        with try_tiles({module.measured_as: ProjectionForm(form)}):
            return torch.autograd.grad(module(x).contiguous(), [x, *module.parameters()], upstream)

    return run


def measure(
    steps: dict[tuple[str, str], Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], float]:
    """Return the least seconds of each, called in turns."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            begin = clock()
            steps[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - begin)
    return {name: min(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
