"""Several intervals walked by one loop: each further loop of a kernel takes registers.

The loop counts steps. Intervals follow each other, so that a step's tile is the step and a distance, which changes
where keys are left out between two intervals. What remains to be tested in an interval is tested in its own tiles
alone, under a branch that all threads of a program take together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attnc.algebra.key_intervals import Coverage, KeyInterval
from attnc.codegen.expr_triton import Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.kernel_text import Block, Shape, places
from attnc.codegen.loops import BodyType, Loop, MaskTest, Walk, one_line, write_setup
from attnc.ir.nodes import TRUE, And, Expr
from attnc.ir.walk import walk as nodes_of
from attnc.plan.fusing import fused_runs


@dataclass(frozen=True, slots=True)
class _Steps:
    """Where the steps of a loop lead.

    Attributes:
        setup: statements before the loop.
        finds: statements of each step that compute `tile`.
        ends: names of the steps past each interval.
    """

    setup: tuple[str, ...]
    finds: tuple[str, ...]
    ends: tuple[str, ...]


def fuse(
    writer: Writer,
    loops: Sequence[Loop[BodyType]],
    intervals: Sequence[KeyInterval],
    write: Callable[[Writer, Expr], BodyType],
    walk: Walk,
) -> tuple[Loop[BodyType], ...]:
    """Return the loops of one pass, those that may be fused as one.

    Args:
        writer: of the kernel; the loops have been written.
        loops: of the pass, one for each interval.
        intervals: of the pass.
        write: writes what is done with a tile whose pairs are not tested.
        walk: how the loops go over keys: in plain order.
    """
    found: list[Loop[BodyType]] = []
    starts = {run[0]: run for run in fused_runs(intervals)}
    inside = {number for run in starts.values() for number in run}
    for number, loop in enumerate(loops):
        if number in starts:
            run = starts[number]
            own = [intervals[one] for one in run]
            titles = "; ".join(loops[one].title for one in run)
            fused = _write_fused(writer, own, write, walk, first=number == 0)
            found.append(replace(fused, title=one_line(titles), opens=loop.opens))
        elif number not in inside:
            found.append(loop)
    return tuple(found)


def _write_fused(
    writer: Writer,
    intervals: Sequence[KeyInterval],
    write: Callable[[Writer, Expr], BodyType],
    walk: Walk,
    *,
    first: bool,
) -> Loop[BodyType]:
    outer = writer.blocks[0]
    steps = _write_steps(writer, intervals, outer, walk, first=first)
    writer.blocks, writer.margin = [outer, Block()], 2
    body = write(writer, TRUE)
    common = writer.blocks[1]
    tests = []
    for mask, numbers in _masks(intervals, walk).items():
        writer.blocks, writer.margin = [outer, Block(written=dict(common.written))], 3
        comment = places(node.span for node in nodes_of(mask))
        condition = writer.text(writer.root(mask, "allowed", comment), Shape.PAIR)
        tests.append(MaskTest(_where(steps.ends, numbers), tuple(writer.blocks[1].lines), condition))
    writer.blocks, writer.margin = [outer], 1
    writer.names.end_loop()
    text = "\n".join((body.text, *(line for test in tests for line in (*test.lines, test.mask))))
    position, low, last = (writer.aliases.get(name, name) for name in ("kv_idx", "kv_lo", "kv_hi"))
    return Loop(
        title="",
        setup=steps.setup,
        before=(),
        tile_test="",
        ragged=any(interval.coverage is Coverage.PARTIAL for interval in intervals),
        uses_kv_idx=position in text,
        uses_kv_lo=low in text,
        uses_kv_hi=last in text,
        body=body,
        steps=steps.ends[-1],
        finds=steps.finds,
        tests=tuple(tests),
    )


def _write_steps(writer: Writer, intervals: Sequence[KeyInterval], outer: Block, walk: Walk, *, first: bool) -> _Steps:
    setup: list[str] = []
    finds: list[str] = []
    ends: list[str] = []
    for number, interval in enumerate(intervals):
        setup += write_setup(writer, interval, outer, walk.origin, first=first and number == 0)
        past = ends[-1] if ends else ""
        if not ends or not _goes_on(intervals[number - 1], interval):
            skip = writer.names.fresh("skip")
            setup.append(f"{skip} = begin - {past}" if past else f"{skip} = begin")
            finds.append(f"tile = tl.where(step >= {past}, step + {skip}, tile)" if past else f"tile = step + {skip}")
        ends.append(writer.names.fresh("past"))
        setup.append(f"{ends[-1]} = {past + ' + ' if past else ''}end - begin")
    return _Steps(tuple(setup), tuple(finds), tuple(ends))


def _goes_on(before: KeyInterval, interval: KeyInterval) -> bool:
    """Tell whether an interval's first tile is the one after the last of the interval before, whatever the sizes."""
    return interval.start == before.stop and (before.stop_up or not interval.start_up)


def _masks(intervals: Sequence[KeyInterval], walk: Walk) -> dict[Expr, list[int]]:
    """Return what is tested, and the numbers of the intervals in which it is."""
    found: dict[Expr, list[int]] = {}
    for number, interval in enumerate(intervals):
        mask = fold(And((interval.residual, walk.real)) if interval.ragged else interval.residual)
        if mask != TRUE:
            found.setdefault(mask, []).append(number)
    return found


def _where(ends: Sequence[str], numbers: Sequence[int]) -> str:
    """Return the condition of the steps of some intervals."""
    starts = [number for number in numbers if number - 1 not in numbers]
    stops = [number for number in numbers if number + 1 not in numbers]
    stretches = [_stretch(ends, first, last) for first, last in zip(starts, stops, strict=True)]
    return stretches[0] if len(stretches) == 1 else " | ".join(f"({one})" for one in stretches)


def _stretch(ends: Sequence[str], first: int, last: int) -> str:
    since, until = f"step >= {ends[first - 1]}" if first else "", f"step < {ends[last]}" if last < len(ends) - 1 else ""
    if since and until:
        return f"({since}) & ({until})"
    return since or until or "step >= 0"
