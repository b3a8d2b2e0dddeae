"""Typed IR to integer sets: what a bool allows at least and at most, what an int is exactly.

`Translator` turns a bool into two sets of pairs, `must` and `may`, with `must <= truth <= may`. Where the expression
is affine (with `//` and `%` by constants, `min`, `max`, `abs`, `where`, logic) the two are one. Elsewhere:

- a sub-expression that is the same for every pair of a head (a scalar input, `length[b]`, `h // g`, a float test on
  inputs) becomes a parameter, an *opaque*, that stands for its value;
- any other sub-expression (a table read at `i` or `j`, a hash, a float) makes `must` empty and `may` everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import assert_never

import islpy as isl

from attnc.algebra.coordinates import KEY_REACH, LOCAL_KEY, LOCAL_QUERY, PLAIN, Layout, Reach, query_reach
from attnc.algebra.index_sets import pair_space
from attnc.algebra.int_exprs import ZERO
from attnc.algebra.piecewise import arithmetic, compared
from attnc.algebra.ranges import UNBOUNDED, Range, combined, compared_ranges, extreme
from attnc.algebra.summaries import RunBounds, Summaries
from attnc.algebra.terms import may_wrap
from attnc.algebra.truths import Truth, exactly
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import AlignKind, Deferred
from attnc.ir.types import Type
from attnc.ir.walk import free_bounds, indices, instance, walk

UNROLLED_SUM = 64
"""Bounded sums up to this count are written out."""

MOST_BASIC_SETS = 40
"""A set or a number of more pieces than this counts as not affine, where nothing else is said."""

FLOAT32_INTEGERS = 2**24
"""Up to here every integer is a float32, so that a comparison of a float with such a number means what it says."""


FLIPPED = {
    BinaryOp.EQ: BinaryOp.EQ,
    BinaryOp.NE: BinaryOp.NE,
    BinaryOp.LT: BinaryOp.GT,
    BinaryOp.LE: BinaryOp.GE,
    BinaryOp.GT: BinaryOp.LT,
    BinaryOp.GE: BinaryOp.LE,
}
"""What a comparison is with its sides exchanged."""


@dataclass(slots=True)
class Translator:
    """Turns expressions of one attention into sets over `[i, j]`: numbers of queries and keys in the layout's order.

    The names of parameters are those of the language (`N`, `M`, `h`, `shift`, `i_lo`, ...) and `x0`, `x1`, ... for
    opaques.

    Attributes:
        align: under `END`, `N` is written `M - shift`, and under `START` the shift is 0.
        layout: which positions the coordinates stand for.
        transposed: whether `i` stands for keys and `j` for queries.
        is_open: whether `j` may lie before the first one: sets are simpler without the shift in them, and who walks
            begins at the first one in any case.
        summaries: tables of which bounds of runs are known in a query tile; none outside of one.
        runs: bounds of the runs that were met, as parameters.
        opaques: the expression of each opaque parameter, an int (or the 0 or 1 of a bool).
        reasons: why `must` and `may` differ somewhere, in the order of discovery: `data-dependent: doc`.
        keys: the statement by which keys were shortened; None where they were not.
        most_pieces: a set or a number of more pieces counts as not affine.
    """

    context: isl.Context
    align: AlignKind
    layout: Layout = PLAIN
    transposed: bool = False
    is_open: bool = False
    keys: Deferred | None = None
    summaries: Summaries = field(default_factory=Summaries)
    runs: list[tuple[isl.PwAff, isl.PwAff, isl.PwAff, isl.PwAff]] = field(default_factory=list)
    opaques: dict[str, Expr] = field(default_factory=dict)
    reasons: dict[str, None] = field(default_factory=dict)
    most_pieces: int = MOST_BASIC_SETS
    _truths: dict[Expr, Truth] = field(default_factory=dict)

    def truth(self, expr: Expr) -> Truth:
        """Translate a bool."""
        if expr not in self._truths:
            self._truths[expr] = self._limited(self._truth(expr))
        return self._truths[expr]

    def _limited(self, truth: Truth) -> Truth:
        """Give up on a condition of very many pieces: what is made of it would take for ever."""
        if max(truth.must.n_basic_set(), truth.may.n_basic_set()) <= self.most_pieces:
            return truth
        self.reasons.setdefault("too many pieces: the mask is tested where its hull reaches")
        hull = isl.Set.from_basic_set(truth.may.simple_hull())
        return Truth(isl.Set.empty(pair_space(self.context)), hull)

    def number(self, expr: Expr) -> isl.PwAff | None:
        """Translate an int, exactly; None where that is not possible."""
        if expr.type is not Type.INT or may_wrap(expr):
            return None
        value = self._number(expr)
        if value is not None and value.n_piece() > self.most_pieces:
            value = None
        if value is None and is_uniform(expr):
            return self._opaque(expr)
        return value

    def universe(self) -> isl.Set:
        """Return all pairs."""
        return isl.Set.universe(pair_space(self.context))

    def parameter(self, name: str) -> isl.PwAff:
        """Return the value of a parameter at every pair."""
        return isl.PwAff.read_from_str(self.context, f"[{name}] -> {{ [i, j] -> [{name}] }}")

    def constant(self, value: int) -> isl.PwAff:
        """Return a constant at every pair."""
        return isl.PwAff.read_from_str(self.context, f"{{ [i, j] -> [{value}] }}")

    def coordinate(self, name: IndexName) -> isl.PwAff:
        """Return the value of an index at every pair."""
        match name:
            case IndexName.LOCAL_QUERY:
                return isl.PwAff.read_from_str(self.context, "{ [i, j] -> [i] }")
            case IndexName.LOCAL_KEY:
                return isl.PwAff.read_from_str(self.context, "{ [i, j] -> [j] }")
            case IndexName.QUERY:
                return self._exactly(self.layout.query.position(LOCAL_QUERY))
            case IndexName.KEY:
                return self._exactly(self.layout.key.position(LOCAL_KEY))
            case IndexName.ROW:
                return self.coordinate(IndexName.QUERY).sub(self.coordinate(IndexName.SHIFT))
            case IndexName.SHIFT if self.align is AlignKind.START:
                return self.constant(0)
            case _:
                return self.parameter(name.value)

    def size(self, name: SizeName) -> isl.PwAff:
        """Return the value of a size at every pair."""
        if name is SizeName.QUERIES and self.align is AlignKind.END:
            return self.parameter("M").sub(self.coordinate(IndexName.SHIFT))
        return self.parameter(name.value)

    def key(self) -> isl.PwAff:
        """Return the number of the key at every pair: `j` in plain order."""
        return self.coordinate(IndexName.LOCAL_KEY)

    def row(self) -> isl.PwAff:
        """Return the number of the query at every pair: `i` in plain order."""
        return self.coordinate(IndexName.LOCAL_QUERY)

    def query_position(self, name: IndexName) -> isl.PwAff:
        """Return the position of a query whose number is an index, such as the first of a tile."""
        return self._exactly(self.layout.query.position(Index(name)))

    def last_key(self) -> isl.PwAff:
        """Return the number of the last real key, over parameters alone: `M - 1` in plain order."""
        last = self._exactly(self.layout.key.end_before(self.reach_of_keys.past)).sub(self.constant(1))
        return last.project_domain_on_params()

    def first_key(self) -> isl.PwAff:
        """Return the number of the first real key, over parameters alone: 0 unless keys are queries."""
        first = self.reach_of_keys.first
        number = first if first == ZERO else self.layout.key.first_from(first)
        return self._exactly(number).project_domain_on_params()

    @property
    def reach_of_queries(self) -> Reach:
        """The positions that `i` takes."""
        return KEY_REACH if self.transposed else query_reach(self.align)

    @property
    def reach_of_keys(self) -> Reach:
        """The positions that `j` takes."""
        return query_reach(self.align) if self.transposed else KEY_REACH

    def within(self, position: isl.PwAff, reach: Reach) -> isl.Set:
        """Return the pairs for which a position is within a reach."""
        below = position.lt_set(self._exactly(reach.past))
        if self.is_open and reach == self.reach_of_keys:
            return below
        return position.ge_set(self._exactly(reach.first)).intersect(below)

    def diagonal(self) -> isl.Set:
        """Return the pairs with `i == j`."""
        return self.row().eq_set(self.key())

    def queries(self) -> isl.PwAff:
        """Return `N`."""
        return self.size(SizeName.QUERIES)

    def known_opaque(self, expr: Expr) -> isl.PwAff | None:
        """Return the parameter of an opaque expression, if it was met."""
        return next((self.parameter(name) for name, known in self.opaques.items() if known == expr), None)

    def flags(self) -> tuple[str, ...]:
        """Return the opaque parameters that stand for bools."""
        return tuple(name for name, expr in self.opaques.items() if isinstance(expr, Cast))

    # -- bools

    def _truth(self, expr: Expr) -> Truth:
        match expr:
            case Const(value=value):
                return self._everything(bool(value))
            case And(operands=operands):
                return reduce(Truth.both, [self.truth(operand) for operand in operands])
            case Or(operands=operands):
                return reduce(Truth.either, [self.truth(operand) for operand in operands])
            case Unary(op=UnaryOp.NOT, operand=operand):
                return self.truth(operand).negated()
            case Where(condition=condition, then=then, otherwise=otherwise):
                return self._choice(self.truth(condition), self.truth(then), self.truth(otherwise))
            case Binary(op=op, left=left, right=right):
                known = self._comparison(op, left, right)
                return known if known is not None else self._unknown(expr)
            case Quantifier(kind=QuantifierKind.ANY | QuantifierKind.ALL):
                return self._quantified(expr)
            case _:
                return self._unknown(expr)

    def _everything(self, value: bool) -> Truth:
        space = pair_space(self.context)
        return exactly(isl.Set.universe(space) if value else isl.Set.empty(space))

    def _choice(self, condition: Truth, then: Truth, otherwise: Truth) -> Truth:
        """`(c and a) or (not c and b)`; where the condition is unknown, also `a and b`."""
        chosen = condition.both(then).either(condition.negated().both(otherwise))
        if condition.exact:
            return chosen
        return Truth(chosen.must.union(then.must.intersect(otherwise.must)), chosen.may)

    def _unknown(self, expr: Expr) -> Truth:
        if is_uniform(expr):
            return exactly(self._opaque(Cast(expr, Type.INT)).eq_set(self.constant(1)))
        self._explain(expr)
        space = pair_space(self.context)
        return Truth(isl.Set.empty(space), isl.Set.universe(space))

    def _explain(self, expr: Expr) -> None:
        data = list(dict.fromkeys(node.table for node in walk(expr) if isinstance(node, Read) and node.index))
        if data:
            self.reasons.setdefault(f"data-dependent: {', '.join(data)}")
        elif any(isinstance(node, Call) and node.function is Function.HASH for node in walk(expr)):
            self.reasons.setdefault("not affine: hash")
        else:
            self.reasons.setdefault("not affine")

    def _comparison(self, op: BinaryOp, left: Expr, right: Expr) -> Truth | None:
        if left.type is Type.BOOL:
            return self._bools_compared(op, left, right)
        if left.type is Type.FLOAT:
            return self._floats_compared(op, left, right)
        if left == right:
            return self._everything(op in (BinaryOp.EQ, BinaryOp.LE, BinaryOp.GE))
        blocks = self._blocks_compared(op, left, right)
        if blocks is not None:
            return exactly(blocks)
        first, second = self.number(left), self.number(right)
        if first is not None and second is not None:
            return exactly(compared(op, first, second))
        if is_uniform(left) and is_uniform(right):
            return None
        bounds = self.summaries.run_bounds(Binary(op, left, right, Type.BOOL), self.layout, self.reach_of_queries)
        if bounds is not None and op in (BinaryOp.EQ, BinaryOp.NE):
            equal = self._equal_ids(bounds)
            return equal if op is BinaryOp.EQ else equal.negated()
        self._explain(Binary(op, left, right, Type.BOOL))
        return compared_ranges(op, self.range(left), self.range(right), self.universe())

    def _blocks_compared(self, op: BinaryOp, left: Expr, right: Expr) -> isl.Set | None:
        """Compare the blocks in which a query and a key lie; None where that is not what is compared.

        `i // n == j // n` is `n * (i // n) <= j < n * (i // n) + n`: with one division in place of two, questions about
        the set take a fraction of the operations.
        """
        match left, right:
            case (
                Binary(op=BinaryOp.FLOORDIV, left=first, right=Const(value=int() as size)),
                Binary(op=BinaryOp.FLOORDIV, left=second, right=Const(value=other)),
            ) if size == other and size > 1:
                pass
            case _:
                return None
        by_query = [bool(indices(one) & {IndexName.QUERY, IndexName.ROW}) for one in (first, second)]
        if by_query == [False, True]:
            return self._blocks_compared(FLIPPED[op], right, left)
        query, key = self.number(left), self.number(second)
        if by_query != [True, False] or query is None or key is None:
            return None
        start = query.scale_val(isl.Val.int_from_si(self.context, size))
        stop = start.add(self.constant(size))
        match op:
            case BinaryOp.EQ:
                return start.le_set(key).intersect(key.lt_set(stop))
            case BinaryOp.NE:
                return key.lt_set(start).union(key.ge_set(stop))
            case BinaryOp.LE:
                return key.ge_set(start)
            case BinaryOp.LT:
                return key.ge_set(stop)
            case BinaryOp.GE:
                return key.lt_set(stop)
            case BinaryOp.GT:
                return key.lt_set(start)
            case _:
                return None

    def _equal_ids(self, bounds: RunBounds) -> Truth:
        """Return the keys of the runs of a query tile, by parameters that stand for their bounds."""
        self.reasons.setdefault("data decides where runs of equal ids begin and end")
        start, stop, full_start, full_stop = known = (
            self._opaque(bounds.start),
            self._opaque(bounds.stop),
            self._opaque(bounds.full_start),
            self._opaque(bounds.full_stop),
        )
        self.runs.append(known)
        key = self.coordinate(IndexName.KEY)
        full = key.ge_set(full_start).intersect(key.lt_set(full_stop))
        # what is no key has the id 0
        outside = key.lt_set(self.constant(0)).union(key.ge_set(self.size(SizeName.KEYS)))
        return Truth(full, key.ge_set(start).intersect(key.lt_set(stop)).union(outside))

    def range(self, expr: Expr) -> Range:
        """Return between which exact numbers an int lies, as far as its operators say; data can be any int."""
        exact = self.number(expr)
        if exact is not None:
            return Range(exact, exact)
        match expr:
            case Binary(op=op, left=left, right=right):
                return combined(op, self.range(left), self.range(right))
            case Unary(operand=operand):
                return self.range(operand).negated()
            case Call(function=Function.MIN | Function.MAX as function, args=args):
                return extreme(function, [self.range(arg) for arg in args])
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return Range(self.constant(0), self.constant(1))
            case Where(then=then, otherwise=otherwise):
                return self.range(then).joined(self.range(otherwise))
            case _:
                return UNBOUNDED

    def _bools_compared(self, op: BinaryOp, left: Expr, right: Expr) -> Truth:
        if left == right:
            return self._everything(op is BinaryOp.EQ)
        first, second = self.truth(left), self.truth(right)
        same = first.both(second).either(first.negated().both(second.negated()))
        return same if op is BinaryOp.EQ else same.negated()

    def _floats_compared(self, op: BinaryOp, left: Expr, right: Expr) -> Truth | None:
        """Compare a widened int with a number that float32 holds exactly: rounding keeps the order."""
        match left, right:
            case Cast(operand=operand), Const(value=value) if operand.type is Type.INT:
                flipped = False
            case Const(value=value), Cast(operand=operand) if operand.type is Type.INT:
                flipped = True
            case _:
                return None
        number = self.number(operand)
        if number is None or not abs(value) < FLOAT32_INTEGERS or float(value) * 2 % 1:
            return None
        limit = self.constant(int(value * 2))
        doubled = number.scale_val(isl.Val.int_from_si(self.context, 2))
        return exactly(compared(op, limit, doubled) if flipped else compared(op, doubled, limit))

    def _quantified(self, expr: Quantifier) -> Truth:
        """Make the bound variable a parameter, and project it out."""
        name = _bound_name(expr.variable)
        span = self.parameter(name)
        inside = span.ge_set(self.constant(0)).intersect(span.lt_set(self.constant(expr.count)))
        body = self.truth(expr.body)

        def exists(points: isl.Set) -> isl.Set:
            return _without_parameter(points.intersect(inside), name).coalesce()

        def for_all(points: isl.Set) -> isl.Set:
            return exists(points.complement()).complement()

        over = exists if expr.kind is QuantifierKind.ANY else for_all
        return exactly(over(body.must)) if body.exact else Truth(over(body.must), over(body.may))

    # -- ints

    def _exactly(self, expr: Expr) -> isl.PwAff:
        """Translate an int of a coordinate map, all of which are affine."""
        value = self._number(expr)
        assert value is not None
        return value

    def _opaque(self, expr: Expr) -> isl.PwAff:
        known = self.known_opaque(expr)
        if known is not None:
            return known
        name = f"x{len(self.opaques)}"
        self.opaques[name] = expr
        return self.parameter(name)

    def _number(self, expr: Expr) -> isl.PwAff | None:
        match expr:
            case Const(value=value):
                return self.constant(int(value))
            case Index(name=IndexName.DIM):
                return None
            case Index(name=name):
                return self.coordinate(name)
            case Size(name=size):
                return self.size(size)
            case Bound(name=name):
                return self.parameter(_bound_name(name))
            case Parameter() | Read() | Score():
                return None
            case Unary(operand=operand):
                inner = self.number(operand)
                return None if inner is None else inner.neg()
            case Binary(op=op, left=left, right=right):
                first, second = self.number(left), self.number(right)
                return None if first is None or second is None else arithmetic(op, first, second)
            case Where(condition=condition, then=then, otherwise=otherwise):
                return self._number_choice(self.truth(condition), self.number(then), self.number(otherwise))
            case Cast(operand=operand) if operand.type is Type.BOOL:
                return self._number_choice(self.truth(operand), self.constant(1), self.constant(0))
            case Call(function=function, args=args):
                return self._call(function, args)
            case Quantifier(kind=QuantifierKind.SUM, count=count) if count <= UNROLLED_SUM:
                return self._sum(expr)
            case Cast() | Quantifier() | And() | Or():
                return None
            case _:
                assert_never(expr)

    def _number_choice(self, condition: Truth, then: isl.PwAff | None, otherwise: isl.PwAff | None) -> isl.PwAff | None:
        if not condition.exact or then is None or otherwise is None:
            return None
        return then.intersect_domain(condition.must).union_add(otherwise.intersect_domain(condition.must.complement()))

    def _call(self, function: Function, args: tuple[Expr, ...]) -> isl.PwAff | None:
        if function not in (Function.ABS, Function.MIN, Function.MAX):
            return None
        values = [self.number(arg) for arg in args]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        if function is Function.ABS:
            return known[0].max(known[0].neg())
        return reduce(isl.PwAff.min if function is Function.MIN else isl.PwAff.max, known)

    def _sum(self, expr: Quantifier) -> isl.PwAff | None:
        total = self.constant(0)
        for value in range(expr.count):
            term = self.number(instance(expr, value))
            if term is None:
                return None
            total = total.add(term).coalesce()
        return total


def is_uniform(expr: Expr) -> bool:
    """Tell whether an expression has one value for all pairs of a batch entry and head."""
    if any(isinstance(node, Score) for node in walk(expr)) or free_bounds(expr):
        return False
    return indices(expr) <= {IndexName.BATCH, IndexName.HEAD, IndexName.SHIFT, IndexName.CLASS}


def _bound_name(variable: str) -> str:
    return f"t_{variable}"


def _without_parameter(points: isl.Set, name: str) -> isl.Set:
    position = points.find_dim_by_name(isl.dim_type.param, name)
    return points if position < 0 else points.project_out(isl.dim_type.param, position, 1)
