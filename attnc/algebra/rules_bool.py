"""Rules over truth values: connectives, comparisons, choices and bounded quantifiers.

Comparisons of floats are not turned around or completed: both `x < y` and `x >= y` fail where an operand is NaN.
"""

from __future__ import annotations

from dataclasses import replace
from operator import is_

from attnc.algebra.engine import Rule
from attnc.algebra.half_lines import merge_bounds
from attnc.algebra.terms import (
    atom_key,
    combine,
    conjunction,
    disjunction,
    mentions,
    negated_key,
    negation,
    opposite,
    truth,
)
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    FALSE,
    TRUE,
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
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import substitute, walk

MOST_WRITTEN_OUT = 32
"""Quantifiers with more instances stay loops."""

MOST_NODES = 1024
"""So large may be what a quantifier is written out to."""

LARGEST_WRITTEN_OUT = 2**40
"""Far beyond every position."""

_Connective = And | Or


def _dual(node: _Connective) -> type[And] | type[Or]:
    return Or if isinstance(node, And) else And


def _push_negation(node: Unary) -> Expr | None:
    return negation(node.operand) if node.op is UnaryOp.NOT else None


def _flatten(node: _Connective) -> Expr | None:
    if not any(type(operand) is type(node) for operand in node.operands):
        return None
    flat: list[Expr] = []
    for operand in node.operands:
        flat.extend(operand.operands if isinstance(operand, And | Or) and type(operand) is type(node) else (operand,))
    return replace(node, operands=tuple(flat))


def _drop_constants(node: _Connective) -> Expr | None:
    neutral = isinstance(node, And)
    if not any(isinstance(operand, Const) for operand in node.operands):
        return None
    if any(isinstance(operand, Const) and operand.value is not neutral for operand in node.operands):
        return truth(not neutral)
    return combine(type(node), [operand for operand in node.operands if not isinstance(operand, Const)])


def _drop_duplicates(node: _Connective) -> Expr | None:
    unique: dict[object, Expr] = {}
    for operand in node.operands:
        unique.setdefault(atom_key(operand), operand)
    return None if len(unique) == len(node.operands) else combine(type(node), list(unique.values()))


def _complementary(node: _Connective) -> Expr | None:
    keys = {atom_key(operand) for operand in node.operands}
    if any(negated_key(operand) in keys for operand in node.operands):
        return truth(isinstance(node, Or))
    return None


def _absorb(node: _Connective) -> Expr | None:
    """Drop operands of the other connective that contain an operand of this one, and negated operands in them."""
    dual = _dual(node)
    if not any(isinstance(operand, dual) for operand in node.operands):
        return None
    keys = {atom_key(operand) for operand in node.operands}
    kept: list[Expr] = []
    for operand in node.operands:
        if not isinstance(operand, And | Or) or type(operand) is not dual:
            kept.append(operand)
            continue
        if any(atom_key(part) in keys for part in operand.operands):
            continue
        parts = [part for part in operand.operands if negated_key(part) not in keys]
        kept.append(operand if len(parts) == len(operand.operands) else combine(dual, parts))
    unchanged = len(kept) == len(node.operands) and all(map(is_, kept, node.operands))
    return None if unchanged else combine(type(node), kept)


def _compare_with_itself(node: Binary) -> Expr | None:
    if not node.op.is_comparison or node.left != node.right:
        return None
    holds = node.op in (BinaryOp.EQ, BinaryOp.LE, BinaryOp.GE)
    # of floats that may be NaN only `x < x` and `x > x` are known
    unknown = node.left.type is Type.FLOAT and node.op not in (BinaryOp.LT, BinaryOp.GT)
    return None if unknown else truth(holds)


def _compare_bools(node: Binary) -> Expr | None:
    if node.op not in (BinaryOp.EQ, BinaryOp.NE) or node.left.type is not Type.BOOL:
        return None
    for constant, other in ((node.left, node.right), (node.right, node.left)):
        if isinstance(constant, Const):
            same = (node.op is BinaryOp.EQ) == constant.value
            return other if same else opposite(other)
    if atom_key(node.left) == negated_key(node.right):
        return truth(node.op is BinaryOp.NE)
    return None


def _where_of_truths(node: Where) -> Expr | None:
    condition, then, otherwise = node.condition, node.then, node.otherwise
    if node.type is not Type.BOOL:
        return None
    if then == TRUE:
        return disjunction([condition, otherwise])
    if then == FALSE:
        return conjunction([opposite(condition), otherwise])
    if otherwise == TRUE:
        return disjunction([opposite(condition), then])
    if otherwise == FALSE:
        return conjunction([condition, then])
    return None


def _where_decided(node: Where) -> Expr | None:
    if isinstance(node.condition, Const):
        return node.then if node.condition.value else node.otherwise
    return node.then if node.then == node.otherwise else None


def _where_of_negation(node: Where) -> Expr | None:
    if not isinstance(node.condition, Unary):
        return None
    return replace(node, condition=node.condition.operand, then=node.otherwise, otherwise=node.then)


def _where_repeated(node: Where) -> Expr | None:
    then, otherwise = node.then, node.otherwise
    if isinstance(then, Where) and then.condition == node.condition:
        return replace(node, then=then.then)
    if isinstance(otherwise, Where) and otherwise.condition == node.condition:
        return replace(node, otherwise=otherwise.otherwise)
    return None


def _where_merged(node: Where) -> Expr | None:
    then, otherwise, condition = node.then, node.otherwise, node.condition
    if isinstance(then, Where) and then.otherwise == otherwise:
        return replace(node, condition=And((condition, then.condition)), then=then.then)
    if isinstance(otherwise, Where) and otherwise.then == then:
        return replace(node, condition=Or((condition, otherwise.condition)), otherwise=otherwise.otherwise)
    return None


def _where_known(node: And) -> Expr | None:
    known = {atom_key(operand): True for operand in node.operands}
    known |= {key: False for operand in node.operands if (key := negated_key(operand)) is not None}
    for position, operand in enumerate(node.operands):
        for inner in walk(operand):
            if not isinstance(inner, Where) or any(isinstance(part, Bound) for part in walk(inner.condition)):
                continue  # a quantifier's variable may be another one of the same name
            holds = known.get(atom_key(inner.condition))
            if holds is not None:
                chosen = inner.then if holds else inner.otherwise
                changed = substitute(operand, {inner: chosen})
                return replace(node, operands=(*node.operands[:position], changed, *node.operands[position + 1 :]))
    return None


def _short_quantifier(node: Quantifier) -> Expr | None:
    if node.count == 1:
        return substitute(node.body, {Bound(node.variable): Const(0, Type.INT)})
    return None if node.count else Const(evaluate(node), node.type)


def _quantifier_of_constant(node: Quantifier) -> Expr | None:
    """Only for `any` and `all` of one instance or more."""
    if node.kind is QuantifierKind.SUM or not node.count or mentions(node.body, node.variable):
        return None
    return node.body


def _pull_out(node: Quantifier) -> Expr | None:
    """Move operands that are the same for every instance out of the loop."""
    body = node.body
    if node.kind is QuantifierKind.SUM or not node.count or not isinstance(body, And | Or):
        return None
    free = [operand for operand in body.operands if not mentions(operand, node.variable)]
    if not free:
        return None
    rest = [operand for operand in body.operands if mentions(operand, node.variable)]
    return combine(type(body), [*free, replace(node, body=combine(type(body), rest))])


def _write_out(node: Quantifier) -> Expr | None:
    """Write out `any` and `all` over numbers that no set describes, such as `2 ** t`: each of them is a constant."""
    if node.kind is QuantifierKind.SUM or not 1 < node.count <= MOST_WRITTEN_OUT:
        return None
    alone = {inner for inner in walk(node.body) if _depends_alone(inner, node.variable)}
    if all(_is_linear(inner) for inner in alone - {Bound(node.variable)}):
        return None
    if node.count * sum(1 for _ in walk(node.body)) > MOST_NODES:
        return None

    def instance(at: int) -> Expr:
        env = Environment(bound={node.variable: at})
        return substitute(node.body, {inner: Const(evaluate(inner, env), inner.type) for inner in alone})

    instances = [instance(at) for at in range(node.count)]
    if not all(_is_linear(part) for one in instances for part in walk(one)):
        return None
    return combine(Or if node.kind is QuantifierKind.ANY else And, instances)


def _depends_alone(expr: Expr, variable: str) -> bool:
    """Tell whether nothing but a bound variable decides a value."""
    leaves = [node for node in walk(expr) if isinstance(node, Index | Size | Read | Score | Bound | Quantifier)]
    return bool(leaves) and all(leaf == Bound(variable) for leaf in leaves)


def _is_linear(node: Expr) -> bool:
    """Tell whether sets describe a node, if they do its operands: otherwise nothing is won by writing out."""
    match node:
        case Const(value=value):
            return node.type is not Type.FLOAT and abs(value) <= LARGEST_WRITTEN_OUT
        case Binary(op=BinaryOp.MUL, left=left, right=right):
            return isinstance(left, Const) or isinstance(right, Const)
        case Binary(op=BinaryOp.FLOORDIV | BinaryOp.MOD, right=right):
            return isinstance(right, Const)
        case Binary(op=op):
            return op in (BinaryOp.ADD, BinaryOp.SUB) or op.is_comparison
        case Call(function=function):
            return function in (Function.ABS, Function.MIN, Function.MAX)
        case Cast(operand=operand):
            return operand.type is Type.BOOL
        case _:
            return isinstance(node, Index | Size | Unary | And | Or | Where)


def _merge_bounds(node: _Connective) -> Expr | None:
    kept = merge_bounds(node.operands, isinstance(node, And))
    return None if kept is None else combine(type(node), kept)


CONNECTIVES = (And, Or)

BOOL_RULES = (
    # not (a and b) -> not a or not b;  not i < j -> i >= j;  not not a -> a
    Rule("push-negation", "not (a and b) -> not a or not b", (Unary,), _push_negation),
    # (a and b) and c -> a and b and c
    Rule("flatten", "(a and b) and c -> a and b and c", CONNECTIVES, _flatten),
    # a and true -> a;  a and false -> false
    Rule("constant-operand", "a and true -> a", CONNECTIVES, _drop_constants),
    # a and a -> a
    Rule("duplicate-operand", "a and a -> a", CONNECTIVES, _drop_duplicates),
    # a and not a -> false
    Rule("complementary-operands", "a and not a -> false", CONNECTIVES, _complementary),
    # a and (a or b) -> a;  a and (not a or b) -> a and b
    Rule("absorption", "a and (a or b) -> a", CONNECTIVES, _absorb),
    # x < 3 and x < 5 -> x < 3;  x < 3 and x > 7 -> false
    Rule("merge-bounds", "x < 3 and x < 5 -> x < 3", CONNECTIVES, _merge_bounds),
    # x <= x -> true
    Rule("compare-with-itself", "x <= x -> true", (Binary,), _compare_with_itself),
    # a == true -> a
    Rule("compare-bools", "a == true -> a", (Binary,), _compare_bools),
    # where(c, true, a) -> c or a
    Rule("where-of-truths", "where(c, true, a) -> c or a", (Where,), _where_of_truths),
    # where(true, x, y) -> x;  where(c, x, x) -> x
    Rule("where-decided", "where(c, x, x) -> x", (Where,), _where_decided),
    # where(not c, x, y) -> where(c, y, x)
    Rule("where-of-negation", "where(not c, x, y) -> where(c, y, x)", (Where,), _where_of_negation),
    # where(c, where(c, x, y), z) -> where(c, x, z)
    Rule("where-repeated", "where(c, where(c, x, y), z) -> where(c, x, z)", (Where,), _where_repeated),
    # c and f(where(c, x, y)) -> c and f(x);  not c and f(where(c, x, y)) -> not c and f(y)
    Rule("where-known", "c and f(where(c, x, y)) -> c and f(x)", (And,), _where_known),
    # where(c, where(d, x, y), y) -> where(c and d, x, y)
    Rule("where-merged", "where(c, where(d, x, y), y) -> where(c and d, x, y)", (Where,), _where_merged),
    # any(t < 0, a) -> false;  any(t < 1, a[t]) -> a[0]
    Rule("short-quantifier", "any(t < 1, a[t]) -> a[0]", (Quantifier,), _short_quantifier),
    # any(t < n, a) -> a
    Rule("quantifier-of-constant", "any(t < n, a) -> a", (Quantifier,), _quantifier_of_constant),
    # any(t < n, a and b[t]) -> a and any(t < n, b[t])
    Rule("pull-out-of-quantifier", "any(t < n, a and b[t]) -> a and any(t < n, b[t])", (Quantifier,), _pull_out),
    # any(t < 3, a[2 ** t]) -> a[1] or a[2] or a[4]
    Rule("write-out-powers", "any(t < 3, a[2 ** t]) -> a[1] or a[2] or a[4]", (Quantifier,), _write_out),
)
"""In the order in which they are tried."""
