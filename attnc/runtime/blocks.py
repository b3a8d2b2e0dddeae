"""From dot products to weights on a block of pairs, for every normaliser. Layout: `[B, G, S, g, R, W]`.

`B` batch entries, `G` key heads, `S` blocks, `g` query heads per key head, `R` rows and `W` keys of each block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from attnc.runtime.pairs import Pairs, Sizes, Tape
from attnc.runtime.program import Program
from attnc.runtime.summaries import summarize_inputs, widened


@contextmanager
def recording() -> Iterator[None]:
    """Record operations for `torch.autograd.grad` inside an operator, where autograd is switched off."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        torch._C.DispatchKey.AutogradCPU,
        torch._C.DispatchKey.AutogradCUDA,
        torch._C.DispatchKey.AutogradOther,
        torch._C.DispatchKey.ADInplaceOrView,
    ):
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def common_shape(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that all shapes broadcast to; `torch.broadcast_shapes` imports a computer algebra system."""
    found = [1] * max(map(len, shapes))
    for shape in shapes:
        for axis, size in enumerate(shape, len(found) - len(shape)):
            if size == 1 or size == found[axis]:
                continue
            if found[axis] != 1:
                raise ValueError(f"the shapes {', '.join(str(tuple(one)) for one in shapes)} do not broadcast")
            found[axis] = size
    return torch.Size(found)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what tensors of a dtype are computed in: float32 at least."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def bind_tables(program: Program, inputs: Sequence[Tensor], sizes: Sizes) -> dict[str, Tensor]:
    """Return the pattern's tensors by name, dimensions of length 1 that broadcast expanded."""
    tables = _bind_inputs(program, inputs, sizes)
    summaries = summarize_inputs(inputs, program.summaries)
    for (name, position, _), summary in zip(program.summaries, summaries, strict=True):
        tables[name] = widened(summary, inputs[position], tables[program.tensors[position].name].shape)
    return tables


def _bind_inputs(program: Program, inputs: Sequence[Tensor], sizes: Sizes) -> dict[str, Tensor]:
    tables = {}
    for argument, tensor in zip(program.tensors, inputs, strict=True):
        lengths = [
            length(sizes) if length is not None and broadcasts and size == 1 else size
            for size, length, broadcasts in zip(tensor.shape, argument.dims, argument.broadcast, strict=True)
        ]
        tables[argument.name] = tensor.expand(lengths)
    return tables


class LazyTables(dict[str, Tensor]):
    """The tables of a call, whose summaries are made when one of them is read: what is remembered needs none."""

    def __init__(self, program: Program, inputs: Sequence[Tensor], sizes: Sizes) -> None:
        super().__init__(_bind_inputs(program, inputs, sizes))
        self._program, self._inputs = program, inputs

    def __missing__(self, name: str) -> Tensor:
        summaries = self._program.summaries
        for (own, position, _), found in zip(summaries, summarize_inputs(self._inputs, summaries), strict=True):
            shape = self[self._program.tensors[position].name].shape
            self[own] = widened(found, self._inputs[position], shape)
        if name not in self:
            raise KeyError(name)
        return self[name]


def head_pairs(
    program: Program, sizes: Sizes, tables: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Pairs:
    """Return the coordinates `b` and `h` (and `shift`) of all heads; rows and keys are still missing."""
    at = Pairs(sizes, tables, dtype, device)
    at.b = torch.arange(sizes.B, device=device).view(-1, 1, 1, 1, 1, 1)
    at.h = torch.arange(sizes.H, device=device).view(1, sizes.kv_heads, 1, sizes.g, 1, 1)
    at.shift = program.shift(at)
    return at


def block_pairs(heads: Pairs, rows: Tensor, keys: Tensor | None) -> Pairs:
    """Return the coordinates of blocks.

    Args:
        heads: of `head_pairs`.
        rows: `[S, R]` rows of the query tensor, or `[X, S, R]` where entries differ.
        keys: `[S, W]` key positions, or `[X, S, W]`, with `S` or 1 blocks; None for what depends on the query alone.
    """
    at = Pairs(heads.sizes, heads.tables, heads.dtype, heads.device, b=heads.b, h=heads.h, shift=heads.shift)
    assert heads.shift is not None
    rows = rows if rows.dim() == 3 else rows.unsqueeze(0)
    at.r = rows[:, None, :, None, :, None]
    at.i = at.r + heads.shift
    if keys is not None:
        keys = keys if keys.dim() == 3 else keys.unsqueeze(0)
        at.j = keys[:, None, :, None, None, :]
    return at


def with_tape(at: Pairs, allowed: Tensor | None, wanted: frozenset[str]) -> Pairs:
    """Return the same coordinates, recording reads, with masked pairs invisible to gradients."""
    return Pairs(
        at.sizes, at.tables, at.dtype, at.device, b=at.b, h=at.h, i=at.i, j=at.j, r=at.r, shift=at.shift,
        allowed=allowed, tape=Tape(wanted),
    )  # fmt: skip


def row_scale(program: Program, at: Pairs, scale: float | None) -> Tensor | float:
    """Return the factor on the dot product: the call's, the pattern's or `1 / sqrt(D)`."""
    if scale is not None:
        return float(scale)
    return 1.0 / math.sqrt(at.sizes.D) if program.scale is None else program.scale(at)


def score_pairs(program: Program, at: Pairs, dots: Tensor) -> Tensor:
    """Return the score of each pair, the sigmoid's bias included."""
    scores = dots if program.score is None else program.score(at, dots)
    return scores if program.sigmoid_bias is None else scores + program.sigmoid_bias(at)


def exponentials(program: Program, differences: Tensor) -> Tensor:
    """Return the exponential of scores less their row's peak.

    Pairs whose factor is 0 have no say in the peak and may lie far above it: 0 times an overflow would be NaN.
    """
    if program.weight is None:
        return torch.exp(differences)
    limit = math.log(torch.finfo(differences.dtype).max) - 1
    large = (differences > limit) & (differences < torch.inf)
    return torch.exp(torch.where(large, limit, differences))


def weigh_pairs(program: Program, at: Pairs, dots: Tensor, peak: Tensor | None) -> Tensor:
    """Return the unnormalised weights of a block; what masked pairs get does not matter.

    `peak` is, under softmax only, what is subtracted from the scores of each row.
    """
    scores = score_pairs(program, at, dots)
    match program.normalize:
        case "softmax":
            assert peak is not None
            weights = exponentials(program, scores - peak)
        case "sigmoid":
            weights = torch.sigmoid(scores)
        case "relu":
            positive = ~(scores <= 0)
            inner = torch.where(positive, scores, 1.0)
            weights = torch.where(positive, inner if program.power == 1 else inner**program.power, 0.0)
        case _:
            weights = scores
    return weights if program.weight is None else weights * program.weight(at)


def dropped_terms(program: Program, inputs: Sequence[Tensor], sizes: Sizes, lse: Tensor) -> Tensor:
    """Return the terms of the score that depend on the query alone and were left out, `[B, H, N]`.

    Rows without keys, whose log-sum-exp is minus infinity, pass no gradient on.
    """
    assert program.dropped is not None
    heads = head_pairs(program, sizes, bind_tables(program, inputs, sizes), lse.dtype, lse.device)
    at = block_pairs(heads, torch.arange(sizes.N, device=lse.device).view(1, -1), None)
    shape = (sizes.B, sizes.kv_heads, 1, sizes.g, sizes.N, 1)
    at.allowed = (lse != -torch.inf).view(shape)
    return program.dropped(at).expand(shape).reshape(sizes.B, sizes.H, sizes.N)
