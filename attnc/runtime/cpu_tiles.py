"""Attention of any score and normaliser by blocks of materialised weights, in bounded memory; and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.bands import Band, follows_diagonals, is_shared, mask_period
from attnc.runtime.blocks import exponentials, recording, row_scale, score_pairs, weigh_pairs, with_tape
from attnc.runtime.calls import Call
from attnc.runtime.diagonals import as_terms, diagonal_mask, distances, sum_by_distance
from attnc.runtime.fresh_memory import keep_freed_memory
from attnc.runtime.pairs import Pairs, Tape
from attnc.runtime.parts import Part, band_mask, band_pairs, cut_section, shrink
from attnc.runtime.products import weighted_sum
from attnc.runtime.row_gradients import add_elements, all_rows, values_of_rows
from attnc.runtime.sections import Section, cut_into_sections
from attnc.runtime.views import add_to_keys, block_product, key_view, row_numbers_view, row_view

ELEMENTS = 1 << 19
"""Weights that are materialised at once: they stay in the caches."""
HEADS = 64
"""Most query heads, over all batch entries, that are computed together."""
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class Rows:
    """What the softmax of each row has come to, `[B, G, g, N]`: `exp(score - peak)` sums up to `total`."""

    peak: Tensor
    total: Tensor


def _scaled_rows(call: Call) -> Call:
    """Return a call whose query is multiplied by the factor on the dot product: once, and not for each pair."""
    factor = row_scale(call.program, all_rows(call.heads), call.scale)
    if not isinstance(factor, float):
        factor = values_of_rows(call.heads, factor).unsqueeze(-1)
    return replace(call, query=call.query * factor)


def tiled_forward(call: Call, careful: bool) -> tuple[Tensor, Rows]:
    """Return sums of weighted values `[B, G, g, N, E]`, not yet divided, and the state of each row.

    Args:
        call: what to compute.
        careful: keys or values hold NaN or infinities, which masked pairs must not pass on.
    """
    keep_freed_memory()
    sizes, call = call.sizes, _scaled_rows(call)
    batch, groups, members, queries, _ = call.query.shape
    out = call.query.new_zeros((batch, groups, members, queries, sizes.value_size))
    rows = Rows(
        out.new_full((batch, groups, members, queries), -torch.inf), out.new_zeros((batch, groups, members, queries))
    )
    for section in cut_into_sections(call):
        sums = tuple(section.of_rows(tensor) for tensor in (out, rows.peak, rows.total))
        for whole in cut_section(section, by_tiles=True):
            for part in shrink(whole, HEADS):
                target, peak, total = (part.of_rows(tensor) for tensor in sums)
                for band in part.schedule.bands:
                    masks = _Masks(part, band)
                    for block in _blocks(part, band):
                        _accumulate(part, block, masks, target, Rows(peak, total), careful)
        for tensor, taken in zip((out, rows.peak, rows.total), sums, strict=True):
            section.put_rows(tensor, taken)
    return out, rows


class _Masks:
    """Masks of the blocks of a band: made once where they repeat."""

    def __init__(self, part: Part, band: Band) -> None:
        self._part, self._band = part, band
        periods = [mask_period(part.frame, kind) for _, kind in band.pieces]
        self._repeat = band.masked and all(is_shared(part.frame, band, period) for period in periods)
        self._last: tuple[tuple[int, int], Tensor | None] | None = None

    def of(self, block: Band) -> Tensor | None:
        """Return what `band_mask` does."""
        if not self._repeat:
            return band_mask(self._part, block)
        passed = (block.row - self._band.row) // self._band.row_step
        name = block.key - passed * self._band.key_step, block.width
        if self._last is None or self._last[0] != name:
            self._last = name, band_mask(self._part, block)
        return self._last[1]


def _blocks(part: Part, band: Band) -> Iterator[Band]:
    """Yield a band in pieces whose weights fit into the caches."""
    batch, groups, members = part.query.shape[:3]
    each = batch * groups * members * band.rows
    width = max(32, min(band.width, ELEMENTS // each))
    count = max(1, ELEMENTS // (each * width))
    for offset in range(0, band.width, width):
        for start in range(0, band.count, count):
            yield band.part(start, min(count, band.count - start), offset, min(width, band.width - offset))


def _fold(rows: Tensor) -> Tensor:
    """Lay `[B, G, g, S, R, ...]` out as `[B, G, S, g * R, ...]`."""
    return rows.transpose(2, 3).flatten(3, 4)


def _columns(rows: Tensor, band: Band) -> Tensor:
    """Lay numbers of rows `[B, G, g, N]` out as `[B, G, S, g, R, 1]`."""
    return row_numbers_view(rows, band).transpose(2, 3).unsqueeze(-1)


def _dots(part: Part, band: Band) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries `[B, G, S, g * R, D]`, keys `[B, G, S, W, D]` and products `[B, G, S, g, R, W]` of a block."""
    query, key = _fold(row_view(part.query, band)), key_view(part.key, band)
    dots = block_product(query, key.transpose(-1, -2))
    return query, key, torch.unflatten(dots, 3, (part.query.shape[2], band.rows))


def _accumulate(part: Part, band: Band, masks: _Masks, out: Tensor, state: Rows, careful: bool) -> None:
    program = part.section.call.program
    at = band_pairs(part, band)
    _, _, dots = _dots(part, band)
    allowed = masks.of(band)
    if program.normalize == "softmax":
        weights = _online_softmax(part, band, at, dots, allowed, out, state, careful)
    else:
        weights = _only_allowed(weigh_pairs(program, at, dots, None), allowed, careful).expand(dots.shape)
        _columns(state.total, band).add_(weights.sum(-1, keepdim=True))
    value, dropout = key_view(part.value, band), part.section.call.dropout
    if dropout is not None:
        kept = dropout.keeps(at)
        weights = dropout.drop(weights, kept)
        allowed = kept if allowed is None else allowed & kept  # what is dropped takes no part, whatever its value
    if careful:
        allowed = torch.ones_like(weights, dtype=torch.bool) if allowed is None else allowed.expand(weights.shape)
        sums = weighted_sum(weights.flatten(3, 4), value, allowed.flatten(3, 4), True)
    else:
        sums = block_product(weights.flatten(3, 4), value)
    row_view(out, band).add_(torch.unflatten(sums, 3, dots.shape[3:5]).transpose(2, 3))


def _online_softmax(
    part: Part, band: Band, at: Pairs, dots: Tensor, allowed: Tensor | None, out: Tensor, state: Rows, careful: bool
) -> Tensor:
    """Return weights against the rows' new peak, after rescaling what the rows have summed up so far."""
    program = part.section.call.program
    scores = _scores_of_allowed(score_pairs(program, at, dots), allowed, careful)
    factors = None if program.weight is None else program.weight(at)
    counted = scores if factors is None else torch.where(factors != 0, scores, -torch.inf)
    old = _columns(state.peak, band)
    new = torch.maximum(old, counted.expand(dots.shape).amax(-1, keepdim=True))
    base = torch.where(new.isinf(), 0.0, new)
    if factors is None:
        weights = _exponentials_in_place(scores, base, dots)
    else:
        weights = exponentials(program, scores - base).expand(dots.shape) * factors
        weights = _only_allowed(weights, allowed, careful)
    fade = torch.where(old == -torch.inf, 0.0, torch.exp(old - base))
    total = _columns(state.total, band)
    total.mul_(fade).add_(weights.sum(-1, keepdim=True))
    old.copy_(new)
    row_view(out, band).mul_(fade.transpose(2, 3))
    return weights


def _scores_of_allowed(scores: Tensor, allowed: Tensor | None, careful: bool) -> Tensor:
    """Return scores, minus infinity where masked: unless `careful`, NaN where infinities or NaN are masked.

    A sum takes a twentieth of the time of `where`, which does not use vector registers for bools.
    """
    if allowed is None:
        return scores
    if careful:
        return torch.where(allowed, scores, -torch.inf)
    return scores + (1.0 - allowed.to(scores.dtype).reciprocal_())


def _only_allowed(weights: Tensor, allowed: Tensor | None, careful: bool) -> Tensor:
    """Return weights, 0 where masked: unless `careful`, NaN where infinities or NaN are masked."""
    if allowed is None:
        return weights
    return torch.where(allowed, weights, 0.0) if careful else weights * allowed.to(weights.dtype)


def _exponentials_in_place(scores: Tensor, base: Tensor, dots: Tensor) -> Tensor:
    """Return `exp(scores - base)` of a block, in the memory of the scores where each pair has its own.

    Less memory stays in the nearer caches, and powers of two take a quarter of the time of `exp`.
    """
    differences = scores.sub_(base) if scores.shape == dots.shape else (scores - base).expand(dots.shape).contiguous()
    return differences.mul_(_LOG2_E).exp2_()


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums that a backward pass collects. `query` is that of `factor * query`.

    Attributes:
        query, key, value: in the layout of `Call`.
        tables: float64, of the expanded shapes.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    tables: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Backward:
    """What a backward pass needs of each row, `[B, G, g, N, ...]`.

    Attributes:
        grad_out: gradient of the output.
        delta: what is subtracted from a pair's gradient; None where weights are not divided by a sum.
        alive: rows with a denominator other than 0; None if all are.
    """

    grad_out: Tensor
    delta: Tensor | None
    rows: Rows
    alive: Tensor | None


def tiled_backward(call: Call, given: Backward, gradients: Gradients, careful: bool) -> None:
    """Add the gradients of all pairs up."""
    keep_freed_memory()
    call = _scaled_rows(call)
    for section in cut_into_sections(call):
        known, found = _of_rows(given, section), _of_section(gradients, section)
        for whole in cut_section(section, by_tiles=True):
            for part in shrink(whole, HEADS):
                own, sums = _of_rows(known, part), _of_section(found, part)
                for band in part.schedule.bands:
                    masks = _Masks(part, band)
                    for block in _blocks(part, band):
                        _block_backward(part, block, masks, own, sums, careful)
        section.put_rows(gradients.query, found.query)
        section.put_keys(gradients.key, found.key)
        section.put_keys(gradients.value, found.value)


def _of_rows(given: Backward, of: Section | Part) -> Backward:
    return Backward(
        of.of_rows(given.grad_out),
        None if given.delta is None else of.of_rows(given.delta),
        Rows(of.of_rows(given.rows.peak), of.of_rows(given.rows.total)),
        None if given.alive is None else of.of_rows(given.alive),
    )


def _of_section(sums: Gradients, of: Section | Part) -> Gradients:
    return replace(sums, query=of.of_rows(sums.query), key=of.of_keys(sums.key), value=of.of_keys(sums.value))


@dataclass(frozen=True, slots=True)
class _Block:
    """What is to be differentiated of a block of pairs `[B, G, S, g, R, W]`.

    Attributes:
        recorded: depends on the reads of `tape`, and on `scores`, the scaled dot products, where `score_grad` is None.
        grad: of `recorded`.
        shares: normalised weights, those that are dropped 0.
        seen: pairs that take part in the output; None for all, and where it does not matter.
        allowed: the same of the scores.
        score_grad: gradient of `scores`; None where autograd finds it.
    """

    recorded: Tensor
    scores: Tensor
    tape: Tape | None
    grad: Tensor
    shares: Tensor
    seen: Tensor | None = None
    allowed: Tensor | None = None
    score_grad: Tensor | None = None


def _block_backward(part: Part, band: Band, masks: _Masks, given: Backward, sums: Gradients, careful: bool) -> None:
    program = part.section.call.program
    query, key, dots = _dots(part, band)
    grad_out = _fold(row_view(given.grad_out, band))
    grad = block_product(grad_out, key_view(part.value, band).transpose(-1, -2))
    grad = torch.unflatten(grad, 3, dots.shape[3:5])
    is_exponential = program.normalize == "softmax" and program.weight is None and not careful
    prepare = _exponential_block if is_exponential else _recorded_block
    block = prepare(part, band, masks, dots.detach().requires_grad_(), grad, given, frozenset(sums.tables))
    folded, seen = (None if pairs is None else pairs.flatten(3, 4) for pairs in (block.allowed, block.seen))
    add_to_keys(sums.value, _transposed_sum(block.shares.flatten(3, 4), grad_out, seen, careful), band)
    score_grad = _differentiate(block, sums)
    if score_grad is None:
        return
    flat = score_grad.flatten(3, 4)
    query_grad = _sum_of_pairs(flat, key, folded, careful)
    row_view(sums.query, band).add_(torch.unflatten(query_grad, 3, dots.shape[3:5]).transpose(2, 3))
    add_to_keys(sums.key, _transposed_sum(flat, query, folded, careful), band)


def _exponential_block(
    part: Part, band: Band, masks: _Masks, scores: Tensor, grad: Tensor, given: Backward, wanted: frozenset[str]
) -> _Block:
    """Prepare a block of a softmax: weights are `exp(score - log-sum-exp)`, 0 where masked and in rows without keys.

    The exponential is its own derivative, so that the score alone is recorded, or the bias where that tells scores.
    """
    call = part.section.call
    by_distance = _is_told_by_distance(part, band)
    recorded, tape, inner = (_record_bias if by_distance else _record_score)(part, band, masks, scores, wanted)
    weights = inner.sub_(_columns(given.rows.peak, band)).mul_(_LOG2_E).exp2_()
    shares = weights
    if call.dropout is not None:
        kept = call.dropout.keeps(band_pairs(part, band)).expand(scores.shape)
        grad, shares = call.dropout.drop(grad, kept), call.dropout.drop(weights, kept)
    assert given.delta is not None
    grad = grad.sub_(_columns(given.delta, band)).mul_(weights)
    if not by_distance:
        return _Block(recorded, scores, tape, grad, shares)
    sums = sum_by_distance(grad) if tape.reads else recorded
    return _Block(recorded, scores, tape, sums, shares, score_grad=grad.mul_(call.program.factor))


def _is_told_by_distance(part: Part, band: Band) -> bool:
    program, frame = part.section.call.program, part.frame
    if band.starts or not follows_diagonals(program, frame, band.masked):
        return False
    return band.count == 1 or is_shared(frame, band, program.bias_period)


def _record_score(
    part: Part, band: Band, masks: _Masks, scores: Tensor, wanted: frozenset[str]
) -> tuple[Tensor, Tape, Tensor]:
    """Return the score as autograd knows it, what it reads, and a copy that is minus infinity where masked."""
    at = with_tape(band_pairs(part, band), None, wanted)
    with recording():
        recorded = score_pairs(part.section.call.program, at, scores).expand(scores.shape)
    assert at.tape is not None
    allowed = masks.of(band)
    inner = recorded.detach()
    return recorded, at.tape, inner.clone() if allowed is None else _scores_of_allowed(inner, allowed, careful=False)


def _record_bias(
    part: Part, band: Band, _: _Masks, scores: Tensor, wanted: frozenset[str]
) -> tuple[Tensor, Tape, Tensor]:
    """Return the same, but of the bias by distance alone."""
    program, at = part.section.call.program, with_tape(distances(part, band), None, wanted)
    assert program.bias is not None
    assert at.tape is not None
    distance_shape = (*scores.shape[:2], band.rows + band.width - 1, scores.shape[3], 1, 1)
    with recording():
        bias = program.bias(at).expand(distance_shape)
    mask = diagonal_mask(as_terms(part, band, bias.detach(), at), band)[0]
    return bias, at.tape, torch.add(mask.flip(-1), scores.detach(), alpha=program.factor)


def _recorded_block(
    part: Part, band: Band, masks: _Masks, scores: Tensor, grad: Tensor, given: Backward, wanted: frozenset[str]
) -> _Block:
    """Prepare a block of any weights, whatever masked pairs hold."""
    call, allowed = part.section.call, masks.of(band)
    if given.alive is not None:
        alive = _columns(given.alive, band)
        allowed = alive if allowed is None else allowed & alive
    if allowed is not None:
        allowed = allowed.expand(scores.shape)
    at = with_tape(band_pairs(part, band), allowed, wanted)
    with recording():
        inner = scores if allowed is None else torch.where(allowed, scores, 0.0)
        peak = _columns(given.rows.peak, band) if call.program.normalize == "softmax" else None
        weights = weigh_pairs(call.program, at, inner, peak).expand(scores.shape)
    shares, seen = weights.detach(), allowed
    if call.dropout is not None:
        kept = call.dropout.keeps(at).expand(scores.shape)
        grad, shares = call.dropout.drop(grad, kept), call.dropout.drop(shares, kept)
        seen = kept if allowed is None else allowed & kept
    if given.delta is not None:
        total = _columns(given.rows.total, band)
        grad = (grad - _columns(given.delta, band)) / total
        shares = shares / total
    if allowed is not None:
        grad, shares = torch.where(allowed, grad, 0.0), torch.where(allowed, shares, 0.0)
    return _Block(weights, scores, at.tape, grad, shares, seen, allowed)


def _transposed_sum(weights: Tensor, vectors: Tensor, allowed: Tensor | None, careful: bool) -> Tensor:
    turned = None if allowed is None else allowed.transpose(-1, -2)
    return _sum_of_pairs(weights.transpose(-1, -2), vectors, turned, careful)


def _sum_of_pairs(weights: Tensor, vectors: Tensor, allowed: Tensor | None, careful: bool) -> Tensor:
    return weighted_sum(weights, vectors, allowed, True) if careful else block_product(weights, vectors)


def _differentiate(block: _Block, sums: Gradients) -> Tensor | None:
    """Return the gradient of the scaled dot products, and add those of the tables up in a fixed order."""
    assert block.tape is not None
    reads, score_grad = block.tape.reads, block.score_grad
    wanted = [read.value for read in reads] if score_grad is not None else [block.scores, *(r.value for r in reads)]
    if not wanted or not block.recorded.requires_grad:
        return score_grad
    found = torch.autograd.grad(block.recorded, wanted, block.grad, allow_unused=True)
    for read, part in zip(reads, found[len(found) - len(reads) :], strict=True):
        if part is not None:
            add_elements(sums.tables[read.table], read.places, part)
    return found[0] if score_grad is None else score_grad
