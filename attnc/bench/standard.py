"""The benchmark standard: usual and sparse patterns at constant tokens, all providers side by side, and short calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from attnc.bench.cases import Shape
from attnc.bench.machine import describe, libraries
from attnc.bench.names import Mode
from attnc.bench.run import Settings, compare
from attnc.bench.session import pick
from attnc.bench.standard_plot import draw_standard
from attnc.bench.standard_report import as_markdown, one_line, summary
from attnc.bench.standard_row import Sizes, StandardRow
from attnc.bench.suite_run import Course, Pattern, Planned, Suite, choose, run
from attnc.diagnostics import CompileError
from attnc.files import write_bytes

SMALL = (128, 256, 512, 1024)
"""Lengths at which what a call costs besides its work is measured as well, in single sequences."""

PLAIN = ("causal", "full")
"""Patterns of which that is measured: those that SDPA has a flag for."""

TOKENS = {"cpu": 8192, "cuda": 131072}
"""Batch entries times positions of a case, unless one sequence is longer."""

LENGTHS = {
    "cpu": (1024, 2048, 4096, 8192),
    "cuda": (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072),
}

PRECISIONS = {"cpu": ("float32",), "cuda": ("bfloat16", "float16")}

HEAD_SIZES = (64, 128)

SHARED_BY = 4
"""Query heads of a key head where heads are grouped."""

SECONDS = 0.5
"""Time of samples of each provider, unless said."""

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class StandardRequest:
    """What to measure; None and empty stand for what suits the device.

    Attributes:
        peers: of `names.PEERS`.
        tokens: batch entries times positions.
        kv_heads: numbers of key and value heads, each one a series of cases.
        plot: file whose name, with endings, the pictures get; None for none.
    """

    lengths: tuple[int, ...]
    peers: tuple[str, ...]
    modes: tuple[Mode, ...]
    tokens: int | None
    heads: int
    kv_heads: tuple[int, ...]
    head_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    device: str
    seconds: float | None
    plot: Path | None


@dataclass(frozen=True, slots=True)
class StandardCase:
    """A pattern at one set of sizes."""

    pattern: Pattern
    sizes: Sizes
    small: bool

    @property
    def label(self) -> str:
        """Name it."""
        return f"{self.pattern.name} at {self.sizes}"


def run_standard(request: StandardRequest, course: Course, patterns: Sequence[Pattern]) -> bool:
    """Measure every case, the short calls first; tell whether every attnc module was right.

    Raises:
        CompileError: the device is not there, a name is unknown, the JSON file is of another kind of run, or a result
            cannot be written.
    """
    chosen = choose(patterns, course.only)
    device = pick(request.device)
    machine = {**describe(device), **libraries()}
    planned = Planned()
    seconds = SECONDS if request.seconds is None else request.seconds
    tokens = request.tokens or TOKENS.get(device.type, TOKENS["cpu"])

    def measure(case: StandardCase, say: Callable[[str], None]) -> StandardRow:
        return _measure(case, request.peers, seconds, device, planned, say)

    suite = Suite(
        cases=cases(request, chosen, device.type, tokens),
        key=lambda case: (case.pattern.name, case.sizes),
        measure=measure,
        read=StandardRow.from_json,
        line=one_line,
        summary=summary,
        report=as_markdown,
        machine=machine,
        place=lambda machine: {**machine, "attnc": None},  # results of other versions must not stand side by side
        settings={"peers": list(request.peers), "tokens": tokens, "seconds": seconds, "samples": SAMPLES},
    )
    heading = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {tokens} tokens a case"
    rows = run(suite, course, heading)
    if request.plot is not None:
        for ending, picture in draw_standard(rows).items():
            write_bytes(request.plot.with_stem(f"{request.plot.stem}-{ending}"), picture)
    return all(row.right for row in rows)


def cases(request: StandardRequest, patterns: Sequence[Pattern], device: str, tokens: int) -> list[StandardCase]:
    """Return the cases by precision, heads, head size and mode; in each series short calls, then by length."""
    heads = request.kv_heads or (request.heads,)
    if not request.kv_heads and request.heads % SHARED_BY == 0:
        heads = (request.heads, request.heads // SHARED_BY)
    dtypes = request.dtypes or PRECISIONS.get(device, PRECISIONS["cpu"])
    small = [length for length in request.lengths or SMALL if length in SMALL]
    lengths = request.lengths or LENGTHS.get(device, LENGTHS["cpu"])
    made: dict[tuple[str, Sizes], StandardCase] = {}
    for dtype, kv_heads, head_size, mode in product(dtypes, heads, request.head_sizes or HEAD_SIZES, request.modes):
        short = [(length, 1, pattern, True) for length in small for pattern in patterns if pattern.name in PLAIN]
        long = [(length, max(1, tokens // length), pattern, False) for length in lengths for pattern in patterns]
        for length, batch, pattern, is_small in (*short, *long):
            sizes = Sizes(length, batch, request.heads, kv_heads, head_size, dtype, mode)
            made.setdefault((pattern.name, sizes), StandardCase(pattern, sizes, is_small))
    return list(made.values())


def _measure(
    case: StandardCase,
    peers: tuple[str, ...],
    seconds: float,
    device: torch.device,
    planned: Planned,
    say: Callable[[str], None],
) -> StandardRow:
    pattern, sizes = case.pattern, case.sizes
    say("planning")
    try:
        plan, module = planned.get(pattern)
    except CompileError as error:
        return StandardRow(pattern.name, pattern.idea, sizes, case.small, problem=error.diagnostics[0].message)
    shape = Shape(
        sizes.batch, sizes.heads, sizes.kv_heads, sizes.length, sizes.length, sizes.head_size, sizes.head_size
    )
    # what a short call costs is a question to functions that are called: FlexAttention is compiled for each length
    called = tuple(name for name in peers if name != "flex") if case.small else peers
    settings = Settings(device, getattr(torch, sizes.dtype), called, sizes.mode, seconds, SAMPLES)
    return StandardRow(pattern.name, pattern.idea, sizes, case.small, compare(plan, module, shape, settings, say))
