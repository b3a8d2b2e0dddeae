"""Going over expression trees: children, rebuilding, substitution, search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import assert_never

from attnc.ir.nodes import (
    And,
    Binary,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    Read,
    Score,
    Size,
    Unary,
    Where,
)
from attnc.ir.types import Type


def children(expr: Expr) -> tuple[Expr, ...]:
    """Return the direct operands of a node, in source order."""
    match expr:
        case Const() | Parameter() | Index() | Size() | Bound() | Score():
            return ()
        case Read(index=index):
            return index
        case Unary(operand=operand) | Cast(operand=operand):
            return (operand,)
        case Binary(left=left, right=right):
            return (left, right)
        case And(operands=operands) | Or(operands=operands):
            return operands
        case Where(condition=condition, then=then, otherwise=otherwise):
            return (condition, then, otherwise)
        case Call(args=args):
            return args
        case Quantifier(body=body):
            return (body,)
        case _:
            assert_never(expr)


def with_children(expr: Expr, new: tuple[Expr, ...]) -> Expr:
    """Return the node with other operands; the node itself if they are the same objects."""
    old = children(expr)
    if len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True)):
        return expr
    match expr:
        case Const() | Parameter() | Index() | Size() | Bound() | Score():
            return expr
        case Read():
            return replace(expr, index=new)
        case Unary() | Cast():
            return replace(expr, operand=new[0])
        case Binary():
            return replace(expr, left=new[0], right=new[1])
        case And() | Or():
            return replace(expr, operands=new)
        case Where():
            return replace(expr, condition=new[0], then=new[1], otherwise=new[2])
        case Call():
            return replace(expr, args=new)
        case Quantifier():
            return replace(expr, body=new[0])
        case _:
            assert_never(expr)


def transform(expr: Expr, rewrite: Callable[[Expr], Expr]) -> Expr:
    """Rebuild a tree bottom-up, calling `rewrite` on every node after its operands were rebuilt."""
    return rewrite(with_children(expr, tuple(transform(child, rewrite) for child in children(expr))))


def walk(expr: Expr) -> Iterator[Expr]:
    """Yield every node, parents before operands."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def substitute(expr: Expr, replacements: dict[Expr, Expr]) -> Expr:
    """Replace whole nodes that equal a key. Replacements are not searched again."""

    def go(node: Expr) -> Expr:
        if node in replacements:
            return replacements[node]
        return with_children(node, tuple(go(child) for child in children(node)))

    return go(expr)


def indices(expr: Expr) -> frozenset[IndexName]:
    """Return the coordinates that an expression depends on."""
    return frozenset(node.name for node in walk(expr) if isinstance(node, Index))


def tables(expr: Expr) -> tuple[str, ...]:
    """Return the names of the tensors that an expression reads, each once, in order of appearance."""
    return tuple(dict.fromkeys(node.table for node in walk(expr) if isinstance(node, Read)))


def depends_on(expr: Expr, *names: IndexName) -> bool:
    """Tell whether any of the coordinates appears. `r` moves with `i` and counts as depending on it."""
    wanted = set(names)
    if IndexName.QUERY in wanted:
        wanted.add(IndexName.ROW)
    return not wanted.isdisjoint(indices(expr))


def instance(expr: Quantifier, value: int) -> Expr:
    """Return the body of a quantifier at one value of its variable."""
    return substitute(expr.body, {Bound(expr.variable): Const(value, Type.INT)})


def free_bounds(expr: Expr) -> frozenset[str]:
    """Return the quantified variables that an expression uses without binding them."""
    match expr:
        case Bound(name=name):
            return frozenset((name,))
        case Quantifier(variable=variable, body=body):
            return free_bounds(body) - {variable}
        case _:
            return frozenset().union(*(free_bounds(child) for child in children(expr)))
