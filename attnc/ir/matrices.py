"""The matrices of a layer: their names in its state dict, their structures and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.ir.nodes import Const, Expr, Parameter
from attnc.ir.program import Layer, Projection
from attnc.ir.walk import walk

SHORTENING = ("key", "value")
"""Projections that may give fewer positions than they read."""


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """The numbers of a layer whose parameters all have values; `hidden` is 0 without a feed-forward network."""

    width: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """One projection of a layer.

    Attributes:
        name: `query`, `key`, `value`, `output`, and of the feed-forward network `gate`, `up`, `down`.
        rows: features that come out.
        columns: features that go in.
    """

    name: str
    projection: Projection
    rows: int
    columns: int

    def number(self, argument: str) -> int:
        """Return an int argument of the structure."""
        value = dict(self.projection.arguments)[argument]
        assert isinstance(value, Const)
        return int(value.value)

    def expr(self, argument: str) -> Expr:
        """Return an argument of the structure that is an expression."""
        value = dict(self.projection.arguments)[argument]
        assert not isinstance(value, str)
        return value

    @property
    def stride(self) -> int:
        """Positions from one output to the next."""
        return self.number("stride") if self.projection.structure in ("conv", "conv2d") else 1


def has_open_arguments(projection: Projection) -> bool:
    """Tell whether the structure of a projection, or its scheme, depends on a parameter without a value."""
    arguments = (*projection.arguments, *(() if projection.via is None else projection.via.arguments))
    given = (value for _, value in arguments if not isinstance(value, str))
    return any(isinstance(node, Parameter) for expr in given for node in walk(expr))


def layer_sizes(layer: Layer) -> LayerSizes | None:
    """Return the sizes of a layer; None where one depends on a parameter without a value."""
    hidden = None if layer.feedforward is None else layer.feedforward.hidden
    given = (dict(layer.params).get("width"), layer.heads, layer.kv_heads, layer.head_size)
    numbers = [int(one.value) for one in given if isinstance(one, Const)]
    if len(numbers) < len(given) or not (hidden is None or isinstance(hidden, Const)):
        return None
    width, heads, kv_heads, head_size = numbers
    return LayerSizes(width, heads, kv_heads, head_size, 0 if hidden is None else int(hidden.value))


def layer_matrices(layer: Layer, sizes: LayerSizes) -> tuple[Matrix, ...]:
    """Return the matrices of a layer in the order in which it multiplies with them."""
    queries, keys = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    rows = {"query": queries, "key": keys, "value": keys, "output": sizes.width}
    found = [
        Matrix(name, projection, rows[name], queries if name == "output" else sizes.width)
        for name, projection in layer.projections
    ]
    if layer.feedforward is not None:
        weight = layer.feedforward.weight
        found += [Matrix("gate", weight, sizes.hidden, sizes.width)] * (layer.feedforward.form == "swiglu")
        found += [Matrix("up", weight, sizes.hidden, sizes.width), Matrix("down", weight, sizes.width, sizes.hidden)]
    return tuple(found)


def count_parameters(matrix: Matrix, entries: int | None = None) -> int | None:
    """Return how many free parameters a matrix has.

    Args:
        matrix: of a layer.
        entries: how many its condition allows, for `masked`; None: not known.
    """
    rows, columns, number = matrix.rows, matrix.columns, matrix.number
    match matrix.projection.structure:
        case "low_rank":
            return number("r") * (rows + columns)
        case "block_diagonal":
            return rows * columns // number("blocks")
        case "monarch":
            return min(rows, columns) * (rows + columns) // number("blocks")
        case "banded":
            return count_band(rows, columns, number("width"))
        case "masked":
            return entries
        case "conv":
            return columns * (number("kernel") + rows)
        case "conv2d":
            return columns * (number("kernel") ** 2 + rows)
        case _:
            return rows * columns


def dense_products(matrix: Matrix) -> tuple[tuple[int, int], ...]:
    """Return features in and out of the products of dense blocks; of tiles, which vary, those of the whole matrix."""
    rows, columns, number = matrix.rows, matrix.columns, matrix.number
    match matrix.projection.structure:
        case "low_rank":
            return (columns, number("r")), (number("r"), rows)
        case "block_diagonal":
            return ((columns // number("blocks"), rows // number("blocks")),)
        case "monarch":
            middle = min(rows, columns) // number("blocks")
            return (columns // number("blocks"), middle), (middle, rows // number("blocks"))
        case _:
            return ((columns, rows),)


def count_band(rows: int, columns: int, width: int) -> int:
    """Return how many entries have `abs(i * columns - j * rows) < width * max(rows, columns)`."""
    reach, total = width * max(rows, columns), 0
    for row in range(rows):
        first = max(0, (row * columns - reach) // rows + 1)
        last = min(columns - 1, -((-row * columns - reach) // rows) - 1)
        total += max(0, last - first + 1)
    return total
