"""What a layer's numbers must obey together: structures that fit their matrices, lengths that stay what they are."""

from __future__ import annotations

from attnc.ir.matrices import (
    SHORTENING,
    LayerSizes,
    Matrix,
    count_parameters,
    has_open_arguments,
    layer_matrices,
    layer_sizes,
)
from attnc.ir.program import Layer
from attnc.sema import layer_errors
from attnc.sema.context import Context
from attnc.source import Span

MOST_FEATURES = 1 << 24
"""Widths beyond this are taken for mistakes."""

MOST_PARAMETERS = 1 << 36
"""So many parameters a matrix may have."""

MOST_TESTED = 1 << 32
"""Entries of a masked matrix are looked at one by one when a layer is made."""


def check_layer_rules(layer: Layer, width_divides: Span | None, context: Context) -> None:
    """Report what does not fit together; nothing where a parameter has no value.

    Args:
        layer: checked for names and types.
        width_divides: the place of `heads` where the head size is the width divided by them; None where it is given.
        context: of the layer.
    """
    sizes = layer_sizes(layer)
    if sizes is None or not _has_sensible_sizes(layer, sizes, width_divides, context):
        return
    if layer.theta is not None and sizes.head_size % 2:
        context.report.add(layer_errors.odd_head_size(layer.theta.span or layer.span, sizes.head_size))
    matrices = layer_matrices(layer, sizes)
    told: set[Span | None] = set()
    for matrix in matrices:
        span = matrix.projection.span or layer.span
        if (
            has_open_arguments(matrix.projection) or span in told
        ):  # the matrices of a feed-forward network are written once
            continue
        before = len(context.report.found)
        _check_matrix(matrix, span, context)
        if len(context.report.found) > before:
            told.add(span)
    if not any(has_open_arguments(matrix.projection) for matrix in matrices):
        _check_lengths({matrix.name: matrix for matrix in matrices}, layer, context)


def _has_sensible_sizes(layer: Layer, sizes: LayerSizes, width_divides: Span | None, context: Context) -> bool:
    if width_divides is not None and sizes.width % sizes.heads:
        context.report.add(layer_errors.heads_leave_a_rest(width_divides, sizes.heads, sizes.width))
        return False
    if sizes.heads % sizes.kv_heads:
        return False  # told where they are read
    for what, number in (("width", sizes.width), ("heads * head_size", sizes.heads * sizes.head_size)):
        if not 1 <= number <= MOST_FEATURES:
            context.report.add(layer_errors.size_out_of_range(layer.span, what, number, MOST_FEATURES))
            return False
    if sizes.hidden > MOST_FEATURES:
        span = layer.feedforward.span if layer.feedforward is not None else None
        context.report.add(layer_errors.size_out_of_range(span, "hidden", sizes.hidden, MOST_FEATURES))
        return False
    return True


def _check_matrix(matrix: Matrix, span: Span | None, context: Context) -> None:
    """Report what is wrong with one matrix that is written at a place."""
    rows, columns, structure = matrix.rows, matrix.columns, matrix.projection.structure
    if structure == "low_rank" and matrix.number("r") > min(rows, columns):
        context.report.add(layer_errors.rank_above_size(span, matrix.name, matrix.number("r"), rows, columns))
        return
    if structure in ("block_diagonal", "monarch"):
        blocks = matrix.number("blocks")
        if rows % blocks or columns % blocks:
            context.report.add(layer_errors.blocks_leave_a_rest(span, matrix.name, blocks, rows, columns))
            return
    if structure == "masked" and rows * columns > MOST_TESTED:
        context.report.add(layer_errors.too_many_entries(span, matrix.name, rows, columns))
        return
    if structure == "banded":  # a bound does: counting takes a step for each row
        parameters: int | None = min(rows * columns, 2 * matrix.number("width") * max(rows, columns))
    else:
        parameters = count_parameters(matrix)
    if parameters is not None and parameters > MOST_PARAMETERS:
        context.report.add(layer_errors.too_many_parameters(span, matrix.name, parameters, MOST_PARAMETERS))


def _check_lengths(matrices: dict[str, Matrix], layer: Layer, context: Context) -> None:
    """Report projections that give another number of positions than what they are added to or paired with."""
    for name, matrix in matrices.items():
        if matrix.stride != 1 and name not in SHORTENING:
            context.report.add(layer_errors.stride_of(matrix.projection.span, name, matrix.stride))
            return
    key, value = matrices["key"], matrices["value"]
    if _shortening(key) != _shortening(value):
        longer = value if value.stride == 1 else key
        context.report.add(layer_errors.strides_differ(longer.projection.span or layer.span, key.stride, value.stride))


def _shortening(matrix: Matrix) -> tuple[int, ...]:
    """Return what decides how many positions are left."""
    if matrix.stride == 1:
        return ()
    grid = (matrix.number("width"),) if matrix.projection.structure == "conv2d" else ()
    return (matrix.stride, *grid)
