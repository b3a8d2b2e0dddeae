"""The small sizes and the values of parameters at which patterns are verified."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from attnc.bench.cases import Data, Shape, Style, make_data, make_pair_data, make_tensors
from attnc.ir.program import AlignKind, Attention, NormalizeKind
from attnc.ir.types import Type
from attnc.ir.walk import tables
from attnc.plan.kernel_plan import Plan

SHAPES = (
    Shape(1, 1, 1, 1, 1, 16, 16),
    Shape(2, 2, 1, 1, 64, 16, 16),
    Shape(1, 4, 2, 63, 65, 16, 24),
    Shape(2, 2, 2, 64, 64, 32, 32),
    Shape(1, 2, 1, 65, 100, 24, 16),
    Shape(2, 4, 2, 100, 100, 16, 16),
    Shape(1, 2, 2, 100, 37, 16, 16),
)
"""Lengths of 1, of a tile, around it and between tiles; more and fewer keys than queries; grouped heads; head sizes
that are no powers of two."""

SMALL_VALUES = (16, 13, 11, 7)
"""What large int parameters become, one after the other, so that small sizes meet every boundary of a pattern."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case: sizes, data and layout, made from a seed."""

    shape: Shape
    seed: int
    strided: bool = False
    dtype: torch.dtype = torch.float32

    def data(self, attention: Attention) -> Data:
        """Return inputs and learned tensors, some of them outside every range."""
        return make_data(attention, self.shape, seed=self.seed, style=Style.WILD, dtype=self.dtype)

    def pair_data(self, attention: Attention) -> Data:
        """Do the same where the keys of the shape are shortened already."""
        return make_pair_data(attention, self.shape, seed=self.seed, style=Style.WILD, dtype=self.dtype)

    def tensors(self, attention: Attention) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value."""
        query, key, value = make_tensors(self.shape, seed=self.seed, dtype=self.dtype, strided=self.strided)
        if attention.normalize.kind is NormalizeKind.ROWS:
            # a sum of scores of both signs comes near 0 now and then, where any rounding is amplified without bound
            return query.abs(), key.abs(), value
        return query, key, value

    def __str__(self) -> str:
        layout = ", strided" if self.strided else ""
        return f"{self.shape}, {str(self.dtype).removeprefix('torch.')}{layout}, seed {self.seed}"


def trials(plan: Plan) -> list[Trial]:
    """Return the cases for one plan, smallest first."""
    shapes = [_suited(shape, plan.operation) for shape in SHAPES]
    made = [Trial(shape, seed, strided=seed % 2 == 1) for seed, shape in enumerate(shapes, start=1)]
    if tables(plan.attention.mask):  # data decides: try other data as well
        made += [replace(trial, seed=trial.seed + 100) for trial in made]
    if plan.attention.align.kind is AlignKind.AT:
        made += [replace(trial, seed=trial.seed + 200) for trial in made[2:5]]
    return made


def _suited(shape: Shape, attention: Attention) -> Shape:
    """Return a shape that an attention takes: lengths of whole grids, not too long, values as long as keys."""
    keys = attention.shorten
    if keys is None:
        return shape
    if keys.form == "conv2d":
        width = int(keys.number("width"))
        shape = replace(shape, keys=-(-shape.keys // width) * width)
    if keys.form == "project":
        shape = replace(shape, keys=min(shape.keys, int(keys.number("length"))))
    return shape if keys.form in ("mean_pool", "project") else replace(shape, value_size=shape.head_size)


def small_parameters(attention: Attention, fixed: frozenset[str]) -> dict[str, int]:
    """Return values of large int parameters that bring a pattern's boundaries into small sizes.

    `fixed` are those that the user chose; they stay.
    """
    large = [
        name
        for name, value in attention.params
        if value.type is Type.INT and name not in fixed and int(value.value) > SMALL_VALUES[0]
    ]
    return {name: SMALL_VALUES[min(place, len(SMALL_VALUES) - 1)] for place, name in enumerate(large)}
