"""What a `decompose` statement asks for, instead of what the costs would choose (LANGUAGE.md section 10)."""

from __future__ import annotations

from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import PLAIN, residue
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import Const, Expr
from attnc.ir.program import Attention, Deferred
from attnc.plan.grids import asked_grid
from attnc.plan.layouts import candidate_layouts
from attnc.plan.split import Part, split_by

MOST_POINTS = 4096
"""Larger query tiles have boxes that are no smaller than what plain order walks."""


def alternatives(attention: Attention) -> tuple[tuple[Part, ...], ...] | None:
    """Return the ways to compute a mask that its `decompose` statement leaves open; None without a statement.

    Args:
        attention: simplified.

    Raises:
        CompileError: what is asked for does not fit the mask.
    """
    asked = attention.decompose
    if asked is None or asked.form == "chunk":
        return None
    arguments = dict(asked.arguments)
    match asked.form:
        case "split":
            condition = arguments["condition"]
            assert not isinstance(condition, str)
            return _split(attention, asked, condition)
        case "permute" if arguments["order"] == "tile":
            width, *tile = (_constant(arguments[name]) for name in ("width", "th", "tw"))
            return ((_tiled(attention, asked, width, tile[0], tile[1]),),)
        case "permute":
            return ((_permuted(attention, asked, _constant(arguments["d"])),),)
        case _:
            return (((attention.mask, PLAIN),),)


def _split(attention: Attention, asked: Deferred, condition: Expr) -> tuple[tuple[Part, ...], ...]:
    """Return the two parts, each in plain order or in a layout of its own."""
    pairs = PairSet.of(attention)
    parts = split_by(attention, condition)
    empty = [pairs.nothing(part) for part in parts]
    if any(empty):
        side = "every" if empty == [False, True] else "no"
        raise _misfit(
            asked,
            f"`split` needs pairs on both sides, and its condition holds for {side} pair that the mask allows",
            "remove the statement, or give a condition that divides the allowed pairs",
        )
    orders = [(PLAIN, *candidate_layouts(pairs, part)) for part in parts]
    return tuple(((parts[0], first), (parts[1], second)) for first in orders[0] for second in orders[1])


def _permuted(attention: Attention, asked: Deferred, period: int) -> Part:
    ahead = PairSet.of(attention).key_ahead(attention.mask, period)
    if ahead is None:
        raise _misfit(
            asked,
            f"`residue({period})` needs `(i - j) % {period}` to be one number for all pairs that the mask allows",
            f"and the mask with `(i - j) % {period} == 0`, take the divisor that the mask has, or split the mask first",
        )
    return attention.mask, residue(period, ahead)


def _tiled(attention: Attention, asked: Deferred, width: int, rows: int, columns: int) -> Part:
    if columns > width or rows * columns > MOST_POINTS:
        raise _misfit(
            asked,
            f"a tile of {rows} x {columns} is wider than rows of {width}, or has more than {MOST_POINTS} points",
            "take smaller tiles: kernels work on 16 to 128 queries at a time",
        )
    return attention.mask, asked_grid(PairSet.of(attention), attention.mask, width, (rows, columns))


def _misfit(asked: Deferred, reason: str, mend: str) -> CompileError:
    labels = () if asked.span is None else (Label(asked.span, "this does not fit the mask"),)
    return CompileError(Diagnostic("decompose-does-not-fit", reason, labels, mend))


def _constant(value: Expr | str) -> int:
    assert isinstance(value, Const)
    return int(value.value)
