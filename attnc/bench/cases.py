"""Sizes and example data: what a pattern is run on when it is verified, measured or drawn.

Data is made from the declarations alone, by recipes: sorted ids are sorted, lengths lie around the lengths that the
pattern compares them with, indices lie around the tables that they point into. `TYPICAL` data is what a user might
have, `WILD` data also steps outside every range.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Binary, BinaryOp, Bound, Call, Const, Expr, Function, Index, IndexName, Read, SizeName
from attnc.ir.program import ORIGINAL_KEYS, AlignKind, Attention, Tensor, TensorKind, expressions
from attnc.ir.shortening import least_length, shortened_count, with_sizes
from attnc.ir.types import Type
from attnc.ir.walk import tables, walk

if TYPE_CHECKING:
    import torch

TYPICAL_DOCUMENT = 512
"""Positions of one run of equal values in typical sorted data."""


KEPT_BLOCKS = 0.125
"""Share of true entries of a typical table of blocks."""


class Style(Enum):
    """How far example data may stray from what the pattern expects."""

    TYPICAL = "typical"
    WILD = "wild"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one call."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    value_size: int

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads

    def sizes(self) -> dict[SizeName, int]:
        """Return the value of each size of the language."""
        return {
            SizeName.BATCH: self.batch,
            SizeName.HEADS: self.heads,
            SizeName.QUERIES: self.queries,
            SizeName.KEYS: self.keys,
            SizeName.HEAD_SIZE: self.head_size,
            SizeName.GROUP: self.group,
        }

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads}" if self.kv_heads != self.heads else f"{self.heads}"
        sizes = f"{self.head_size}/{self.value_size}" if self.value_size != self.head_size else f"{self.head_size}"
        return f"B={self.batch} H={heads} N={self.queries} M={self.keys} D={sizes}"


def square(length: int, *, batch: int = 1, heads: int = 8, kv_heads: int | None = None, head_size: int = 64) -> Shape:
    """Return the sizes of self-attention over `length` positions."""
    return Shape(batch, heads, heads if kv_heads is None else kv_heads, length, length, head_size, head_size)


Data = dict[str, "torch.Tensor | int | float | bool"]
"""Value of each input and learned tensor by name."""


def make_tensors(
    shape: Shape, *, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu", strided: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return normally distributed query, key and value, always made on the CPU so that every device sees the same.

    With `strided` they are laid out as (batch, position, head, size) in memory, as projections leave them.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def tensor(heads: int, positions: int, size: int) -> torch.Tensor:
        sizes = (shape.batch, positions, heads, size) if strided else (shape.batch, heads, positions, size)
        made = torch.randn(sizes, generator=generator).to(device=device, dtype=dtype)
        return made.transpose(1, 2) if strided else made

    return (
        tensor(shape.heads, shape.queries, shape.head_size),
        tensor(shape.kv_heads, shape.keys, shape.head_size),
        tensor(shape.kv_heads, shape.keys, shape.value_size),
    )


def make_data(
    attention: Attention,
    shape: Shape,
    *,
    seed: int,
    style: Style = Style.TYPICAL,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Data:
    """Return example data for every input and learned tensor. The same arguments give the same data."""
    choose = random.Random(f"{seed} {shape} {style.value} {attention.name}")
    attention = with_sizes(attention, {ORIGINAL_KEYS: shape.keys, SizeName.HEAD_SIZE.value: shape.head_size})
    return {
        tensor.name: _make_one(attention, tensor, shape, choose, style, dtype, device) for tensor in attention.tensors
    }


def make_pair_data(attention: Attention, shape: Shape, **settings: Any) -> Data:
    """Do the same for an attention over keys that are shortened already, hidden scalars among them."""
    keys = attention.shorten
    length = shape.keys if keys is None else least_length(keys, shape.keys)
    original = replace(shape, keys=length)
    hidden = {ORIGINAL_KEYS: length, SizeName.HEAD_SIZE.value: shape.head_size}
    given = {one.name: hidden[one.name] for one in attention.tensors if one.hidden}
    return {**make_data(attention, original, **settings), **given}


def surroundings(attention: Attention) -> str:
    """Return the first statement of an attention that changes queries, keys or values; empty if there is none."""
    forms = (one for one in attention.deferred if one.statement != "decompose" or one.form == "nystrom")
    return next((f"{one.statement} {one.form}" for one in forms), "")


def on_shortened(attention: Attention, shape: Shape) -> tuple[Attention, Shape]:
    """Return an attention and its sizes as its pairs see them: over shortened keys, hidden scalars written out."""
    attention = with_sizes(attention, {ORIGINAL_KEYS: shape.keys, SizeName.HEAD_SIZE.value: shape.head_size})
    keys = attention.shorten
    return attention, shape if keys is None else replace(shape, keys=max(1, shortened_count(keys, shape.keys)))


def dimensions(tensor: Tensor, shape: Shape, *, unknown: int) -> tuple[int, ...]:
    """Return the declared dimensions at these sizes; `unknown` stands for `?`."""
    env = Environment(sizes=shape.sizes())
    return tuple(unknown if dim is None else max(0, int(evaluate(dim, env))) for dim in tensor.dims)


def _make_one(
    attention: Attention,
    tensor: Tensor,
    shape: Shape,
    choose: random.Random,
    style: Style,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> torch.Tensor | int | float | bool:
    import torch

    wild = style is Style.WILD
    unknown = choose.randint(1, shape.keys + 3) if wild else shape.keys
    sizes = list(dimensions(tensor, shape, unknown=unknown))
    if wild and tensor.kind is TensorKind.INPUT:
        for axis, dim in enumerate(tensor.dims):
            sizes[axis] = 1 if _broadcasts(dim) and choose.random() < 0.25 else sizes[axis]
    generator = torch.Generator().manual_seed(choose.getrandbits(60))
    match tensor.type:
        case Type.BOOL:
            made = _bools(tensor, sizes, generator, wild)
        case Type.FLOAT:
            made = _floats(tensor, shape, sizes, generator, wild)
            made = made.to(dtype) if dtype is not None and tensor.dims else made
        case Type.INT:
            made = _ints(attention, tensor, shape, sizes, generator, choose, wild)
    if not tensor.dims and tensor.kind is TensorKind.INPUT:
        return made.item()
    return made.to(device)


def _bools(tensor: Tensor, sizes: list[int], generator: torch.Generator, wild: bool) -> torch.Tensor:
    """Most are true; a typical table of blocks keeps few of them, and a typical square of fixed size is a tree."""
    import torch

    drawn = torch.rand(sizes, generator=generator)
    if wild or len(sizes) < 2:
        return drawn < 0.7
    if isinstance(tensor.dims[-1], Const) and tensor.dims[-1] == tensor.dims[-2]:
        return _ancestors(drawn)
    by_blocks = any(isinstance(dim, Binary) and dim.op is BinaryOp.FLOORDIV for dim in tensor.dims)
    return drawn < (KEPT_BLOCKS if by_blocks else 0.7)


def _ancestors(drawn: torch.Tensor) -> torch.Tensor:
    """Return which nodes of a random tree are ancestors of which: rows are nodes, each its own ancestor."""
    import torch

    count = drawn.shape[-1]
    table = torch.zeros(drawn.shape, dtype=torch.bool).view(-1, count, count)
    for tree, draws in zip(table, drawn.view(-1, count, count)[:, :, 0], strict=True):
        for node in range(count):
            tree[node] = tree[int(float(draws[node]) * node)]
            tree[node, node] = True
    return table.view(drawn.shape)


def _broadcasts(dim: Expr | None) -> bool:
    return dim is not None and getattr(dim, "name", None) in (SizeName.BATCH, SizeName.HEADS)


def _floats(tensor: Tensor, shape: Shape, sizes: list[int], generator: torch.Generator, wild: bool) -> torch.Tensor:
    """Scalars lie in [0.5, 1.5], other inputs are normal; learned tensors start where they were declared to."""
    import torch

    from attnc.reference import initial_value

    if tensor.initial is None:
        return torch.randn(sizes, generator=generator) if sizes else 0.5 + torch.rand((), generator=generator)
    made = initial_value(tensor, shape.sizes(), dtype=torch.float32)
    return made + 0.3 * torch.randn(sizes, generator=generator) if wild else made


def _ints(
    attention: Attention,
    tensor: Tensor,
    shape: Shape,
    sizes: list[int],
    generator: torch.Generator,
    choose: random.Random,
    wild: bool,
) -> torch.Tensor:
    import torch

    if tensor.sorted:
        return _sorted_ids(sizes, generator, wild)
    low, high = value_range(attention, tensor.name, shape, choose)
    if wild:
        low, high = low - 2, high + 2
    elif low == 0 and _is_length(attention, tensor.name):
        low = high // 2  # sequences padded to the longest
    made = torch.randint(low, max(low, high) + 1, sizes, generator=generator)
    return made.to(torch.int32) if wild and choose.random() < 0.5 else made


def _sorted_ids(sizes: list[int], generator: torch.Generator, wild: bool) -> torch.Tensor:
    """Ids of documents packed one after the other: of 512 positions when typical, else ragged, some of one position."""
    import torch

    length = sizes[-1]
    if not wild:
        return (torch.arange(length) // TYPICAL_DOCUMENT).expand(sizes).contiguous()
    starts = torch.rand(sizes, generator=generator) < min(0.5, 4 / max(1, length))
    jumps = torch.randint(1, 4, sizes, generator=generator)
    return (starts * jumps).cumsum(-1) - 3


def value_range(attention: Attention, name: str, shape: Shape, choose: random.Random) -> tuple[int, int]:
    """Return the range of values at which the pattern can tell an integer input's values apart.

    An input that is compared with something takes the range of that, one that indexes a table its length, one that is
    compared with another input a few values, and any other the range of positions.
    """
    if name in tables(attention.align.shift):
        return 0, max(0, shape.keys - shape.queries)
    ranges = [
        found
        for root in expressions(attention)
        for node in walk(root)
        if (found := _range_at(attention, node, name, shape, choose)) is not None
    ]
    if not ranges:
        return 0, max(shape.queries, shape.keys)
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _range_at(
    attention: Attention, node: Expr, name: str, shape: Shape, choose: random.Random
) -> tuple[int, int] | None:
    match node:
        case Binary(op=op, left=left, right=right) if op.is_comparison:
            sides = [other for one, other in ((left, right), (right, left)) if name in tables(one)]
            if len(sides) == 2 or (sides and tables(sides[0])):
                return 0, max(2, shape.keys // 32)
            return _sampled_range(attention, sides[0], shape, choose) if sides else None
        case Read(table=table, index=index) if table != name:
            target = attention.tensor(table)
            for axis, at in enumerate(index):
                if name in tables(at):
                    return 0, dimensions(target, shape, unknown=shape.keys)[axis] - 1
            return None
        case Call(function=Function.MIN | Function.MAX, args=args) if any(name in tables(arg) for arg in args):
            return 0, max(shape.queries, shape.keys)
        case _:
            return None


def _sampled_range(
    attention: Attention, expr: Expr, shape: Shape, choose: random.Random, samples: int = 200
) -> tuple[int, int]:
    """Evaluate an expression without data at random pairs; the least and the greatest value."""
    values = []
    bound = {node.name: 0 for node in walk(expr) if isinstance(node, Bound)}
    for _ in range(samples):
        row, key = choose.randrange(shape.queries), choose.randrange(shape.keys)
        shift = 0 if attention.align.kind is not AlignKind.END else shape.keys - shape.queries
        indices = {
            IndexName.BATCH: choose.randrange(shape.batch),
            IndexName.HEAD: choose.randrange(shape.heads),
            IndexName.QUERY: row + shift,
            IndexName.ROW: row,
            IndexName.KEY: key,
        }
        value = evaluate(expr, Environment(indices=indices, sizes=shape.sizes(), bound=bound))
        values.append(int(value) if value == value and abs(value) < 1 << 40 else 0)
    return min(values), max(values) + 1


def _is_length(attention: Attention, name: str) -> bool:
    """Tell whether an input is compared with key positions, as the length of a padded sequence is."""
    key = Index(IndexName.KEY)
    return any(
        isinstance(node, Binary)
        and node.op.is_comparison
        and key in (node.left, node.right)
        and name in (*tables(node.left), *tables(node.right))
        for node in walk(attention.mask)
    )
