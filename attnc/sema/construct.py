"""Building IR nodes: folds constants, and keeps expressions from growing without bound as definitions are inlined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from attnc.ir.arithmetic import INT_MAX, INT_MIN
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import (
    Binary,
    BinaryOp,
    Bound,
    Call,
    Const,
    Expr,
    Function,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Unary,
    UnaryOp,
)
from attnc.ir.types import Type
from attnc.ir.walk import children
from attnc.sema import expression_errors
from attnc.sema.report import Report
from attnc.source import Span

MAX_SIZE = 20_000
"""Nodes that one expression may have once everything is inlined."""
MAX_DEPTH = 240
"""How deep one expression may be once everything is inlined: a little more than the text, for conversions."""
_MOST_INSTANCES = 4096
"""Instances of a constant quantifier up to which its value is computed."""


@dataclass(slots=True)
class Constructor:
    """Finishes nodes for one check.

    Attributes:
        measures: size, depth and product of quantifier counts of each node built here, by identity; the node is kept so
            that its identity stays its own.
    """

    report: Report
    measures: dict[int, tuple[Expr, int, int, int]] = field(default_factory=dict)

    def finish(self, node: Expr, span: Span) -> Expr | None:
        """Return the node, or the constant that it is; None after telling why it cannot be.

        Args:
            node: operands are finished already.
            span: what to point at, as the user wrote it.
        """
        size, depth, instances = 1, 0, 1
        constant = not isinstance(node, Read)
        for operand in children(node):
            operand_size, operand_depth, operand_instances = self._measure(operand)
            size += operand_size
            depth = max(depth, operand_depth + 1)
            instances = max(instances, operand_instances)
            constant = constant and isinstance(operand, Const)
        if isinstance(node, Quantifier):
            instances *= max(1, node.count)
            constant = node.count == 0 or (instances <= _MOST_INSTANCES and _is_closed(node))
        if size > MAX_SIZE:
            self.report.add(expression_errors.expression_too_large(span, MAX_SIZE))
            return None
        if depth > MAX_DEPTH:
            self.report.add(expression_errors.nesting_too_deep(span, MAX_DEPTH))
            return None
        if constant and children(node):
            return self._fold(node, span)
        self.measures[id(node)] = (node, size, depth, instances)
        return node

    def _measure(self, node: Expr) -> tuple[int, int, int]:
        known = self.measures.get(id(node))
        return known[1:] if known is not None else (1, 0, 1)

    def adopt(self, node: Expr, like: Expr) -> Expr:
        """Give a copy of a finished node (with another span) the measures of the original."""
        known = self.measures.get(id(like))
        if known is not None:
            self.measures[id(node)] = (node, *known[1:])
        return node

    def _fold(self, node: Expr, span: Span) -> Expr | None:
        if node.type is Type.INT:
            exact = exact_integer(node)
            if exact is not None and not INT_MIN <= exact <= INT_MAX:
                if self.report.unselected:
                    return Const(0, Type.INT, span=node.span)
                self.report.add(expression_errors.integer_too_large(span, exact))
                return None
        return Const(evaluate(node), node.type, span=node.span)


def exact_integer(node: Expr) -> int | None:
    """Return the value of a constant int operation without wrapping, or one past the range where it is far outside.

    None for operations that cannot leave 64 bits.
    """
    match node:
        case Unary(op=UnaryOp.NEG, operand=Const(value=value)):
            return -int(value)
        case Call(function=Function.ABS, args=(Const(value=value),)):
            return abs(int(value))
        case Quantifier(kind=QuantifierKind.SUM):
            return _exact_sum(node)
        case Binary(op=op, left=Const(value=left), right=Const(value=right)):
            a, b = int(left), int(right)
            match op:
                case BinaryOp.ADD:
                    return a + b
                case BinaryOp.SUB:
                    return a - b
                case BinaryOp.MUL:
                    return a * b
                case BinaryOp.POW if b > 64:
                    return INT_MAX + 1 if abs(a) > 1 else None
                case BinaryOp.POW:
                    return int(a**b)
                case _:
                    return None
        case _:
            return None


def is_constant(expr: Expr) -> bool:
    """Tell whether an expression is a compile-time constant; parameters without values count as such."""
    return all(isinstance(leaf, Const | Parameter) for leaf in leaves(expr))


def leaves(expr: Expr) -> Iterator[Expr]:
    """Yield the nodes without operands, and every `Read`, without recursion, in source order."""
    pending = [expr]
    while pending:
        node = pending.pop()
        operands = children(node)
        pending.extend(reversed(operands))
        if not operands or isinstance(node, Read):
            yield node


def _is_closed(quantifier: Quantifier) -> bool:
    """Tell whether nothing but constants and the variables of its own quantifiers is in a quantifier."""
    pending: list[tuple[Expr, frozenset[str]]] = [(quantifier, frozenset())]
    while pending:
        node, bound = pending.pop()
        match node:
            case Const():
                pass
            case Bound(name=name):
                if name not in bound:
                    return False
            case Quantifier(variable=variable, body=body):
                pending.append((body, bound | {variable}))
            case _:
                if not children(node) or isinstance(node, Read):
                    return False
                pending.extend((child, bound) for child in children(node))
    return True


def _exact_sum(node: Quantifier) -> int:
    return sum(int(evaluate(node.body, Environment(bound={node.variable: at}))) for at in range(node.count))
