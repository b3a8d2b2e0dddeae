"""What surrounds the pairs of an attention, and where the queries and keys of one call stand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.blocks import bind_tables, block_pairs, head_pairs
from attnc.runtime.features import FeatureMap
from attnc.runtime.linear import Linear
from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.preparation import Preparation
from attnc.runtime.program import Formula, Program, TensorArgument
from attnc.runtime.shorten import Shortening


@dataclass(frozen=True, slots=True)
class Decomposition:
    """What surrounds the pairs of an attention.

    Attributes:
        shorten: what is done to keys and values first; None if nothing is.
        own: tensors that are used before pairs are weighed.
        prepare: what is done to queries and keys, in order.
        feature: what they are mapped to then; None for themselves.
        scale: of `favor`, the factor on the dot product; None for `1 / sqrt(D)`.
        linear: the form without pairs; None if there is none.
        landmarks: of Nystrom's approximation; 0 where there is none.
        scores_multiply: whether the score is a multiple of the product, so that a factor of it is one of the weight.
    """

    shorten: Shortening | None = None
    own: tuple[TensorArgument, ...] = ()
    prepare: tuple[Preparation, ...] = ()
    feature: FeatureMap | None = None
    scale: Formula | None = None
    linear: Linear | None = None
    landmarks: int = 0
    scores_multiply: bool = True


@dataclass(frozen=True, slots=True)
class CallPlaces:
    """What is known of one call.

    Attributes:
        sizes: of the arguments.
        before: positions that a state stands for.
        seed: of random features, in place of the pattern's own.
    """

    program: Program
    sizes: Sizes
    tensors: tuple[Tensor, ...]
    device: torch.device
    dtype: torch.dtype
    before: int = 0
    seed: int | None = None

    def at_heads(self, dtype: torch.dtype) -> Pairs:
        """Return the coordinates of all heads, as if the positions before belonged to the call."""
        sizes = replace(self.sizes, M=self.sizes.M + self.before)
        return head_pairs(self.program, sizes, bind_tables(self.program, self.tensors, sizes), dtype, self.device)

    def at_queries(self, dtype: torch.dtype, rows: Tensor | None = None, shift: int | None = None) -> Pairs:
        """Return the coordinates of queries, `shift` behind their rows or where the program places them."""
        rows = torch.arange(self.sizes.N, device=self.device) if rows is None else rows
        at = block_pairs(self.at_heads(dtype), rows.view(1, -1), None)
        if shift is not None:
            assert at.r is not None
            at.i = at.r + shift + self.before
        return at

    def at_keys(self, dtype: torch.dtype) -> Pairs:
        """Return the coordinates of keys; those of queries are missing."""
        at = block_pairs(self.at_heads(dtype), torch.zeros(1, 1, dtype=torch.int64, device=self.device), None)
        at.i = at.r = None
        at.j = (torch.arange(self.sizes.M, device=self.device) + self.before).view(1, 1, 1, 1, 1, -1)
        return at

    def by_head(self, found: Tensor, length: int) -> Tensor:
        """Return what a formula gave of queries or keys as `(B or 1, H or 1, length)`."""
        found = found.expand((1,) * (6 - found.dim()) + tuple(found.shape))
        heads = (1, 1) if found.shape[1] * found.shape[3] == 1 else (self.sizes.kv_heads, self.sizes.g)
        found = found.expand(found.shape[0], heads[0], 1, heads[1], found.shape[4], found.shape[5])
        flat = found.reshape(found.shape[0], heads[0] * heads[1], -1)
        return flat.expand(*flat.shape[:2], length)
