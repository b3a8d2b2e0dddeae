"""Integer sets back to typed IR: bounds and conditions over parameters, written as a person would write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import islpy as isl

from attnc.algebra.index_sets import OutOfBudgetError, budget
from attnc.algebra.linear import Linear, NoClosedFormError, linear_form, tame, write
from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Call,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Size,
    SizeName,
    Where,
)
from attnc.ir.types import Type

MOST_CONDITIONS = 12
"""A condition with more comparisons than this is not worth writing out."""

MOST_CASES = 4
"""A bound with more cases than this is not worth writing out."""

MOST_COALESCED = 12
"""A value of more pieces than this is left as it is: finding those that agree takes longer than it saves."""

MOST_DIVIDED = 8
"""A bound with more pieces than this is not divided by cases of heads and inputs."""

_TILE_PARAMETERS = ("i_lo", "i_hi", "j_lo", "j_hi", "M", "N", "shift")

_INDEX_NAMES = {name.value: name for name in IndexName if name is not IndexName.DIM}
_SIZE_NAMES = {name.value: name for name in SizeName}


@dataclass(frozen=True, slots=True)
class _Shape:
    """A value as nested minima and maxima of affine forms: a leaf has a form, any other node its operands."""

    aff: isl.PwAff | None = None
    function: Function = Function.MAX
    operands: tuple[_Shape, ...] = ()

    def value(self) -> isl.PwAff:
        """Return the value as one piecewise form, defined everywhere."""
        if self.aff is not None:
            return self.aff
        combine = isl.PwAff.max if self.function is Function.MAX else isl.PwAff.min
        return reduce(combine, [operand.value() for operand in self.operands]).coalesce()


@dataclass(frozen=True, slots=True)
class Bound:
    """An int over parameters, as IR and as a set-valued object: both are defined everywhere and equal."""

    expr: Expr
    value: isl.PwAff


@dataclass(frozen=True, slots=True)
class BoundsWriter:
    """Writes values and conditions over named parameters as IR.

    Attributes:
        opaques: the expression that each opaque parameter stands for.
        known: what is known of the parameters wherever the result is used.
    """

    opaques: Mapping[str, Expr]
    known: isl.Set

    def symbol(self, name: str) -> Expr:
        """Return what a parameter or coordinate is called in the IR."""
        if name in self.opaques:
            return self.opaques[name]
        return Index(_INDEX_NAMES[name]) if name in _INDEX_NAMES else Size(_SIZE_NAMES[name])

    def affine(self, aff: isl.Aff) -> Expr:
        """Write one affine form. A denominator becomes a floor division, since values are integers.

        Raises:
            NoClosedFormError: see `linear_form`.
        """
        form, denominator = linear_form(aff)
        written = write(form, self.symbol)
        if denominator == 1:
            return written
        return Binary(BinaryOp.FLOORDIV, written, Const(denominator, Type.INT), Type.INT)

    def condition(self, points: isl.Set, most: int = MOST_CONDITIONS) -> Expr | None:
        """Write when a set holds, given what is known; None if that takes more comparisons, or is out of budget."""
        written = self.written_condition(points, most)
        return None if written is None else written[0]

    def written_condition(self, points: isl.Set, most: int = MOST_CONDITIONS) -> tuple[Expr, isl.Set] | None:
        """Write when a set holds, and return what was written as a set, also where nothing is known."""
        try:
            with budget(points.get_ctx()):
                if self.known.is_subset(points):
                    return TRUE, isl.Set.universe(points.get_space())
                made = points.intersect(self.known).coalesce().gist(self.known).compute_divs().coalesce()
                parts = [[_comparison_parts(item) for item in _constraints(part)] for part in made.get_basic_sets()]
        except (OutOfBudgetError, NoClosedFormError):
            return None
        if sum(len(part) for part in parts) > most:
            return None
        return _disjunction([_conjunction([self._comparison(*item) for item in part]) for part in parts]), made

    def _comparison(self, form: Linear, op: BinaryOp) -> Expr:
        """Write `form >= 0` or `form == 0` with each term on the side where its factor is positive."""
        left = Linear(0, tuple(term for term in form.terms if term[1] > 0))
        right = Linear(0, tuple((unit, -factor) for unit, factor in form.terms if factor < 0))
        if op is BinaryOp.GE and form.constant == -1 and left.terms and right.terms:
            return Binary(BinaryOp.GT, write(left, self.symbol), write(right, self.symbol), Type.BOOL)
        if not left.terms:
            flipped = BinaryOp.EQ if op is BinaryOp.EQ else BinaryOp.LE
            return self._upper(flipped, right, form.constant)
        if form.constant > 0 and right.terms:
            left = Linear(form.constant, left.terms)
        else:
            right = Linear(-form.constant, right.terms)
        return Binary(op, write(left, self.symbol), write(right, self.symbol), Type.BOOL)

    def _upper(self, op: BinaryOp, terms: Linear, limit: int) -> Expr:
        return Binary(op, write(terms, self.symbol), Const(limit, Type.INT), Type.BOOL)

    def bound(self, piecewise: isl.PwAff) -> Bound | None:
        """Write a piecewise affine value that is used only on its domain, given what is known.

        Returns:
            A bound that agrees with it there and is defined everywhere; None if it cannot be written shortly.
        """
        try:
            with budget(piecewise.get_ctx()):
                pieces = _grouped(piecewise.intersect_domain(self.known).coalesce().get_pieces())
                domain = piecewise.domain().intersect(self.known)
                if not pieces:
                    return None
                shape = _shape([(part, _total(aff)) for part, aff in pieces])
                if shape is not None:
                    return Bound(self._write_shape(shape), shape.value())
        except (OutOfBudgetError, NoClosedFormError):
            return None
        divided = self._divided(piecewise)
        return divided if divided is not None else self._cases(pieces, domain)

    def _write_shape(self, shape: _Shape) -> Expr:
        if shape.aff is not None:
            return self.affine(shape.aff.as_aff())
        written = [self._write_shape(operand) for operand in shape.operands]
        constants_first = sorted(written, key=lambda operand: not isinstance(operand, Const))
        return Call(shape.function, tuple(constants_first), Type.INT)

    def _divided(self, piecewise: isl.PwAff) -> Bound | None:
        """Write a value by cases of what does not depend on the tile: `where(h < 2, 0, i_lo - 63)`."""
        try:
            with budget(piecewise.get_ctx()):
                case = self._tile_free_case(piecewise)
                if case is None:
                    return None
                inside, outside = piecewise.intersect_domain(case), piecewise.subtract_domain(case)
        except OutOfBudgetError:
            return None
        first = BoundsWriter(self.opaques, self.known.intersect(case)).bound(inside)
        second = BoundsWriter(self.opaques, self.known.subtract(case)).bound(outside)
        condition = self.condition(case)
        if first is None or second is None or condition is None:
            return None
        return Bound(Where(condition, first.expr, second.expr, Type.INT), chosen(case, first.value, second.value))

    def _tile_free_case(self, piecewise: isl.PwAff) -> isl.Set | None:
        """Find a condition on heads and inputs alone under which some piece never applies."""
        known = _without(self.known, _TILE_PARAMETERS)
        pieces = piecewise.intersect_domain(self.known).coalesce().get_pieces()
        for domain, _ in pieces if len(pieces) <= MOST_DIVIDED else []:
            case = _without(domain.intersect(self.known), _TILE_PARAMETERS).coalesce()
            if not known.is_subset(case):
                return case.gist(known).coalesce()
        return None

    def _cases(self, pieces: list[tuple[isl.Set, isl.Aff]], domain: isl.Set) -> Bound | None:
        """Write a chain of conditions; the last piece also stands for what lies outside every domain."""
        if len(pieces) > MOST_CASES:
            return None
        narrowed = BoundsWriter(self.opaques, domain)
        try:
            expr, value = self.affine(pieces[-1][1]), _total(pieces[-1][1])
            for part, aff in reversed(pieces[:-1]):
                written = narrowed.written_condition(part)
                if written is None:
                    return None
                expr = Where(written[0], self.affine(aff), expr, Type.INT)
                value = chosen(written[1], _total(aff), value)
        except NoClosedFormError:
            return None
        return Bound(expr, value)


def chosen(condition: isl.Set, then: isl.PwAff, otherwise: isl.PwAff) -> isl.PwAff:
    """Return the value that is `then` where a condition holds and `otherwise` elsewhere."""
    value = then.intersect_domain(condition).union_add(otherwise.subtract_domain(condition))
    return value.coalesce() if value.n_piece() <= MOST_COALESCED else value


def _without(points: isl.Set, names: tuple[str, ...]) -> isl.Set:
    """Project parameters out."""
    for name in names:
        position = points.find_dim_by_name(isl.dim_type.param, name)
        if position >= 0:
            points = points.project_out(isl.dim_type.param, position, 1)
    return points


def _grouped(pieces: list[tuple[isl.Set, isl.Aff]]) -> list[tuple[isl.Set, isl.Aff]]:
    """Join the domains of pieces that have one value."""
    grouped: list[tuple[isl.Set, isl.Aff]] = []
    for domain, aff in pieces:
        for position, (other, same) in enumerate(grouped):
            if linear_form(same) == linear_form(aff):
                grouped[position] = (other.union(domain).coalesce(), same)
                break
        else:
            grouped.append((domain, aff))
    return grouped


def _shape(pieces: list[tuple[isl.Set, isl.PwAff]]) -> _Shape | None:
    """Find one combination of the pieces' forms that is right in all of them. Runs under the caller's budget.

    Piece by piece, since the first that is wrong is enough, and by `x <= max(x, y)` where that says it: isl compares
    two forms on one piece in a small part of the time that it takes for equality of two piecewise values.
    """
    for shape in _shapes([aff for _, aff in pieces]):
        if all(_is_right(shape, part, aff) for part, aff in pieces):
            return shape
    return None


def _is_right(shape: _Shape, part: isl.Set, aff: isl.PwAff) -> bool:
    """Tell whether a shape has the value of a form on a piece."""
    if not any(operand.aff is aff for operand in shape.operands):
        return bool(part.is_subset(aff.eq_set(shape.value())))
    others = [operand.value() for operand in shape.operands if operand.aff is not aff]
    if shape.function is Function.MAX:
        return all(part.is_subset(aff.ge_set(other)) for other in others)
    return all(part.is_subset(aff.le_set(other)) for other in others)


def _shapes(affs: list[isl.PwAff]) -> Iterator[_Shape]:
    """Yield the ways to combine affine forms by minima and maxima that occur in practice, simple ones first."""
    leaves = [_Shape(aff) for aff in affs]
    yield from leaves
    if len(leaves) > MOST_CASES + 1:
        return
    orders = ((Function.MAX, Function.MIN), (Function.MIN, Function.MAX))
    for size in range(2, len(leaves) + 1):
        for group in combinations(leaves, size):
            for function, _ in orders:
                yield _Shape(None, function, group)
    if len(leaves) > MOST_CASES:
        return
    for outer, inner in orders:
        for size in range(2, len(leaves)):
            for group in combinations(leaves, size):
                rest = tuple(leaf for leaf in leaves if not any(leaf is other for other in group))
                for kept in ((leaf,) for leaf in rest):
                    yield _Shape(None, outer, (*kept, _Shape(None, inner, group)))
                if len(rest) > 1:
                    yield _Shape(None, outer, (*rest, _Shape(None, inner, group)))


def _total(aff: isl.Aff) -> isl.PwAff:
    return isl.PwAff.from_aff(aff)


def _constraints(part: isl.BasicSet) -> list[isl.Constraint]:
    return [constraint for constraint in part.get_constraints() if not constraint.is_div_constraint()]


def _comparison_parts(constraint: isl.Constraint) -> tuple[Linear, BinaryOp]:
    form, _ = linear_form(constraint.get_aff())
    return form, BinaryOp.EQ if constraint.is_equality() else BinaryOp.GE


def _conjunction(parts: list[Expr]) -> Expr:
    if not parts:
        return TRUE
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _disjunction(parts: list[Expr]) -> Expr:
    if TRUE in parts:
        return TRUE
    if not parts:
        return FALSE
    return parts[0] if len(parts) == 1 else Or(tuple(parts))


def plus_one(bound: Bound) -> Bound:
    """Turn a last key into a stop."""
    return Bound(_incremented(bound.expr), bound.value.add_constant_val(isl.Val.int_from_si(bound.value.get_ctx(), 1)))


def _incremented(expr: Expr) -> Expr:
    """Add 1 to an int, where it reads best."""
    match expr:
        case Const(value=value):
            return Const(int(value) + 1, Type.INT)
        case Binary(op=BinaryOp.SUB, left=left, right=Const(value=value)):
            return left if value == 1 else Binary(BinaryOp.SUB, left, Const(int(value) - 1, Type.INT), Type.INT)
        case Binary(op=BinaryOp.ADD, left=left, right=Const(value=value)):
            return Binary(BinaryOp.ADD, left, Const(int(value) + 1, Type.INT), Type.INT)
        case Call(function=Function.MIN | Function.MAX, args=args):
            return Call(expr.function, tuple(_incremented(arg) for arg in args), Type.INT)
        case Where(condition=condition, then=then, otherwise=otherwise):
            return Where(condition, _incremented(then), _incremented(otherwise), Type.INT)
        case _:
            return Binary(BinaryOp.ADD, tame(expr), Const(1, Type.INT), Type.INT)
