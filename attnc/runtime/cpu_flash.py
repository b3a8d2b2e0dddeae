"""Softmax attention whose score is a multiple of the dot product plus a bias, on PyTorch's flash operator of the CPU.

Each band of equal rectangles is one call; what the calls give is merged by log-sum-exp. The operator's own log-sum-exp
is not differentiable and is 0 for a row without keys, so it is mended here, and gradients are taken by giving its
backward the merged output and log-sum-exp, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnc.runtime.bands import Band, bands_in_step, follows_diagonals, is_shared, is_shared_by_classes, mask_periods
from attnc.runtime.blocks import common_shape, row_scale
from attnc.runtime.calls import Call, Store, contents
from attnc.runtime.costs import KEPT_KEYS, KEPT_MASKS, REMEMBERED_PAIRS, RESULT_ELEMENTS
from attnc.runtime.cpu_parts import causal_forward, first_causal_row
from attnc.runtime.diagonals import Mirror, diagonal_mask, distance_terms, is_diagonal, mirrored
from attnc.runtime.flash_calls import flash_calls
from attnc.runtime.merging import merge
from attnc.runtime.parts import Part, band_mask, band_pairs, cut_section, shared_shape
from attnc.runtime.row_gradients import all_rows, values_of_rows
from attnc.runtime.schedule import MASK_ELEMENTS
from attnc.runtime.sections import cut_into_sections
from attnc.runtime.views import are_joined

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_MASKS: Store[tuple[Tensor | None, Tensor | None]] = Store(KEPT_MASKS)


def suits_flash(call: Call) -> bool:
    """Tell whether the operator can compute this pattern."""
    program = call.program
    return program.normalize == "softmax" and program.weight is None and program.linear and call.dropout is None


def scaled_query(call: Call) -> tuple[Tensor, float]:
    """Return the query and the number that its dot products are multiplied by."""
    program = call.program
    factor = row_scale(program, all_rows(call.heads), call.scale)
    if isinstance(factor, float):
        return call.query, factor * program.factor
    return call.query * values_of_rows(call.heads, factor * program.factor).unsqueeze(-1), 1.0


def flash_forward(call: Call) -> tuple[Tensor, Tensor]:
    """Return output `[B, G, g, N, E]` and log-sum-exp `[B, G, g, N]`, without a sink."""
    query, scale = scaled_query(call)
    call = _even_heads(replace(call, query=query))
    if call.program.library == "causal" and call.program.is_library_call(call.sizes.N, call.sizes.M):
        return _causal(call, scale)
    batch, groups, members, rows = shape = call.query.shape[:-1]
    # laid out as `[B, N, H, E]`: what the operator gives for a band of blocks is copied as it lies in memory
    out = call.query.new_empty((batch, rows, groups, members, call.value.shape[-1])).permute(0, 2, 3, 1, 4)
    lse = call.query.new_full(shape, -torch.inf)
    passes = call.program.passes
    if not (passes and passes[0].covers_rows):
        out.zero_()
    for section in cut_into_sections(call):
        mirror = Mirror(section)
        fresh = section.frame.number == 0
        taken = tuple(section.new_rows(tensor) if fresh else section.of_rows(tensor) for tensor in (out, lse))
        causal = first_causal_row(section)
        if causal is not None:
            causal_forward(section, causal, (taken[0], taken[1]), scale, merges=not fresh)
        for part in () if causal is not None else cut_section(section, by_tiles=False):
            if fresh and not part.schedule.covered:
                part.of_rows(taken[0]).zero_()
            whole = part.of_rows(taken[0]), part.of_rows(taken[1])
            for piece, band in _all_pieces(part):
                target = whole if piece is part else (piece.of_rows(taken[0]), piece.of_rows(taken[1]))
                _forward_band(piece, band, mirror, target, scale, merges=not (fresh and band.first))
        section.put_rows(out, taken[0])
        section.put_rows(lse, taken[1])
    return out[..., : call.sizes.value_size], lse


def _causal(call: Call, scale: float) -> tuple[Tensor, Tensor]:
    """Compute plain causal attention of equal lengths, for which the operator aligns rightly: one call a member."""
    found = [
        _attend(call.query[:, :, member], call.key, call.value, 0.0, True, scale=scale)
        for member in range(call.query.shape[2])
    ]
    out, lse = (
        torch.stack(parts, 2) if len(parts) > 1 else parts[0].unsqueeze(2) for parts in zip(*found, strict=True)
    )
    return out[..., : call.sizes.value_size], lse


def _even_heads(call: Call) -> Call:
    """Give query, key and value one head size by columns of zeros, which change nothing."""
    wanted = max(call.query.shape[-1], call.value.shape[-1])

    def widen(tensor: Tensor) -> Tensor:
        missing = wanted - tensor.shape[-1]
        return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor

    return replace(call, query=widen(call.query), key=widen(call.key), value=widen(call.value))


def _all_pieces(part: Part, backward: bool = False) -> Iterator[tuple[Part, Band]]:
    """Yield the bands of a part in pieces; those that read the same keys take turns, while these are in the cache."""
    groups = part.key.shape[1] * (part.query.shape[0] if are_joined((part.query, part.key, part.value)) else 1)
    for bands in bands_in_step(part.schedule.bands):
        count = bands[0].count
        if len(bands) > 1:
            count = max(1, KEPT_KEYS // (groups * bands[0].key_step * (part.key.shape[-1] + part.value.shape[-1])))
        for start in range(0, bands[0].count, count):
            for band in bands:
                some = band if count >= band.count else band.part(start, min(count, band.count - start), 0, band.width)
                yield from _pieces(part, some, backward)


def _pieces(part: Part, band: Band, backward: bool) -> Iterator[tuple[Part, Band]]:
    """Yield a band, in pieces where its mask or result is large; without a mask, rows of equal keys are a block."""
    program, frame = part.section.call.program, part.frame
    entries, groups, members = part.query.shape[:3]
    masked = band.masked or program.bias is not None
    band = band if masked else band.as_one_block()
    count, some = band.count, entries
    each = (max(band.rows, band.width) if backward else band.rows) * groups * part.query.shape[-1]
    if masked and follows_diagonals(program, frame, band.masked):
        if not is_diagonal(part, band) and (not band.key_step or _shared_elements(part, band) > REMEMBERED_PAIRS):
            for number in range(band.count):
                yield part, band.part(number, 1, 0, band.width)
            return
    elif masked:
        periods = mask_periods(program, frame, band)
        if frame.rows.classes > 1 and not all(is_shared_by_classes(frame, period) for period in periods):
            some = min(some, max(1, MASK_ELEMENTS // (band.rows * band.width)))
        if not all(is_shared(frame, band, period) for period in periods):
            heads = groups * members if program.bias is not None else 1
            varied = some if frame.rows.classes > 1 else 1
            count = min(count, max(1, MASK_ELEMENTS // (band.rows * band.width * heads * varied)))
    if are_joined((part.query, part.key, part.value)):
        some = min(some, max(1, RESULT_ELEMENTS // each))
        count = min(count, max(1, RESULT_ELEMENTS // (each * some)))
    elif entries > count:  # one block of all entries, rather than all blocks of one entry
        some = min(some, max(1, RESULT_ELEMENTS // each))
    else:
        count = min(count, max(1, RESULT_ELEMENTS // each))
    if some >= entries and count >= band.count:
        yield part, band
        return
    for first in range(0, entries, some):
        piece = part.narrow(first, min(entries, first + some), 0, groups)
        for start in range(0, band.count, count):
            yield piece, band.part(start, min(count, band.count - start), 0, band.width)


def _shared_elements(part: Part, band: Band) -> int:
    """Return the elements of a mask that the blocks of a band share."""
    entries, groups, members = part.query.shape[:3]
    return band.rows * band.width * groups * members * (entries if part.frame.sweep.by_batch else 1)


def _additive_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    """Return the bias of a band, minus infinity where masked, and the rows `[.., R]` that see none of its keys.

    Small masks are remembered by the data that decides on them: making those of short bands takes as long as using
    them, and layer after layer has the same.
    """
    call, schedule = part.section.call, part.schedule
    program = call.program
    if program.bias is None and not band.masked:
        return None, None
    decide = (*program.mask_tables, *program.bound_tables)
    from_tensors = program.bias is not None and program.tensors
    data = None if from_tensors or band.rows * band.width > REMEMBERED_PAIRS else contents(call, decide)
    if data is None:
        return _make_mask(part, band)
    name = (program, call.sizes, part.frame, schedule.entries, schedule.heads, band, part.query.dtype, data)
    found = _MASKS.get(name)
    if found is None:
        found = _make_mask(part, band)
        size = 0 if found[0] is None else found[0].numel()
        if size <= REMEMBERED_PAIRS:
            _MASKS.put(name, found, size)
    return found


def _make_mask(part: Part, band: Band) -> tuple[Tensor | None, Tensor | None]:
    program = part.section.call.program
    if follows_diagonals(program, part.frame, band.masked):
        turned, gone = diagonal_mask(distance_terms(part, band), band)
        return turned.flip(-1), gone
    allowed = band_mask(part, band)
    if program.bias is None:
        assert allowed is not None
        allowed = _without_repeats(allowed)
        if bool(allowed.all()):
            return None, None
        mask = torch.zeros(allowed.shape, dtype=part.query.dtype).masked_fill_(~allowed, -torch.inf)
        empty = ~allowed.any(-1)
        return mask, empty if bool(empty.any()) else None
    blocks, classes, shape = shared_shape(part, band, program.bias_period)
    bias = program.bias(band_pairs(part, band, blocks=not blocks, classes=not classes))
    bias = bias.expand(common_shape(bias.shape, shape))
    mask = bias if allowed is None else torch.where(allowed, bias, -torch.inf)
    return mask, (mask == -torch.inf).all(-1)


def _without_repeats(mask: Tensor) -> Tensor:
    """Return one of the blocks of `[X, G, S, g, R, W]` where all are alike, and so for entries and heads."""
    for axis in range(4):
        if mask.shape[axis] > 1:
            first = mask.narrow(axis, 0, 1)
            if mask.stride(axis) == 0 or bool((mask == first).all()):
                mask = first
    return mask


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the operator is given of a band.

    Attributes:
        band: its rows, and its keys among those of `key` and `value`.
        mask: additive, None for none.
        empty: rows that see none of the keys.
        turned: whether the keys go from the last to the first.
    """

    band: Band
    key: Tensor
    value: Tensor
    mask: Tensor | None
    empty: Tensor | None
    turned: bool


def _take(part: Part, band: Band, mirror: Mirror) -> _Taken:
    if is_diagonal(part, band):
        own = band.as_one_block()
        mask, empty = diagonal_mask(distance_terms(part, own), own)
        return _Taken(mirrored(part, own), *mirror.keys(part), mask, empty, turned=True)
    found, empty = _additive_mask(part, band)
    band = band if found is not None else band.as_one_block()
    return _Taken(band, part.key, part.value, found, empty, turned=False)


def _forward_band(
    part: Part, band: Band, mirror: Mirror, target: tuple[Tensor, Tensor], scale: float, merges: bool
) -> None:
    """Compute a band, and put it into the output and log-sum-exp of its part or merge it with what is there."""
    taken, query = _take(part, band, mirror), part.query
    key, value, mask, empty = taken.key, taken.value, taken.mask, taken.empty
    for call in flash_calls(taken.band, query.shape[:3], (query, key, value), mask):
        found, found_lse = _attend(
            call.rows(query),
            call.keys(key),
            call.keys(value),
            0.0,
            False,
            attn_mask=None if mask is None else call.pairs(mask),
            scale=scale,
        )
        if empty is not None:
            found_lse = torch.where(call.pairs(empty), -torch.inf, found_lse)
        out, lse = call.spread_rows(target[0]), call.spread_rows(target[1])
        if merges:
            merge(out, lse, call.spread(found), call.spread(found_lse))
        else:
            out.copy_(call.spread(found))
            lse.copy_(call.spread(found_lse))


def flash_backward(
    call: Call, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `factor * query`, key and value in the layout of a `Call`.

    Args:
        call: as in the forward pass.
        grad_out: `[B, G, g, N, E]`.
        grad_lse: `[B, G, g, N]`, or None for 0.
        out: merged, the sink included.
        lse: merged, the sink included; minus infinity for rows without keys.
    """
    sizes, factor = call.sizes, call.program.factor
    query, scale = scaled_query(call)
    call = replace(call, query=query * scale if scale != 1.0 else query)
    if grad_lse is not None:
        # a value column of ones whose output is taken to be 0 adds grad_lse to every pair's gradient
        ones = torch.ones_like(call.value[..., :1])
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(-1)], -1)
        out = torch.cat([out, torch.zeros_like(out[..., :1])], -1)
        call = replace(call, value=torch.cat([call.value, ones], -1))
    call = _even_heads(call)
    missing = call.value.shape[-1] - out.shape[-1]
    if missing:
        out, grad_out = (torch.nn.functional.pad(tensor, (0, missing)) for tensor in (out, grad_out))
    lse = torch.where(lse == -torch.inf, 0.0, lse)
    grads = (torch.zeros_like(call.query), torch.zeros_like(call.key), torch.zeros_like(call.value))
    for section in cut_into_sections(call):
        mirror = Mirror(section)
        known = section.of_rows(grad_out), section.of_rows(out), section.of_rows(lse)
        found = section.of_rows(grads[0]), section.of_keys(grads[1]), section.of_keys(grads[2])
        for part in cut_section(section, by_tiles=False, backward=True):
            for piece, band in _all_pieces(part, backward=True):
                rows = tuple(piece.of_rows(tensor) for tensor in known)
                sums = piece.of_rows(found[0]), piece.of_keys(found[1]), piece.of_keys(found[2])
                _backward_band(piece, band, mirror, rows, sums)
        section.put_rows(grads[0], found[0])
        section.put_keys(grads[1], found[1])
        section.put_keys(grads[2], found[2])
    return grads[0][..., : sizes.D] * factor, grads[1][..., : sizes.D], grads[2][..., : sizes.value_size]


def _backward_band(
    part: Part, band: Band, mirror: Mirror, known: tuple[Tensor, ...], sums: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add the gradients of a band up; `known` are the gradient of the output, the output and the log-sum-exp."""
    taken, query = _take(part, band, mirror), part.query
    key, value, mask = taken.key, taken.value, taken.mask
    for call in flash_calls(taken.band, query.shape[:3], (query, key, value, *known), mask):
        found = _attend_backward(
            call.rows(known[0]),
            call.rows(query),
            call.keys(key),
            call.keys(value),
            call.rows(known[1]),
            call.rows(known[2]),
            0.0,
            False,
            attn_mask=None if mask is None else call.pairs(mask),
            scale=1.0,
        )
        call.spread_rows(sums[0]).add_(call.spread(found[0]))
        back = replace(call, band=band.as_one_block()) if taken.turned else call
        for total, grad in zip(sums[1:], found[1:], strict=True):
            back.add_keys(total, grad.flip(2) if taken.turned else grad)
