"""Ways to compute a mask in several disjoint parts, each in an order of positions in which it is dense."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import PLAIN, Layout
from attnc.algebra.simplify import simplify_expression
from attnc.ir.nodes import And, Binary, BinaryOp, Const, Expr, Or
from attnc.ir.program import Attention
from attnc.ir.walk import walk
from attnc.plan.layouts import candidate_layouts

Part = tuple[Expr, Layout]
"""A mask, and the order in which its pairs are walked."""

MOST_OPERANDS = 12
"""A disjunction of more operands than this is not split."""

LEAST_LEFT = 0.5
"""A part of which several excluded congruences leave a smaller share is as sparse as what it was taken from."""

MOST_APART = 4
"""Up to so many disjuncts in plain order are computed one after the other; with more, programs walk too many loops."""

MOST_LAYOUTS = 4
"""Layouts besides the plain one that the parts of one mask may have."""


def decompositions(attention: Attention) -> Iterator[tuple[Part, ...]]:
    """Yield ways to cover a mask by disjoint parts: in plain order, in other layouts, its disjuncts apart.

    The likeliest come first; the caller need not look at all of them.
    """
    yield ((attention.mask, PLAIN),)
    pairs = PairSet.of(attention)
    yield from (((attention.mask, layout),) for layout in candidate_layouts(pairs, attention.mask))
    for disjuncts in _disjunctions(attention.mask):
        groups = _grouped(pairs, disjuncts)
        yield from _apart(pairs, groups)
        for parts in _choices(groups):
            for order in (parts, parts[::-1]):
                found = _disjoint(pairs, order)
                if len(found) > 1 and all(_is_dense(mask) for mask, _ in found):
                    yield found


def _apart(pairs: PairSet, groups: dict[Layout, list[Expr]]) -> Iterator[tuple[Part, ...]]:
    """Yield every disjunct by itself, where several are in plain order.

    One interval list for all of them has to cover what lies between, or is more than the budget allows; lists of their
    own are walked in one kernel.
    """
    if 1 < len(groups[PLAIN]) <= MOST_APART:
        found = _disjoint(pairs, [(one, layout) for layout, disjuncts in groups.items() for one in disjuncts])
        if len(found) > 1 and all(_is_dense(mask) for mask, _ in found):
            yield found


def split_by(attention: Attention, condition: Expr) -> tuple[Expr, Expr]:
    """Return the parts of a mask where a condition holds and where it does not."""
    pairs = PairSet.of(attention)
    inside, _ = simplify_expression(And((attention.mask, condition)))
    outside, _ = simplify_expression(pairs.without(attention.mask, (condition,)))
    return inside, outside


def _disjunctions(mask: Expr) -> Iterator[tuple[Expr, ...]]:
    """Yield the ways to write a mask as a disjunction: `a and (b or c)` is `a and b or a and c`."""
    match mask:
        case Or(operands=operands) if len(operands) <= MOST_OPERANDS:
            yield operands
        case And(operands=operands):
            for position, operand in enumerate(operands):
                if isinstance(operand, Or) and len(operand.operands) <= MOST_OPERANDS:
                    others = operands[:position] + operands[position + 1 :]
                    yield tuple(And((*others, one)) for one in operand.operands)


def _grouped(pairs: PairSet, disjuncts: tuple[Expr, ...]) -> dict[Layout, list[Expr]]:
    """Group disjuncts by the first layout in which they are dense; the plain one comes first."""
    groups: dict[Layout, list[Expr]] = {PLAIN: []}
    for disjunct in disjuncts:
        normal, _ = simplify_expression(disjunct)
        layouts = candidate_layouts(pairs, normal)
        # a grid is found only where boxes are small, so it is what a disjunct that has one likes best
        first = layouts[-1 if layouts[-1].is_grid else 0] if layouts else PLAIN
        layout = first if first in groups or len(groups) <= MOST_LAYOUTS else PLAIN
        groups.setdefault(layout, []).append(normal)
    return groups


def _choices(groups: dict[Layout, list[Expr]]) -> Iterator[list[Part]]:
    """Yield which layouts are used: the disjuncts of the others join those in plain order."""
    special = [layout for layout in groups if layout != PLAIN]
    for used in product((True, False), repeat=len(special)):
        chosen = {PLAIN: list(groups[PLAIN])}
        for layout, is_used in zip(special, used, strict=True):
            chosen.setdefault(layout if is_used else PLAIN, []).extend(groups[layout])
        parts = [(_either(disjuncts), layout) for layout, disjuncts in chosen.items() if disjuncts]
        if any(used) and len(parts) > 1:
            yield parts


def _disjoint(pairs: PairSet, parts: list[Part]) -> tuple[Part, ...]:
    """Take from each part what earlier ones have. Parts that are left with nothing are dropped."""
    taken: list[Expr] = []
    disjoint: list[Part] = []
    for part, layout in parts:
        rest, _ = simplify_expression(pairs.without(part, tuple(taken)))
        taken.append(part)
        if not pairs.nothing(rest):
            disjoint.append((rest, layout))
    return tuple(disjoint)


def _is_dense(mask: Expr) -> bool:
    """Tell whether the congruences that a mask excludes leave most of it: one of any modulus, several large ones."""
    left = [1.0 - 1.0 / modulus for modulus in _excluded(mask)]
    return len(left) <= 1 or prod(left) >= LEAST_LEFT


def _excluded(mask: Expr) -> Iterator[int]:
    """Yield the modulus of each congruence that a mask excludes."""
    for node in walk(mask):
        if not isinstance(node, Binary) or node.op is not BinaryOp.NE:
            continue
        for side in (node.left, node.right):
            match side:
                case Binary(op=BinaryOp.MOD, right=Const(value=int() as modulus)) if modulus > 0:
                    yield modulus


def _either(operands: list[Expr]) -> Expr:
    return operands[0] if len(operands) == 1 else Or(tuple(operands))
