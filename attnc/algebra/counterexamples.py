"""The least point of a set, as a person would state it."""

from __future__ import annotations

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.facts import Counterexample
from attnc.algebra.index_sets import integer
from attnc.ir.nodes import Cast, Expr
from attnc.ir.program import AlignKind
from attnc.ir.show import show

_ORDER = ("M", "N", "h", "i", "j")


def least_counterexample(translator: Translator, failures: isl.Set, *, has_key: bool) -> Counterexample:
    """Return the least failure by M, then N, h, i, j, with the values of scalar inputs nearest to 0.

    Args:
        translator: that made the set.
        failures: not empty; pairs, or rows alone.
        has_key: whether they are pairs.
    """
    values = least_point(translator, failures, has_key=has_key)
    return Counterexample(
        queries=values["N"],
        keys=values["M"],
        head=values["h"],
        query=values["i"],
        key=values["j"] if has_key else None,
        scalars=tuple((_name_of(expr), values[name]) for name, expr in translator.opaques.items()),
    )


def least_point(
    translator: Translator, failures: isl.Set, *, has_key: bool, also: tuple[str, ...] = ()
) -> dict[str, int]:
    """Return the least point of a set that is not empty, by name: M, N, h, i, j, then opaques, then those of `also`."""
    points = failures
    for name in ("i", "j")[: 2 if has_key else 1]:
        count = points.dim(isl.dim_type.param)
        points = points.move_dims(isl.dim_type.param, count, isl.dim_type.set, 0, 1)
        points = points.set_dim_name(isl.dim_type.param, count, name)
    if translator.align is AlignKind.END:
        lengths = isl.Set.read_from_str(translator.context, "[N, M, shift] -> { [] : N = M - shift }")
        points = points.params().intersect_params(lengths.params())
    points = points.params()
    values: dict[str, int] = {}
    for name in (*_ORDER, *translator.opaques, *also):
        points, values[name] = _fixed(points, name)
    return values


def words(example: Counterexample) -> str:
    """State a counterexample: `N = 2, M = 2: i = 0 may see j = 1`."""
    sizes = [f"N = {example.queries}", f"M = {example.keys}"]
    sizes += [f"h = {example.head}"] if example.head else []
    sizes += [f"{name} = {value}" for name, value in example.scalars]
    sees = "has no key" if example.key is None else f"may see j = {example.key}"
    return f"{', '.join(sizes)}: i = {example.query} {sees}"


def _fixed(points: isl.Set, name: str) -> tuple[isl.Set, int]:
    """Give one parameter its value nearest to 0, positive if there are two, and return what is left."""
    position = points.find_dim_by_name(isl.dim_type.param, name)
    if position < 0:
        return points, 0
    line = isl.Set.from_params(points).move_dims(isl.dim_type.set, 0, isl.dim_type.param, position, 1)
    line = line.project_out(isl.dim_type.param, 0, line.dim(isl.dim_type.param))
    above = line.lower_bound_val(isl.dim_type.set, 0, isl.Val.zero(points.get_ctx()))
    below = line.upper_bound_val(isl.dim_type.set, 0, isl.Val.negone(points.get_ctx()))
    candidates = [] if above.is_empty() else [_only(above.lexmin())]
    candidates += [] if below.is_empty() else [_only(below.lexmax())]
    value = min(candidates, key=lambda candidate: (abs(candidate), candidate < 0))
    return points.fix_val(isl.dim_type.param, position, isl.Val.int_from_si(points.get_ctx(), value)), value


def _only(line: isl.Set) -> int:
    """Return the number in a set of one number; `dim_min_val` ignores divisions, and may name one that is not in it."""
    return integer(line.sample_point().get_coordinate_val(isl.dim_type.set, 0))


def _name_of(expr: Expr) -> str:
    return show(expr.operand if isinstance(expr, Cast) else expr)
