"""Additive masks that depend on how far apart query and key are, and on nothing else of the two: as views of vectors.

One number for each distance does for a whole rectangle. Where rows go up and keys go down, pairs are equally far apart
whose row and key number add up to the same: a matrix whose rows and columns both have stride 1 in the vector. So keys
and values are turned around, once for each section, and no mask of pairs is made.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attnc.runtime.bands import Band, follows_diagonals
from attnc.runtime.blocks import block_pairs
from attnc.runtime.pairs import Pairs
from attnc.runtime.parts import Part
from attnc.runtime.sections import Section


class Mirror:
    """Keys and values of a section from the last to the first, copied when they are first asked for."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._turned: tuple[Tensor, Tensor] | None = None

    def keys(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return the turned keys and values of a part of the section."""
        if self._turned is None:
            self._turned = self._section.key.flip(2), self._section.value.flip(2)
        key, value = self._turned
        return part.of_keys(key), part.of_keys(value)


def mirrored(part: Part, band: Band) -> Band:
    """Return the same rectangle among keys that are turned around; which pieces it has is not told."""
    first = part.key.shape[2] - band.key - band.width
    return replace(band, key=first, pieces=((band.width, band.pieces[0][1]),))


def is_diagonal(part: Part, band: Band) -> bool:
    """Tell whether a view of a vector is the additive mask of a band: of one rectangle, by distances alone."""
    if band.as_one_block().count > 1 or band.starts:
        return False
    return follows_diagonals(part.section.call.program, part.frame, band.masked)


def distances(part: Part, band: Band) -> Pairs:
    """Return coordinates of one pair of the first block of a band for each distance, in the place of blocks.

    They go from the first row and last key over the first key to the last row, in `rows + width - 1` steps.
    """
    steps = torch.arange(band.rows + band.width - 1) - (band.width - 1)
    rows, keys = band.row + steps.clamp(min=0), band.key - steps.clamp(max=0)
    return block_pairs(
        part.heads,
        part.frame.rows.indices_of_classes(rows.unsqueeze(1)),
        part.frame.keys.indices_of_classes(keys.unsqueeze(1)),
    )


def distance_terms(part: Part, band: Band) -> Tensor:
    """Return the bias of the first block of a band by distance, minus infinity where masked, as `as_terms` does."""
    program, at = part.section.call.program, distances(part, band)
    assert program.bias is not None
    return as_terms(part, band, program.bias(at), at)


def as_terms(part: Part, band: Band, bias: Tensor, at: Pairs) -> Tensor:
    """Return the bias of `distances`, minus infinity where masked: `[X, G, g, distance]`, any of the first three 1."""
    if band.masked:
        assert part.frame.sweep.mask is not None
        bias = torch.where(part.frame.sweep.mask(at), bias, -torch.inf)
    bias = bias.expand((1,) * (6 - bias.dim()) + tuple(bias.shape))  # a term may be one number
    entries, groups, _, members = bias.shape[:4]
    count = band.rows + band.width - 1
    return bias.expand(entries, groups, count, members, 1, 1)[..., 0, 0].transpose(2, 3).contiguous()


def sum_by_distance(pairs: Tensor) -> Tensor:
    """Add blocks `[X, G, S, g, R, W]` up over pairs that are equally far apart: `[X, G, distance, g, 1, 1]`.

    Rows are copied one column further apart than they are long, less one: then distances lie below each other.
    """
    *lead, rows, width = pairs.shape
    count = rows + width - 1
    spread = pairs.new_zeros((*lead, rows, count))
    spread.as_strided(pairs.shape, (*spread.stride()[:-2], count - 1, 1), rows - 1).copy_(pairs)
    return spread.sum(-2).sum(2).flip(-1).transpose(2, 3)[..., None, None]


def diagonal_mask(terms: Tensor, band: Band) -> tuple[Tensor, Tensor | None]:
    """Return the additive mask of one rectangle of a `mirrored` band, and the rows that see none of its keys.

    Returns:
        Views `[X, G, 1, g, R, W]` and `[X, G, 1, g, R]`; None where every row sees a key.
    """
    mask = terms.unfold(-1, band.width, 1).unsqueeze(2)
    gone = terms == -torch.inf
    if not bool(gone.any()):
        return mask, None
    before = torch.nn.functional.pad(gone.to(torch.int32).cumsum(-1), (1, 0))
    empty = before[..., band.width :] - before[..., : -band.width] == band.width
    return mask, empty.unsqueeze(2) if bool(empty.any()) else None
