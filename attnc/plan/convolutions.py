"""Convolutional projections beside an attention: what their kernels may read without showing what a mask hides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum

from attnc.algebra.assertions import prove_assertion
from attnc.diagnostics import Diagnostic, Label
from attnc.ir.matrices import Matrix
from attnc.ir.nodes import And, Binary, BinaryOp, Call, Const, Expr, Function, Index, IndexName
from attnc.ir.program import Assertion, Layer
from attnc.ir.types import Type
from attnc.ir.walk import indices, tables
from attnc.plan.kernel_plan import Plan

_QUERY, _KEY = Index(IndexName.QUERY), Index(IndexName.KEY)


class Direction(Enum):
    """Which positions the kernels of a convolution read."""

    CENTRED = "centred"
    CAUSAL = "causal"
    """None behind the output's own."""


def direction_of(matrix: Matrix, layer: Layer, plan: Plan) -> Direction | Diagnostic | None:
    """Decide what the kernels of a projection read, or say why it must not be.

    A kernel that reads later positions carries what is there into queries, keys, values and everything that follows.
    So kernels are centred where every query is proven to see the positions that they would read, and causal elsewhere;
    on a grid, whose kernels look to all sides, only the former will do. Where data decides what a query sees, kernels
    would mix what it keeps apart.

    Args:
        matrix: of a projection.
        layer: that it is of.
        plan: of the layer's attention.

    Returns:
        None for what is no convolution.
    """
    structure = matrix.projection.structure
    if structure not in ("conv", "conv2d"):
        return None
    size = matrix.number("kernel")
    attention = plan.operation
    read = [
        name for name in (*tables(attention.mask), *tables(attention.align.shift)) if not attention.tensor(name).hidden
    ]
    if read and size > 1:
        return _across_data(matrix, layer, read[0])
    if structure == "conv2d":
        seen = size == 1 or _sees(plan, _square(matrix.number("width"), size // 2))
        return Direction.CENTRED if seen else _leaks(matrix, layer)
    centred = size == 1 or (size > 2 and _sees(plan, _later((size - 1) // 2)))
    return Direction.CENTRED if centred else Direction.CAUSAL


def stride_mistakes(layer: Layer, matrices: Sequence[Matrix], plan: Plan) -> Iterator[Diagnostic]:
    """Yield what is wrong with positions that are left out of keys and values: the attention must not look at them."""
    strided = next((one for one in matrices if one.stride != 1), None)
    if strided is None:
        return
    span = strided.projection.span
    if _looks_at_positions(plan):
        yield Diagnostic(
            "strided-positions",
            f"`{layer.attend.name if layer.attend else layer.attention}` looks at positions, and a stride of "
            f"{strided.stride} gives keys other ones",
            () if span is None else (Label(span),),
            help="shorten keys in the attention with `keys conv(...)`, which knows their positions, or attend to every "
            "key alike",
        )
    elif strided.projection.structure == "conv2d" and layer.theta is not None:
        yield Diagnostic(
            "strided-positions",
            "`rotary` counts positions along one line, and keys of a strided grid do not lie on one",
            () if span is None else (Label(span),),
            help="remove `rotary`, or the stride",
        )


def _looks_at_positions(plan: Plan) -> bool:
    """Tell whether the attention may weigh pairs by where they are."""
    attention, normalize = plan.operation, plan.operation.normalize
    exprs = (attention.score, attention.scale, attention.weight, normalize.sink, normalize.bias)
    read = {index for expr in exprs if expr is not None for index in indices(expr)}
    if plan.facts.everything is not True or read & {IndexName.QUERY, IndexName.KEY, IndexName.ROW}:
        return True
    return any(one.form in ("rotary", "cosformer") for one in attention.deferred)


def _sees(plan: Plan, near: Expr) -> bool:
    """Tell whether every query is proven to see all keys of a neighbourhood."""
    attention = plan.operation
    if attention.shorten is not None:  # `j` is no position
        return plan.facts.everything is True
    return prove_assertion(replace(attention, mask=near), Assertion(attention.mask)).holds is True


def _later(reach: int) -> Expr:
    """Keys up to so many positions behind the query."""
    distance = Binary(BinaryOp.SUB, _KEY, _QUERY, Type.INT)
    return And((_compare(BinaryOp.LT, _int(0), distance), _compare(BinaryOp.LE, distance, _int(reach))))


def _square(width: int, reach: int) -> Expr:
    """Keys of a square about the query on a grid in rows of a width."""

    def apart(op: BinaryOp) -> Expr:
        query, key = (Binary(op, one, _int(width), Type.INT) for one in (_QUERY, _KEY))
        return Call(Function.ABS, (Binary(BinaryOp.SUB, query, key, Type.INT),), Type.INT)

    return And(tuple(_compare(BinaryOp.LE, apart(op), _int(reach)) for op in (BinaryOp.FLOORDIV, BinaryOp.MOD)))


def _compare(op: BinaryOp, left: Expr, right: Expr) -> Expr:
    return Binary(op, left, right, Type.BOOL)


def _int(value: int) -> Expr:
    return Const(value, Type.INT)


def _across_data(matrix: Matrix, layer: Layer, table: str) -> Diagnostic:
    span = matrix.projection.span
    return Diagnostic(
        "convolution-across-data",
        f"the kernels of `{matrix.name}` would mix positions that `{table}` keeps apart",
        () if span is None else (Label(span),),
        help=f"`{_attention_name(layer)}` decides by data what a query sees; choose another structure here",
    )


def _leaks(matrix: Matrix, layer: Layer) -> Diagnostic:
    span = matrix.projection.span
    return Diagnostic(
        "convolution-leaks",
        f"the kernels of `{matrix.name}` would read points of the grid that the attention hides",
        () if span is None else (Label(span, "a square about each point"),),
        help=f"let every query of `{_attention_name(layer)}` see its neighbours on the grid, as `grid_near` and a full "
        "mask do, or choose `conv`, which can look back alone",
    )


def _attention_name(layer: Layer) -> str:
    return layer.attend.name if layer.attend is not None else layer.attention
