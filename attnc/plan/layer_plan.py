"""The plan of one layer: its projections with their products and costs, around the plan of its attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from attnc.algebra.bilinear.leveled import LeveledScheme
from attnc.algebra.counting import count_pairs
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.matrices import LayerSizes, Matrix, count_band, count_parameters, layer_matrices, layer_sizes
from attnc.ir.nodes import Const, Expr, Score
from attnc.ir.program import Align, AlignKind, Attention, Layer, Normalize, NormalizeKind, Via
from attnc.ir.types import Type
from attnc.plan.convolutions import Direction, direction_of, stride_mistakes
from attnc.plan.kernel_plan import Plan
from attnc.plan.latents import Growth, LatentPlan, growth_of, plan_latents
from attnc.plan.layer_caches import CachePlan, plan_cache

ELEMENT_SIZE = 2
"""Bytes of an element of activations and parameters: float16 or bfloat16."""

COUNT_OPERATIONS = 2_000_000
"""isl operations that counting the entries of a masked matrix may take."""


class Product(Enum):
    """How a projection is computed."""

    MATRIX = "matmul"
    FACTORS = "2 matmuls"
    BLOCKS = "bmm"
    MONARCH = "2 bmms"
    TILES = "bmm of tiles"
    """Batches of small dense products: of rows and the columns that any of them reads."""
    CONVOLUTION = "conv, matmul"


_PRODUCTS = {
    "dense": Product.MATRIX,
    "low_rank": Product.FACTORS,
    "block_diagonal": Product.BLOCKS,
    "monarch": Product.MONARCH,
    "banded": Product.TILES,
    "masked": Product.TILES,
    "conv": Product.CONVOLUTION,
    "conv2d": Product.CONVOLUTION,
}


@dataclass(frozen=True, slots=True)
class ProjectionPlan:
    """One projection of a layer.

    Attributes:
        matrix: its name, structure and sizes.
        product: how it is computed.
        parameters: free ones; None where sets cannot count the entries that a condition allows.
        direction: of `conv`, which positions its kernels read; None for others.
        scheme: what the products of its dense blocks are taken by; None for the library.
    """

    matrix: Matrix
    product: Product
    parameters: int | None
    direction: Direction | None = None
    scheme: LeveledScheme | None = None

    @property
    def flops(self) -> float | None:
        """Useful operations for each position that goes in, a multiply-add being two."""
        if self.parameters is None:
            return None
        return 2 * self.parameters / self.outputs

    @property
    def bytes(self) -> float:
        """Activations that are read and written for each position that goes in, those between two products twice."""
        rows, columns = self.matrix.rows, self.matrix.columns
        match self.product:
            case Product.FACTORS:
                between = self.matrix.number("r")
            case Product.MONARCH:
                between = min(rows, columns)
            case Product.CONVOLUTION:
                between = columns
            case _:
                between = 0
        return ELEMENT_SIZE * (columns + (2 * between + rows) / self.outputs)

    @property
    def outputs(self) -> int:
        """Positions that go in for each that comes out."""
        return self.matrix.stride ** (2 if self.matrix.projection.structure == "conv2d" else 1)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Everything that code generation needs of one layer.

    Attributes:
        layer: as it was checked; `attention` is the name of its attention in the module.
        attention: the plan of that.
        projections: in the order in which the layer multiplies with them.
        latents: the low-rank ones of its keys and values, whose factors may be multiplied with in another order.
        growth: how the pairs of its attention grow, by which that order is chosen.
        cache: what it can keep of the tokens so far.
    """

    layer: Layer
    sizes: LayerSizes
    attention: Plan
    projections: tuple[ProjectionPlan, ...]
    latents: tuple[LatentPlan, ...]
    growth: Growth
    cache: CachePlan

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @property
    def theta(self) -> float | None:
        """The base of rotary positions."""
        return float(self.layer.theta.value) if isinstance(self.layer.theta, Const) else None

    def projection(self, name: str) -> ProjectionPlan:
        """Return a projection by its name in the state dict."""
        return next(one for one in self.projections if one.matrix.name == name)

    def latent(self, name: str) -> LatentPlan | None:
        """Return what is known of low-rank keys or values between whose orders of products lengths decide."""
        return next((one for one in self.latents if one.name == name and one.is_choice), None)


def plan_layer(layer: Layer, attention: Plan, schemes: Mapping[Via, LeveledScheme] | None = None) -> LayerPlan:
    """Decide how a layer is computed.

    Args:
        layer: all of whose parameters have values.
        attention: the plan of what it attends with.
        schemes: of every `via` in it.

    Raises:
        CompileError: a convolution would show queries what the attention hides, positions are left out of an attention
            that looks at positions, or a masked matrix has no entry.
    """
    sizes = layer_sizes(layer)
    assert sizes is not None
    matrices = layer_matrices(layer, sizes)
    mistakes = [*stride_mistakes(layer, matrices, attention)]
    projections = []
    for matrix in matrices:
        direction = direction_of(matrix, layer, attention)
        if isinstance(direction, Diagnostic):
            mistakes.append(direction)
            direction = None
        entries = _count_entries(matrix)
        if entries == 0:
            mistakes.append(_no_entries(matrix))
        structure = matrix.projection.structure
        via = matrix.projection.via
        scheme = None if via is None else (schemes or {})[via]
        parameters = _parameters(matrix, entries)
        projections.append(ProjectionPlan(matrix, _PRODUCTS[structure], parameters, direction, scheme))
    if mistakes:
        raise CompileError(*dict.fromkeys(mistakes))
    latents = plan_latents(layer, sizes, matrices, attention)
    growth = growth_of(attention) if any(one.is_choice for one in latents) else Growth()
    cache = plan_cache(matrices, sizes, attention, latents)
    return LayerPlan(layer, sizes, attention, tuple(projections), latents, growth, cache)


def _parameters(matrix: Matrix, entries: int | None) -> int | None:
    if matrix.projection.structure == "banded":
        return count_band(matrix.rows, matrix.columns, matrix.number("width"))
    return count_parameters(matrix, entries)


def _count_entries(matrix: Matrix) -> int | None:
    """Count what the condition of a masked matrix allows; None for other structures, and where sets cannot."""
    if matrix.projection.structure != "masked":
        return None
    found = count_pairs(
        as_attention(matrix.expr("condition")), matrix.rows, matrix.columns, 1, operations=COUNT_OPERATIONS
    )
    return None if found is None else int(found)


def as_attention(condition: Expr) -> Attention:
    """Return the attention whose queries are the rows of a matrix and whose keys are its columns."""
    start = Align(AlignKind.START, Const(0, Type.INT))
    return Attention("matrix", (), (), condition, Score(), None, None, Normalize(NormalizeKind.SOFTMAX), start)


def _no_entries(matrix: Matrix) -> Diagnostic:
    span = matrix.projection.span
    return Diagnostic(
        "no-entries",
        f"the mask of `{matrix.name}` allows no entry of its matrix",
        () if span is None else (Label(span, f"{matrix.rows} x {matrix.columns}: `i` is the row, `j` the column"),),
        help="change the mask so that it is true somewhere",
    )
