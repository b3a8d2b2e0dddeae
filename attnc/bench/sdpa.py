"""PyTorch's `scaled_dot_product_attention` as a peer: the pattern as a dense mask, or a flag where one exists."""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch.nn import functional

from attnc.bench.additive import ONE, ZERO, affine_score
from attnc.bench.cases import surroundings
from attnc.bench.contender import Case, Contender, Run, Unavailable
from attnc.bench.machine import free_memory
from attnc.ir.nodes import TRUE, Expr, IndexName
from attnc.ir.program import NormalizeKind
from attnc.ir.walk import depends_on
from attnc.reference import TensorEnvironment, evaluate_tensor, pair_environment

STRIP = 1 << 26
"""Pairs of which parts of masks are evaluated at once."""


def dense_contender(case: Case) -> Contender:
    """Return SDPA with every pair computed and no mask: the floor's measure, whatever the pattern says."""
    grouped = case.shape.group > 1
    return Contender("sdpa, no mask", partial(functional.scaled_dot_product_attention, enable_gqa=grouped))


def sdpa_contender(case: Case, *, causal: bool | None, full: bool | None) -> Contender:
    """Return SDPA for a case: with a flag where the pattern is plain, else with a dense mask.

    Args:
        case: what to compute.
        causal: whether the mask is proven to be exactly causal.
        full: whether the mask is proven to allow every pair.

    Raises:
        Unavailable: the pattern is not a softmax of a masked, scaled and biased dot product, or its dense mask does not
            fit into memory.
    """
    attention = case.attention
    if surroundings(attention):
        raise Unavailable(f"SDPA has no `{surroundings(attention)}`")
    if attention.normalize.kind is not NormalizeKind.SOFTMAX:
        raise Unavailable(f"SDPA has no normalize {attention.normalize.kind.value}")
    score = affine_score(attention.score)
    if score is None or depends_on(score.factor, IndexName.KEY):
        raise Unavailable("SDPA has no such score")
    env = _environment(case)
    begin = time.perf_counter()
    scale = _row_scale(case, score.factor, env)
    plain = score.offset == ZERO and attention.weight is None and attention.normalize.sink is None
    if plain and full:
        return Contender("sdpa", _with_scale(case, scale, is_causal=False))
    if plain and causal and case.shape.queries == case.shape.keys:
        return Contender("sdpa, causal", _with_scale(case, scale, is_causal=True))
    mask = _dense_mask(case, None if plain else score.offset, env)
    run = _with_mask(case, scale, mask, sink=attention.normalize.sink is not None)
    return Contender("sdpa, dense mask", run, time.perf_counter() - begin, mask.untyped_storage().nbytes())


def _environment(case: Case) -> TensorEnvironment:
    return pair_environment(case.attention, case.shape.sizes(), case.data, dtype=torch.float32, device=case.device)


def _row_scale(case: Case, factor: Expr, env: TensorEnvironment) -> float | torch.Tensor:
    """Return the factor on the dot product: a number, or one for each query row."""
    own = case.attention.scale
    scale = evaluate_tensor(own, env) if own is not None else torch.tensor(1 / math.sqrt(case.shape.head_size))
    if factor != ONE:
        scale = scale.to(case.device) * evaluate_tensor(factor, env)
    return float(scale) if scale.dim() == 0 else scale.to(case.dtype)


def _with_scale(case: Case, scale: float | torch.Tensor, *, is_causal: bool) -> Run:
    grouped = case.shape.group > 1
    sdpa = functional.scaled_dot_product_attention
    if isinstance(scale, float):
        return partial(sdpa, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return lambda query, key, value: sdpa(query * scale, key, value, is_causal=is_causal, scale=1.0, enable_gqa=grouped)


def _with_mask(case: Case, scale: float | torch.Tensor, mask: torch.Tensor, *, sink: bool) -> Run:
    grouped = case.shape.group > 1
    # SDPA leaves the last dimension of a mask to itself: broadcasting is for batch and heads alone
    mask = mask.expand(-1, -1, case.shape.queries, mask.shape[-1])

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if sink:  # one more key, of no direction and no value, whose bias is the sink
            key, value = functional.pad(key, (0, 0, 0, 1)), functional.pad(value, (0, 0, 0, 1))
        factor = 1.0
        if isinstance(scale, float):
            factor = scale
        else:
            query = query * scale
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=factor, enable_gqa=grouped
        )

    return run


def _dense_mask(case: Case, offset: Expr | None, env: TensorEnvironment) -> torch.Tensor:
    """Return the mask as SDPA takes it: bool, or numbers that are added to the scores where there is a bias."""
    attention, shape = case.attention, case.shape
    exprs = [expr for expr in (attention.mask, offset, attention.weight) if expr is not None]
    copies = 1
    for size, index in ((shape.batch, IndexName.BATCH), (shape.heads, IndexName.HEAD)):
        copies *= size if any(depends_on(expr, index) for expr in exprs) else 1
    # a bool is made a float for each call; a sink is put beside the other columns
    needed = copies * shape.queries * shape.keys * (5 if offset is None else 8)
    if needed > 0.6 * free_memory(case.device):
        raise Unavailable(f"its dense mask takes {needed / 2**30:.1f} GiB")
    mask = _by_rows(case, offset, max(2, STRIP // (copies * shape.keys)))
    if attention.normalize.sink is not None:
        sink = _four(evaluate_tensor(attention.normalize.sink, env).to(case.dtype), 1)
        rows = (max(mask.shape[0], sink.shape[0]), max(mask.shape[1], sink.shape[1]), shape.queries)
        mask = torch.cat([mask.expand(*rows, shape.keys), sink.expand(*rows, 1)], dim=-1)
    return mask


def _by_rows(case: Case, offset: Expr | None, count: int) -> torch.Tensor:
    """Make a mask of so many rows at a time, at least 2: of all pairs, only the mask itself is in memory."""
    whole: torch.Tensor | None = None
    for rows in torch.split(torch.arange(case.shape.queries, device=case.device), count):
        strip = _strip(case, offset, rows)
        if strip.shape[2] == 1:
            return strip  # all rows are alike
        if whole is None:
            whole = strip.new_empty((*strip.shape[:2], case.shape.queries, strip.shape[3]))
        whole[:, :, rows[0] : rows[-1] + 1] = strip
    assert whole is not None
    return whole


def _strip(case: Case, offset: Expr | None, rows: torch.Tensor) -> torch.Tensor:
    """Return the mask of some rows; of one row where all are alike."""
    attention, shape = case.attention, case.shape
    env = pair_environment(attention, shape.sizes(), case.data, rows=rows, dtype=torch.float32, device=case.device)
    allowed = evaluate_tensor(attention.mask, env) if attention.mask != TRUE else torch.ones((), dtype=torch.bool)
    allowed = allowed.to(case.device)
    if offset is None:
        return _four(allowed, shape.keys)
    bias = evaluate_tensor(offset, env)
    if attention.weight is not None:
        factors = evaluate_tensor(attention.weight, env)
        if bool((factors < 0).any()):
            raise Unavailable("SDPA has no negative weights")
        bias = bias + torch.log(factors)
    return _four(torch.where(allowed, bias, -torch.inf).to(case.dtype), shape.keys)


def _four(mask: torch.Tensor, keys: int) -> torch.Tensor:
    """Give a mask four dimensions, the last one of its full length."""
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    return mask.expand(*mask.shape[:-1], keys).contiguous() if mask.shape[-1] != keys else mask
