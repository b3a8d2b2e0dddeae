"""Attention computed densely, straight from LANGUAGE's formulas, without any generated code.

Memory is quadratic in the length. Everything is differentiable, also twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import IndexName, Size, SizeName
from attnc.ir.program import ORIGINAL_KEYS, Attention, Normalize, NormalizeKind, TensorKind
from attnc.ir.program import Tensor as Declaration
from attnc.ir.shortening import implied_names
from attnc.ir.types import Type
from attnc.reference.dropout import kept_pairs
from attnc.reference.features import mapped, prepared
from attnc.reference.products import pair_products, weighted_sums
from attnc.reference.shortening import approximated, filters, shortened
from attnc.reference.tensors import TensorEnvironment, evaluate_tensor

Inputs = Mapping[str, Tensor | float]
"""Value of every input and learned tensor by name; a learned one that is left out has its initial value."""


def reference(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Inputs | None = None,
    *,
    scale: float | Tensor | None = None,
    return_lse: bool = False,
    dtype: torch.dtype | None = torch.float64,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute an attention densely.

    Args:
        attention: with every parameter's value known.
        query: `(B, H, N, D)`.
        key: `(B, G, M, D)` with `G` dividing `H`.
        value: `(B, G, M, E)`.
        inputs: inputs and learned tensors by name.
        scale: wins over the pattern's own and over `1 / sqrt(D)`.
        return_lse: give the log-sum-exp as well (softmax only).
        dtype: what floats are computed in, and of the results; None for the query's own.
        dropout_p: probability of a weight to be dropped; the others are divided by what it leaves.
        seed: decides which.

    Returns:
        `(B, H, N, E)`, and the log-sum-exp `(B, H, N)` where it was asked for. A row that a NaN or an infinite score of
        an allowed pair reaches is NaN, its log-sum-exp too.

    Raises:
        ValueError: shapes that do not fit together, a log-sum-exp without softmax, a statement without a meaning here.
        KeyError: an input that is needed was not given.
    """
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(f"{tuple(value.shape)} values do not fit {tuple(key.shape)} keys")
    key, value, inputs = with_shorter_keys(attention, query, key, value, inputs, dtype or query.dtype)
    if key.shape[2] == 0:
        out = query[..., :0].sum(-1, keepdim=True).to(dtype or query.dtype).expand(*query.shape[:3], value.shape[3])
        return (out, _lse_without_keys(attention, query, key, inputs, out.dtype)) if return_lse else out
    asked = attention.decompose
    if asked is not None and asked.form == "nystrom":
        return _by_landmarks(attention, query, key, value, inputs, scale, dtype or query.dtype)
    if return_lse and attention.normalize.kind is not NormalizeKind.SOFTMAX:
        raise ValueError("only softmax has a log-sum-exp")
    weights, lse, active = _weights(attention, query, key, inputs, scale, dtype or query.dtype, None)
    spread = _repeat_heads(value, query.shape[1]).to(weights.dtype)
    if dropout_p:
        active = active & _kept(attention, query, key, inputs or {}, dropout_p, seed)
        weights = torch.where(active, weights / (1.0 - dropout_p), 0.0)
    out = weighted_sums(weights, spread, active)
    return (out, lse) if return_lse else out


def with_shorter_keys(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, inputs: Inputs | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Inputs | None]:
    """Return shortened keys and values, and the inputs with `K` among them; all as given where nothing is shortened."""
    keys = attention.shorten
    if keys is None:
        return key, value, inputs
    length, head_size = key.shape[2], key.shape[3]
    given = {ORIGINAL_KEYS: torch.tensor(length), **(inputs or {})}
    sizes = {SizeName.HEADS: query.shape[1], SizeName.HEAD_SIZE: head_size}
    own = [one for one in attention.tensors if one.name in implied_names(keys)]
    tables = {
        one.name: torch.as_tensor(given[one.name]) if one.name in given else initial_value(one, sizes, dtype=dtype)
        for one in own
    }
    for_keys, for_values = filters(keys, tables)
    return shortened(keys, key.to(dtype), for_keys), shortened(keys, value.to(dtype), for_values), given


def _by_landmarks(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    inputs: Inputs | None,
    scale: float | Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Approximate by landmarks."""
    batch, heads, queries, head_size = query.shape
    names = (SizeName.BATCH, SizeName.HEADS, SizeName.QUERIES, SizeName.KEYS, SizeName.HEAD_SIZE, SizeName.GROUP)
    counts = (batch, heads, queries, key.shape[2], head_size, heads // key.shape[1])
    env = pair_environment(attention, dict(zip(names, counts, strict=True)), inputs, dtype=dtype, device=query.device)
    spread = (_repeat_heads(tensor, heads).to(dtype) for tensor in (key, value))
    right, values = spread
    left, right, _ = _transformed(attention, query.to(dtype), right, env, None)
    if scale is None:
        own = attention.scale
        scale = 1.0 / math.sqrt(head_size) if own is None else evaluate_tensor(own, env)
    assert attention.decompose is not None
    return approximated(attention.decompose, left, right, values, scale)


def dense_weights(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    *,
    rows: Sequence[int] | Tensor | None = None,
    inputs: Inputs | None = None,
    scale: float | Tensor | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Return the normalised weights `(B, H, rows, M)` of some query rows, by default of all.

    Raises:
        ValueError: a row that is not in `0 .. N - 1`, or what `reference` raises it for.
    """
    if attention.decompose is not None and attention.decompose.form == "nystrom":
        raise ValueError("`decompose nystrom` never forms weights")
    key, _, inputs = with_shorter_keys(attention, query, key, key, inputs, dtype or query.dtype)
    chosen = None if rows is None else torch.as_tensor(rows, dtype=torch.int64, device=query.device)
    if chosen is not None and bool(((chosen < 0) | (chosen >= query.shape[2])).any()):
        raise ValueError(f"rows must be in 0 .. {query.shape[2] - 1}")
    return _weights(attention, query, key, inputs, scale, dtype or query.dtype, chosen)[0]


def dense_mask(
    attention: Attention,
    queries: int,
    keys: int,
    *,
    batch: int = 1,
    heads: int = 1,
    group: int = 1,
    head_size: int | None = None,
    inputs: Inputs | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which pairs are allowed: bool `(batch, heads, queries, keys)`.

    Args:
        attention: with every parameter's value known.
        queries: N.
        keys: M.
        batch: B.
        heads: H.
        group: query heads per key head.
        head_size: needed only by a mask that depends on `D`.
        inputs: those that the mask and `align` read.
        device: of the result and of the inputs.
    """
    sizes = {
        SizeName.BATCH: batch,
        SizeName.HEADS: heads,
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.GROUP: group,
    }
    if head_size is not None:
        sizes[SizeName.HEAD_SIZE] = head_size
    env = pair_environment(attention, sizes, inputs, device=device)
    return evaluate_tensor(attention.mask, env).expand(batch, heads, queries, keys).contiguous()


def pair_environment(
    attention: Attention,
    sizes: Mapping[SizeName, int],
    inputs: Inputs | None = None,
    *,
    rows: Tensor | None = None,
    keys: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> TensorEnvironment:
    """Return what the attention's expressions are evaluated at, over `(B, H, rows, keys)`.

    Args:
        attention: whose inputs and alignment count.
        sizes: all that its expressions use.
        inputs: those that its expressions read; others may be missing.
        rows: int64 query rows (`r`), by default all of `N`.
        keys: int64 key positions (`j`), by default all of `M`.
        dtype: of floats.
        device: of the index tensors; where `inputs` are.

    Raises:
        ValueError: an input whose shape does not fit its declaration.
    """
    place = torch.device(device) if device is not None else torch.device("cpu")
    rows = torch.arange(sizes[SizeName.QUERIES], device=place) if rows is None else rows
    keys = torch.arange(sizes[SizeName.KEYS], device=place) if keys is None else keys
    indices = {
        IndexName.BATCH: torch.arange(sizes[SizeName.BATCH], device=place).view(-1, 1, 1, 1),
        IndexName.HEAD: torch.arange(sizes[SizeName.HEADS], device=place).view(-1, 1, 1),
        IndexName.ROW: rows.view(-1, 1),
        IndexName.KEY: keys,
    }
    tables = _bind(attention, sizes, inputs or {}, dtype, place)
    env = TensorEnvironment(indices, sizes, tables, dtype=dtype, device=place)
    shift = evaluate_tensor(attention.align.shift, env)
    return replace(env, indices={**indices, IndexName.SHIFT: shift, IndexName.QUERY: indices[IndexName.ROW] + shift})


def initial_value(
    declaration: Declaration,
    sizes: Mapping[SizeName, int],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the initial value of a learned tensor, given those of `H` and `D` that its dimensions use."""
    if declaration.initial is None:
        raise ValueError(f"{declaration.name} has no initial value")
    place = torch.device(device) if device is not None else torch.device("cpu")
    point = Environment(sizes=sizes)
    shape = tuple(int(evaluate(dim, point)) for dim in declaration.dims if dim is not None)
    dims = [
        torch.arange(length, device=place).view(-1, *(1,) * (len(shape) - axis - 1))
        for axis, length in enumerate(shape)
    ]
    heads = [at for at, dim in zip(dims, declaration.dims, strict=True) if dim == Size(SizeName.HEADS)]
    indices = {IndexName.HEAD: heads[0]} if heads else {}
    env = TensorEnvironment(indices, sizes, dims=dims, dtype=dtype, device=place)
    return evaluate_tensor(declaration.initial, env).expand(shape).clone()


def _bind(
    attention: Attention, sizes: Mapping[SizeName, int], inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Give every tensor its value, with the dimensions of size 1 that broadcast expanded."""
    unknown = set(inputs) - {declaration.name for declaration in attention.tensors}
    if unknown:
        raise ValueError(f"{attention.name} has no input {', '.join(sorted(unknown))}")
    tables = {}
    hidden = {one.name: int(inputs[one.name]) for one in attention.tensors if one.hidden and one.name in inputs}
    for declaration in attention.tensors:
        name = declaration.name
        if name in inputs:
            given = torch.as_tensor(inputs[name], device=device)
            if not isinstance(inputs[name], Tensor) and declaration.type is Type.FLOAT:
                given = torch.tensor(inputs[name], dtype=dtype, device=device)
            tables[name] = _expand(declaration, given, sizes, hidden)
        elif declaration.kind is TensorKind.LEARNED:
            tables[name] = initial_value(declaration, sizes, dtype=dtype, device=device)
    return tables


def _expand(
    declaration: Declaration, given: Tensor, sizes: Mapping[SizeName, int], hidden: Mapping[str, int]
) -> Tensor:
    if given.dim() != len(declaration.dims):
        raise ValueError(f"{declaration.name} has {given.dim()} dimensions in place of {len(declaration.dims)}")
    shape = list(given.shape)
    for axis, dim in enumerate(declaration.dims):
        if dim is None:
            continue
        length = int(evaluate(dim, Environment(sizes=sizes, tables=hidden)))
        broadcasts = shape[axis] == 1 and dim in (Size(SizeName.BATCH), Size(SizeName.HEADS))
        if shape[axis] != length and not broadcasts:
            raise ValueError(f"{declaration.name} has length {shape[axis]} in place of {length} in dimension {axis}")
        shape[axis] = length
    return given.expand(shape)


def _kept(attention: Attention, query: Tensor, key: Tensor, inputs: Inputs, probability: float, seed: int) -> Tensor:
    """Return which pairs dropout keeps."""
    batch, heads, queries, head_size = query.shape
    counts = (batch, heads, queries, key.shape[2], head_size, heads // key.shape[1])
    names = ("BATCH", "HEADS", "QUERIES", "KEYS", "HEAD_SIZE", "GROUP")
    sizes = {SizeName[name]: count for name, count in zip(names, counts, strict=True)}
    positions = pair_environment(attention, sizes, inputs).indices[IndexName.QUERY]
    places = positions.expand(batch, heads, queries, 1).squeeze(-1)
    return kept_pairs(seed, batch, heads, places, key.shape[2], probability).to(query.device)


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def _sizes(query: Tensor, key: Tensor) -> dict[SizeName, int]:
    batch, heads, queries, head_size = query.shape
    return {
        SizeName.BATCH: batch,
        SizeName.HEADS: heads,
        SizeName.QUERIES: queries,
        SizeName.KEYS: key.shape[2],
        SizeName.HEAD_SIZE: head_size,
        SizeName.GROUP: heads // key.shape[1],
    }


def _lse_without_keys(
    attention: Attention, query: Tensor, key: Tensor, inputs: Inputs | None, dtype: torch.dtype
) -> Tensor:
    """Return the log of what divides rows that have no keys: the sink, or minus infinity."""
    if attention.normalize.sink is None:
        return torch.full(query.shape[:3], -torch.inf, dtype=dtype)
    env = pair_environment(attention, _sizes(query, key), inputs, rows=None, dtype=dtype, device=query.device)
    return evaluate_tensor(attention.normalize.sink, env).squeeze(-1).expand(query.shape[:3]).to(dtype)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Scores `x`, factors `f`, and per row the sink, all broadcastable to `(B, H, N, M)`."""

    scores: Tensor
    factors: Tensor | None
    sink: Tensor | None


def _weights(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    inputs: Inputs | None,
    scale: float | Tensor | None,
    dtype: torch.dtype,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised weights, log-sum-exp (softmax only, else NaN) and the pairs that take part."""
    batch, heads, _, head_size = query.shape
    if (key.shape[0], key.shape[3]) != (batch, head_size) or heads % key.shape[1]:
        raise ValueError(f"{tuple(key.shape)} keys do not fit {tuple(query.shape)} queries")
    env = pair_environment(attention, _sizes(query, key), inputs, rows=rows, dtype=dtype, device=query.device)
    chosen = query if rows is None else query[:, :, rows]
    shape = (batch, heads, chosen.shape[2], key.shape[2])
    allowed = evaluate_tensor(attention.mask, env).expand(shape)
    left, right = chosen.to(dtype), _repeat_heads(key, heads).to(dtype)
    left, right, scale = _transformed(attention, left, right, env, scale)
    pairs = _score_pairs(attention, left, right, env, allowed, scale)
    weights, lse, alive = _normalize(attention.normalize, pairs, allowed)
    if bool((allowed.any(-1, keepdim=True) & ~alive).any()):
        # rows whose denominator is 0 are computed again without any pair: no gradient may pass through them
        allowed = allowed & alive
        pairs = _score_pairs(attention, left, right, env, allowed, scale)
        weights, lse, _ = _normalize(attention.normalize, pairs, allowed)
    return weights, lse, allowed


def _transformed(
    attention: Attention, query: Tensor, key: Tensor, env: TensorEnvironment, scale: float | Tensor | None
) -> tuple[Tensor, Tensor, float | Tensor | None]:
    """Prepare queries and keys and map them to features; return the factor on their products as well.

    `favor` approximates `exp(scale * dot)`: keys take one over the fourth root of the head size, queries the rest.
    """
    own, other = env.indices[IndexName.QUERY].squeeze(-1), env.indices[IndexName.KEY]
    query, key = prepared(attention.prepare, query, own), prepared(attention.prepare, key, other)
    feature = attention.feature
    if feature is None:
        return query, key, scale
    if scale is None and attention.scale is not None:
        scale = evaluate_tensor(attention.scale, env)
    if feature.form == "favor":
        head_size = query.shape[-1]
        scale = 1.0 / math.sqrt(head_size) if scale is None else scale
        query, key, scale = query * (scale * head_size**0.25), key / head_size**0.25, None
    keys = env.sizes[SizeName.KEYS]
    query, key = mapped(feature, query, own, keys), mapped(feature, key, other, keys)
    return query, key, 1.0 if scale is None else scale


def _score_pairs(
    attention: Attention,
    query: Tensor,
    key: Tensor,
    env: TensorEnvironment,
    allowed: Tensor,
    scale: float | Tensor | None,
) -> _Pairs:
    if scale is None:
        row_active = replace(env, active=allowed.any(-1, keepdim=True))
        own = attention.scale
        scale = 1.0 / math.sqrt(query.shape[-1]) if own is None else evaluate_tensor(own, row_active)
    dots = scale * pair_products(query, key, allowed)
    env = replace(env, active=allowed)
    scores = evaluate_tensor(attention.score, replace(env, score=dots))
    normalize = attention.normalize
    if normalize.kind is NormalizeKind.SIGMOID and normalize.bias is not None:
        scores = scores + evaluate_tensor(normalize.bias, env)
    factors = None if attention.weight is None else evaluate_tensor(attention.weight, env)
    sink = None if normalize.sink is None else evaluate_tensor(normalize.sink, replace(env, active=None))
    return _Pairs(scores.expand(allowed.shape), factors, sink)


def _normalize(normalize: Normalize, pairs: _Pairs, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights (0 where not allowed), log-sum-exp or NaN, and which rows `(B, H, N, 1)` have a denominator."""
    every_row = allowed.new_ones((*allowed.shape[:-1], 1))
    no_lse = pairs.scores.new_full(allowed.shape[:-1], math.nan)
    if normalize.kind is NormalizeKind.SOFTMAX:
        return _softmax(pairs, allowed)
    scores = torch.where(allowed, pairs.scores, 0.0)
    match normalize.kind:
        case NormalizeKind.SIGMOID:
            weights = torch.sigmoid(scores)
        case NormalizeKind.RELU:
            power = 1.0 if normalize.power is None else float(normalize.power.value)
            positive = ~(scores <= 0)  # NaN too: it must reach its row
            weights = torch.where(positive, torch.where(positive, scores, 1.0) ** power, 0.0)
        case NormalizeKind.ROWS | NormalizeKind.NONE:
            weights = scores
        case _:
            assert_never(normalize.kind)
    weights = _multiply(weights, pairs.factors, allowed)
    if normalize.kind is not NormalizeKind.ROWS:
        return weights, no_lse, every_row
    total = weights.sum(-1, keepdim=True)
    alive = total != 0
    return torch.where(allowed & alive, weights / torch.where(alive, total, 1.0), 0.0), no_lse, alive


def _softmax(pairs: _Pairs, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    counted = allowed if pairs.factors is None else allowed & (pairs.factors != 0)
    peak = torch.where(counted, pairs.scores.detach(), -torch.inf).amax(-1, keepdim=True)
    if pairs.sink is not None:
        peak = torch.maximum(peak, pairs.sink.detach())
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    shifted = torch.where(allowed, pairs.scores - peak, 0.0)
    # only where the factor is 0 can a score lie above the peak; 0 times an overflow would be NaN
    limit = math.log(torch.finfo(shifted.dtype).max) - 1
    exponentials = torch.exp(torch.where(torch.isfinite(shifted), shifted.clamp(max=limit), shifted))
    weights = _multiply(exponentials, pairs.factors, allowed)
    total = weights.sum(-1, keepdim=True)
    if pairs.sink is not None:
        total = total + torch.exp(pairs.sink - peak)
    alive = total != 0
    safe = torch.where(alive, total, 1.0)
    lse = torch.where(alive, peak + torch.log(safe), -torch.inf)
    # `inf - inf` makes the weights NaN, but the sum of such a row is infinite
    spoiled = (allowed & pairs.scores.isnan()).any(-1, keepdim=True)
    lse = torch.where((peak == torch.inf) & ~spoiled, torch.inf, lse).squeeze(-1)
    return torch.where(allowed & alive, weights / safe, 0.0), lse, alive


def _multiply(weights: Tensor, factors: Tensor | None, allowed: Tensor) -> Tensor:
    if factors is not None:
        weights = weights * torch.where(allowed, factors, 0.0)
    return torch.where(allowed, weights, 0.0)
