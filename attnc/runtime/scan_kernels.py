"""Kernels of causal scans: sums of each chunk, a walk over the chunks, rows of the output. None knows a pattern.

Inlined functions and kernels alike stay plain Python where Triton is not installed. Offsets of rows take 64 bits. What
a launch has many of is on the first axis of its grid alone. Sums are kept in the order of the walk, so that the walk
from the end needs no kernel of its own. Rows are contiguous and of multiples of 16 numbers; the caller's need not be.
"""

# ruff: noqa: ANN001, ANN201, N803, SIM108 - Triton's values have no useful Python types, and one branch is compiled
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from attnc.runtime.kernel_math import tl, triton

SCAN_COUNTS = ("heads", "x_group", "y_group", "z_group", "length", "first_chunk", "chunks", "all_chunks", "walked")
"""Numbers for whose values no kernel is compiled anew."""


@triton.jit
def scan_rows_of(pointer, batch, head, stride_batch, stride_head):
    """Return the address of the first row of a head of a batch entry."""
    return pointer + batch.to(tl.int64) * stride_batch + head.to(tl.int64) * stride_head


@triton.jit
def load_scan_tile(base, row, rows, stride_row, column, columns):
    """Load elements of a matrix with contiguous rows, 0 outside of it; shapes of `row` and `column` broadcast."""
    inside = (row < rows) & (column < columns)
    return tl.load(base + row.to(tl.int64) * stride_row + column, mask=inside, other=0.0)


@triton.jit
def load_scan_logs(base, row, rows, stride_row):
    """Load logs of rows in float64, minus infinity behind the last one."""
    return tl.load(base + row.to(tl.int64) * stride_row, mask=row < rows, other=float("-inf"))


@triton.jit
def split_log(log):
    """Return a float64 as the sum of two float32, so that sums of logs are exact where they nearly cancel."""
    high = log.to(tl.float32)
    low = (log - high.to(tl.float64)).to(tl.float32)
    return high, tl.where(tl.abs(high) < float("inf"), low, 0.0)


@triton.jit(do_not_specialize=SCAN_COUNTS)
def scan_sums_kernel(
    y_ptr, z_ptr, keys_ptr, references_ptr, sums_ptr,
    y_stride_b, y_stride_h, y_stride_n,
    z_stride_b, z_stride_h, z_stride_n,
    keys_stride_b, keys_stride_h, keys_stride_n,
    references_stride_b, references_stride_h,
    heads, y_group, z_group, length, features, values, first_chunk, chunks, all_chunks,
    LOGS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum `exp(key log - reference) y z^T` over the keys of one chunk, for a block of features and of values."""
    pid = tl.program_id(0)
    blocks_e = tl.cdiv(values, BLOCK_E)
    blocks_f = tl.cdiv(features, BLOCK_F)
    block_e, rest = pid % blocks_e, pid // blocks_e
    block_f, rest = rest % blocks_f, rest // blocks_f
    local, sequence = rest % chunks, rest // chunks
    batch, head = sequence // heads, sequence % heads
    chunk = first_chunk + local
    y_base = scan_rows_of(y_ptr, batch, head // y_group, y_stride_b, y_stride_h)
    z_base = scan_rows_of(z_ptr, batch, head // z_group, z_stride_b, z_stride_h)
    feature = block_f * BLOCK_F + tl.arange(0, BLOCK_F)
    value = block_e * BLOCK_E + tl.arange(0, BLOCK_E)
    if REVERSE:
        turn, stored = all_chunks - 1 - chunk, chunks - 1 - local
    else:
        turn, stored = chunk, local
    if LOGS:
        keys_base = scan_rows_of(keys_ptr, batch, head, keys_stride_b, keys_stride_h)
        references = scan_rows_of(references_ptr, batch, head, references_stride_b, references_stride_h)
        after = tl.load(references + turn + 1)
    sums = tl.zeros((BLOCK_F, BLOCK_E), dtype=tl.float32)
    for start in range(0, CHUNK, BLOCK_N):
        row = chunk * CHUNK + start + tl.arange(0, BLOCK_N)
        y = load_scan_tile(y_base, row[None, :], length, y_stride_n, feature[:, None], features)
        z = load_scan_tile(z_base, row[:, None], length, z_stride_n, value[None, :], values)
        if LOGS:
            weight = tl.exp((load_scan_logs(keys_base, row, length, keys_stride_n) - after).to(tl.float32))
            y = y.to(tl.float32) * weight[None, :]
        sums = tl.dot(y.to(DOT), z.to(DOT), sums, input_precision="ieee")
    target = sums_ptr + (sequence.to(tl.int64) * chunks + stored) * features * values
    inside = (feature < features)[:, None] & (value < values)[None, :]
    tl.store(target + feature[:, None] * values + value[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=SCAN_COUNTS)
def scan_walk_kernel(
    sums_ptr, state_ptr, end_ptr, references_ptr,
    state_stride_b, state_stride_h, state_stride_f, state_stride_e,
    references_stride_b, references_stride_h,
    heads, features, values, state_features, state_values, chunks, walked,
    LOGS: tl.constexpr, STATE: tl.constexpr, END: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Replace the sums of each chunk by those of all chunks that the walk has passed before, and keep the last ones."""
    pid = tl.program_id(0)
    size = features * values
    blocks = tl.cdiv(size, BLOCK)
    sequence = pid // blocks
    batch, head = sequence // heads, sequence % heads
    element = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = element < size
    feature, value = (element // values).to(tl.int64), (element % values).to(tl.int64)
    of_state = (feature < state_features) & (value < state_values)
    if STATE:
        base = scan_rows_of(state_ptr, batch, head, state_stride_b, state_stride_h)
        state = tl.load(base + feature * state_stride_f + value * state_stride_e, mask=of_state, other=0.0)
        state = state.to(tl.float32)
    else:
        state = tl.zeros((BLOCK,), dtype=tl.float32)
    place = sums_ptr + sequence.to(tl.int64) * chunks * size + element
    if LOGS:
        references = scan_rows_of(references_ptr, batch, head, references_stride_b, references_stride_h) + walked
    for chunk in tl.range(0, chunks, num_stages=STAGES):
        added = tl.load(place, mask=inside, other=0.0)
        tl.store(place, state, mask=inside)
        if LOGS:
            before, after = tl.load(references + chunk), tl.load(references + chunk + 1)
            state = state * tl.exp((before - after).to(tl.float32)) + added
        else:
            state = state + added
        place += size
    if END:
        end = end_ptr + sequence.to(tl.int64) * state_features * state_values
        tl.store(end + feature * state_values + value, state, mask=of_state)


@triton.jit
def add_scan_sums(
    out, x_base, row, length, x_stride_n, sums_base, value, features, values,
    DOT: tl.constexpr, SCALED: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Add what rows take of the sums before their chunk; where `SCALED`, those may be beyond the range of float16."""
    for start in range(0, features, BLOCK_F):
        feature = start + tl.arange(0, BLOCK_F)
        x = load_scan_tile(x_base, row[:, None], length, x_stride_n, feature[None, :], features)
        sums = load_scan_tile(sums_base, feature[:, None], features, values, value[None, :], values)
        if SCALED:
            greatest = tl.max(tl.max(tl.abs(sums), 1), 0)
            greatest = tl.where(greatest > 0.0, greatest, 1.0)
            out += tl.dot(x.to(DOT), (sums / greatest).to(DOT)) * greatest
        else:
            out = tl.dot(x.to(DOT), sums.to(DOT), out, input_precision="ieee")
    return out


@triton.jit
def add_scan_pairs(out, pairs, z, DOT: tl.constexpr, SCALED: tl.constexpr):
    """Add what rows take of the keys in their chunk, by the weights of pairs, which may be large in the same way."""
    if SCALED:
        greatest = tl.max(tl.abs(pairs), 1)
        greatest = tl.where(greatest > 0.0, greatest, 1.0)[:, None]
        out += tl.dot((pairs / greatest).to(DOT), z.to(DOT)) * greatest
    else:
        out = tl.dot(pairs.to(DOT), z.to(DOT), out, input_precision="ieee")
    return out


@triton.jit(do_not_specialize=SCAN_COUNTS)
def scan_rows_kernel(
    x_ptr, y_ptr, z_ptr, rows_ptr, keys_ptr, references_ptr, sums_ptr, out_ptr,
    x_stride_b, x_stride_h, x_stride_n,
    y_stride_b, y_stride_h, y_stride_n,
    z_stride_b, z_stride_h, z_stride_n,
    rows_stride_b, rows_stride_h, rows_stride_n,
    keys_stride_b, keys_stride_h, keys_stride_n,
    references_stride_b, references_stride_h,
    heads, x_group, y_group, z_group, length, features, values, out_values, first_chunk, chunks, all_chunks,
    LOGS: tl.constexpr, SUMS: tl.constexpr, REVERSE: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr,
    SCALED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Compute a block of rows and values: what they take of the sums before their chunk, and of the keys in it."""
    pid = tl.program_id(0)
    blocks_e = tl.cdiv(values, BLOCK_E)
    block_e, rest = pid % blocks_e, pid // blocks_e
    block_n, rest = rest % (CHUNK // BLOCK_N), rest // (CHUNK // BLOCK_N)
    local, sequence = rest % chunks, rest // chunks
    batch, head = sequence // heads, sequence % heads
    chunk = first_chunk + local
    x_base = scan_rows_of(x_ptr, batch, head // x_group, x_stride_b, x_stride_h)
    y_base = scan_rows_of(y_ptr, batch, head // y_group, y_stride_b, y_stride_h)
    z_base = scan_rows_of(z_ptr, batch, head // z_group, z_stride_b, z_stride_h)
    row = chunk * CHUNK + block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    value = block_e * BLOCK_E + tl.arange(0, BLOCK_E)
    if REVERSE:
        turn, stored = all_chunks - 1 - chunk, chunks - 1 - local
    else:
        turn, stored = chunk, local
    if LOGS:
        references = scan_rows_of(references_ptr, batch, head, references_stride_b, references_stride_h)
        before, after = tl.load(references + turn), tl.load(references + turn + 1)
        rows_base = scan_rows_of(rows_ptr, batch, head, rows_stride_b, rows_stride_h)
        keys_base = scan_rows_of(keys_ptr, batch, head, keys_stride_b, keys_stride_h)
        log = load_scan_logs(rows_base, row, length, rows_stride_n)
        row_high, row_low = split_log(log + after)
    out = tl.zeros((BLOCK_N, BLOCK_E), dtype=tl.float32)
    if SUMS:
        sums_base = sums_ptr + (sequence.to(tl.int64) * chunks + stored) * features * values
        out = add_scan_sums(
            out, x_base, row, length, x_stride_n, sums_base, value, features, values, DOT, SCALED, BLOCK_F
        )
        if LOGS:
            out = out * tl.exp((log + before).to(tl.float32))[:, None]
    if REVERSE:
        first, last = block_n * BLOCK_N, CHUNK
    else:
        first, last = 0, (block_n + 1) * BLOCK_N
    for begin in range(first, last, BLOCK_N):
        key = chunk * CHUNK + begin + tl.arange(0, BLOCK_N)
        pairs = tl.zeros((BLOCK_N, BLOCK_N), dtype=tl.float32)
        for start in range(0, features, BLOCK_F):
            feature = start + tl.arange(0, BLOCK_F)
            x = load_scan_tile(x_base, row[:, None], length, x_stride_n, feature[None, :], features)
            y = load_scan_tile(y_base, key[None, :], length, y_stride_n, feature[:, None], features)
            pairs = tl.dot(x.to(DOT), y.to(DOT), pairs, input_precision="ieee")
        if REVERSE:
            seen = row[:, None] <= key[None, :]
        else:
            seen = row[:, None] >= key[None, :]
        if LOGS:
            key_high, key_low = split_log(load_scan_logs(keys_base, key, length, keys_stride_n) - after)
            exponents = (row_high[:, None] + key_high[None, :]) + (row_low[:, None] + key_low[None, :])
            pairs = pairs * tl.exp(tl.where(seen, exponents, float("-inf")))
        else:
            pairs = tl.where(seen, pairs, 0.0)
        z = load_scan_tile(z_base, key[:, None], length, z_stride_n, value[None, :], values)
        out = add_scan_pairs(out, pairs, z, DOT, SCALED)
    target = out_ptr + (sequence.to(tl.int64) * length + row[:, None]) * out_values + value[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=(row < length)[:, None] & (value < out_values)[None, :])
