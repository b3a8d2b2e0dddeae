"""Fresh scalars in place of what sets cannot express: a table's elements, hashes, products of indices, float tests.

Each pair is looked at by itself, so `doc[b, i]` may stand for any int there. What was proven of every value of the
stand-ins holds for the values that they stand for; what was refuted has to be confirmed by evaluation. Elements of one
table are tied together: equal indices have equal values, sorted ones do not decrease, and outside there is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, islice, permutations

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Tensor
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import children, free_bounds, instance, substitute, tables, with_children

UNROLLED = 8
"""Quantifiers up to this count are written out where they are not affine."""

MOST_TIES = 24
"""So many facts that tie stand-ins together are used; each makes a set finer, and none is needed for soundness."""


@dataclass(slots=True)
class StandIns:
    """The stand-ins of one comparison.

    Attributes:
        tensors: declarations of the tables, by name.
        known: for each expression (with stand-ins in its operands) the scalar that stands for it, inner ones first.
    """

    translator: Translator
    tensors: Mapping[str, Tensor]
    known: dict[Expr, Read] = field(default_factory=dict)

    def replace_in(self, expr: Expr) -> Expr:
        """Return the expression with stand-ins, so that every bool and int in it is affine."""
        if isinstance(expr, Quantifier):
            expr = _renamed(expr)
            if _is_short(expr) and not free_bounds(expr) and not self.translator.truth(expr).exact:
                instances = tuple(instance(expr, value) for value in range(expr.count))
                return self.replace_in(Or(instances) if expr.kind is QuantifierKind.ANY else And(instances))
        node = _ordered(with_children(expr, tuple(self.replace_in(child) for child in children(expr))))
        if isinstance(node, Binary) and node.op.is_comparison:
            comparison, negated = _positive(node)
            atom = comparison if free_bounds(comparison) else self._bool(comparison)
            return Unary(UnaryOp.NOT, atom, Type.BOOL, span=node.span) if negated else atom
        if free_bounds(node):
            return node
        if _is_element(node):
            return self._stand_in(node)
        if node.type is Type.INT and self.translator.number(node) is None:
            return self._stand_in(node)
        return self._bool(node) if node.type is Type.BOOL else node

    def _bool(self, node: Expr) -> Expr:
        if isinstance(node, And | Or | Unary | Where) or self.translator.truth(node).exact:
            return node
        return self._stand_in(node)

    def _stand_in(self, node: Expr) -> Expr:
        if node not in self.known:
            self.known[node] = Read(show(node), (), node.type)
        return self.known[node]

    def reasons(self) -> tuple[str, ...]:
        """Say what the stand-ins stand for: why a question may stay open."""
        data = [name for node in self.known for name in tables(node) if name in self.tensors]
        hashes = any(isinstance(node, Call) and node.function is Function.HASH for node in self.known)
        others = [node for node in self.known if not _is_element(node) and not tables(node)]
        found = [f"it depends on the values of {_listed(data)}"] if data else []
        found += ["it depends on a hash"] if hashes else []
        found += [f"`{show(node)}` is not affine" for node in others[:3]]
        return tuple(found)

    def ties(self) -> Iterator[isl.Set]:
        """Return what holds of the stand-ins for certain, each as a set of pairs."""
        return islice(self._all_ties(), MOST_TIES)

    def _all_ties(self) -> Iterator[isl.Set]:
        elements = [node for node in self.known if _is_element(node)]
        for node, scalar in self.known.items():
            if node.type is Type.BOOL and not _is_element(node):
                yield self._hull(node, scalar)
        tests = [node for node in self.known if isinstance(node, Binary) and node.op.is_comparison]
        for one, other in permutations(tests, 2):
            yield from self._ordered_floats(one, other)
        for first, second in combinations(elements, 2):
            if _same_table(first, second):
                yield from self._tied(first, second)
        for node in elements:
            yield from self._bounded(node)

    def _hull(self, node: Expr, flag: Read) -> isl.Set:
        """A test holds at most in its `may`, and fails at most outside its `must`; `doc[b, i] == doc[b, i]` holds."""
        t = self.translator
        truth, holds = t.truth(node), t.truth(flag).must
        itself = t.truth(substitute(node, _ON_DIAGONAL))
        diagonal = t.diagonal()
        may = truth.may.intersect(diagonal.complement().union(itself.may))
        must = truth.must.union(diagonal.intersect(itself.must))
        return holds.intersect(may).union(holds.complement().subtract(must))

    def _ordered_floats(self, one: Binary, other: Binary) -> Iterator[isl.Set]:
        """Of `x < y`, `y < x` and `x == y` at most one holds; `x <= y` follows from the first and the last."""
        holds, held = self.translator.truth(self.known[one]).must, self.translator.truth(self.known[other]).must
        alike = (one.left, one.right) == (other.left, other.right)
        swapped = (one.left, one.right) == (other.right, other.left)
        less, at_most, equal = BinaryOp.LT, BinaryOp.LE, BinaryOp.EQ
        if not (alike or swapped):
            return
        if other.op is at_most and (one.op is equal or (one.op is less and alike)):
            yield holds.complement().union(held)
        elif one.op is less and (other.op is equal or (swapped and other.op in (less, at_most))):
            yield holds.intersect(held).complement()

    def _tied(self, first: Expr, second: Expr) -> Iterator[isl.Set]:
        """Elements at one place are one; those of a sorted table do not decrease along its last dimension."""
        places = [self._places(first), self._places(second)]
        same = self._equal_places(places[0], places[1])
        if same is None:
            return
        yield same.complement().union(self._values_equal(first, second))
        tensor = self.tensors.get(first.table) if isinstance(first, Read) else None
        if tensor is None or not tensor.sorted or len(tensor.dims) != len(places[0]):
            return
        row = self._equal_places(places[0][:-1], places[1][:-1])
        one, other, length = places[0][-1], places[1][-1], self._length(tensor, len(places[0]) - 1)
        if row is None or length is None or one is None or other is None:
            return
        inside = row.intersect(self._inside(one, length)).intersect(self._inside(other, length))
        yield inside.intersect(one.le_set(other)).complement().union(self._value(first).le_set(self._value(second)))
        yield inside.intersect(other.le_set(one)).complement().union(self._value(second).le_set(self._value(first)))

    def _bounded(self, node: Expr) -> Iterator[isl.Set]:
        """A hash is not negative; a read outside its table gives 0."""
        if isinstance(node, Call):
            yield self._value(node).ge_set(self.translator.constant(0))
            return
        assert isinstance(node, Read)
        tensor = self.tensors.get(node.table)
        if tensor is None or len(tensor.dims) != len(node.index):
            return
        for axis, place in enumerate(self._places(node)):
            if place is not None:
                inside = self._inside(place, self._length(tensor, axis))
                yield inside.union(self._value(node).eq_set(self.translator.constant(0)))

    def _inside(self, place: isl.PwAff, length: isl.PwAff | None) -> isl.Set:
        inside = place.ge_set(self.translator.constant(0))
        return inside if length is None else inside.intersect(place.lt_set(length))

    def _length(self, tensor: Tensor, axis: int) -> isl.PwAff | None:
        dim = tensor.dims[axis]
        return None if dim is None or self.translator.number(dim) is None else self.translator.number(dim)

    def _places(self, node: Expr) -> list[isl.PwAff | None]:
        return [self.translator.number(at) for at in children(node)]

    def _equal_places(self, first: list[isl.PwAff | None], second: list[isl.PwAff | None]) -> isl.Set | None:
        same = self.translator.universe()
        for left, right in zip(first, second, strict=True):
            if left is None or right is None:
                return None
            same = same.intersect(left.eq_set(right))
        return same

    def _value(self, node: Expr) -> isl.PwAff:
        scalar = self.known[node]
        value = self.translator.number(Cast(scalar, Type.INT) if scalar.type is Type.BOOL else scalar)
        assert value is not None  # a scalar is the same for every pair, so it has a parameter
        return value

    def _values_equal(self, first: Expr, second: Expr) -> isl.Set:
        return self._value(first).eq_set(self._value(second))


_ON_DIAGONAL: dict[Expr, Expr] = {Index(IndexName.KEY): Index(IndexName.QUERY)}


def _is_element(node: Expr) -> bool:
    """Tell whether equal operands mean equal values: an element of a table that holds ints or bools, or a hash."""
    match node:
        case Read(index=index):
            return bool(index) and node.type is not Type.FLOAT
        case Call(function=function):
            return function is Function.HASH
        case _:
            return False


def _ordered(node: Expr) -> Expr:
    """Write the operands of a sum or product in one order."""
    if isinstance(node, Binary) and node.op in (BinaryOp.MUL, BinaryOp.ADD) and show(node.right) < show(node.left):
        return replace(node, left=node.right, right=node.left)
    return node


def _same_table(first: Expr, second: Expr) -> bool:
    if len(children(first)) != len(children(second)):
        return False
    match first, second:
        case Read(table=one), Read(table=other):
            return one == other
        case Call(), Call():
            return True
        case _:
            return False


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _positive(node: Binary) -> tuple[Binary, bool]:
    """Bring a comparison into the form that stands for it and its opposite: `a > b` is `b < a`, `a != b` a negation."""
    whole = node.left.type is not Type.FLOAT
    match node.op:
        case BinaryOp.NE:
            atom, negated = _positive(replace(node, op=BinaryOp.EQ))
            return atom, not negated
        case BinaryOp.GT:
            return replace(node, op=BinaryOp.LT, left=node.right, right=node.left), False
        case BinaryOp.GE if whole:
            return replace(node, op=BinaryOp.LT), True
        case BinaryOp.GE:
            return replace(node, op=BinaryOp.LE, left=node.right, right=node.left), False
        case BinaryOp.LE if whole:  # NaN is neither above nor below
            return replace(node, op=BinaryOp.LT, left=node.right, right=node.left), True
        case BinaryOp.EQ if show(node.right) < show(node.left):
            return replace(node, left=node.right, right=node.left), False
        case _:
            return node, False


def _renamed(node: Quantifier) -> Quantifier:
    """Name the variable by how many quantifiers stand inside, so that two spellings of one condition are equal."""
    name = f"t{_height(node.body)}"
    if name == node.variable or name in free_bounds(node.body):
        return node
    return replace(node, variable=name, body=substitute(node.body, {Bound(node.variable): Bound(name)}))


def _is_short(expr: Quantifier) -> bool:
    return expr.kind is not QuantifierKind.SUM and 1 < expr.count <= UNROLLED


def _height(expr: Expr) -> int:
    inside = max((_height(child) for child in children(expr)), default=0)
    return inside + isinstance(expr, Quantifier)
