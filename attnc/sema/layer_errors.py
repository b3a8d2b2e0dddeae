"""What can be wrong with the numbers of a layer: one factory of a diagnostic for each code."""

from __future__ import annotations

from attnc.diagnostics import Diagnostic, Label
from attnc.source import Span


def _at(span: Span | None, text: str = "") -> tuple[Label, ...]:
    return () if span is None else (Label(span, text),)


def heads_leave_a_rest(span: Span | None, heads: int, width: int) -> Diagnostic:
    """Heads that do not divide the width, where that decides the head size."""
    return Diagnostic(
        "heads-leave-a-rest",
        "`heads` must divide `width` where the layer has no `head_size`",
        _at(span, f"{width} features cannot be shared by {heads} heads"),
        help="say `head_size`, or choose another number of heads",
    )


def odd_head_size(span: Span | None, head_size: int) -> Diagnostic:
    """Rotary positions of heads with an odd number of features."""
    return Diagnostic(
        "odd-head-size",
        "`rotary` turns pairs of features, so the head size must be even",
        _at(span, f"heads have {head_size} features"),
        help="choose an even `head_size`, or remove `rotary`",
    )


def size_out_of_range(span: Span | None, what: str, number: int, most: int) -> Diagnostic:
    """A size that no layer has."""
    return Diagnostic(
        "size-out-of-range",
        f"`{what}` must lie between 1 and {most:,}",
        _at(span, f"it is {number:,}"),
    )


def rank_above_size(span: Span | None, name: str, rank: int, rows: int, columns: int) -> Diagnostic:
    """A rank that no matrix of this size has."""
    return Diagnostic(
        "rank-above-size",
        f"a matrix of {rows} x {columns} has at most rank {min(rows, columns)}",
        _at(span, f"`{name}` asks for {rank}"),
        help="choose a smaller rank, or `dense`",
    )


def blocks_leave_a_rest(span: Span | None, name: str, blocks: int, rows: int, columns: int) -> Diagnostic:
    """Blocks that do not divide a side of the matrix."""
    side, what = (columns, "inputs") if columns % blocks else (rows, "outputs")
    return Diagnostic(
        "blocks-leave-a-rest",
        f"{blocks} blocks do not divide the {side} {what} of `{name}`",
        _at(span, f"its matrix is {rows} x {columns}"),
        help="choose a number of blocks that divides both",
    )


def too_many_parameters(span: Span | None, name: str, parameters: int, most: int) -> Diagnostic:
    """A matrix that fits no machine."""
    return Diagnostic(
        "too-many-parameters",
        f"`{name}` has {parameters:,} parameters, and a matrix may have {most:,}",
        _at(span),
        help="choose smaller sizes",
    )


def too_many_entries(span: Span | None, name: str, rows: int, columns: int) -> Diagnostic:
    """A masked matrix with more entries than can be looked at."""
    return Diagnostic(
        "too-many-entries",
        f"the mask of `{name}` is about {rows:,} x {columns:,} entries, too many to look at one by one",
        _at(span),
        help="choose smaller sizes, or `block_diagonal` or `banded`",
    )


def stride_of(span: Span | None, name: str, stride: int) -> Diagnostic:
    """A projection that gives fewer positions where each is needed."""
    return Diagnostic(
        "stride-shortens",
        f"`{name}` must keep every position, and a stride of {stride} leaves some out",
        _at(span),
        help="only `key` and `value` may have a stride above 1",
    )


def strides_differ(span: Span | None, key: int, value: int) -> Diagnostic:
    """Keys and values of different numbers."""
    return Diagnostic(
        "strides-differ",
        "`key` and `value` must leave the same positions out",
        _at(span, f"`key` has a stride of {key}, `value` of {value}"),
        help="give both the same `conv` or `conv2d`",
    )
