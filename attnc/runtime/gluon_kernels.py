"""What kernels in Gluon are made of: how tiles move through rings of shared memory, and products of warp groups.

A kernel in Gluon has three partitions (`templates/gluon_kernel.py.jinja`). One warp copies tiles of keys and values
into rings of `STAGES` buffers, by tensor descriptors. Two groups of four warps each compute `ROWS` rows from them. A
buffer has two barriers: one completes when a tile has arrived, the other when both groups have read it. The tile of
turn `n` lies in buffer `n % STAGES`, and both barriers count how often that buffer has gone round.

Where Triton has no Gluon the functions stay plain Python and are never called.
"""

# ruff: noqa: ANN001, ANN201 - Triton's values have no useful Python types
# mypy: disable-error-code="attr-defined, no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    gluon: Any
    gl: Any
    mbarrier: Any
    tma: Any
    mma_v2: Any
    warpgroup_mma: Any
    warpgroup_mma_wait: Any
    fence_async_shared: Any
    load_described: Any
    store_described: Any
    TensorDescriptor: Any
else:
    try:
        from triton.experimental import gluon
        from triton.experimental.gluon import language as gl
        from triton.experimental.gluon.language.nvidia.hopper import (
            fence_async_shared,
            mbarrier,
            mma_v2,
            tma,
            warpgroup_mma,
            warpgroup_mma_wait,
        )
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

        # Triton before 3.8 has longer names for them
        load_described = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
        store_described = tma.async_store if hasattr(tma, "async_load") else tma.async_copy_shared_to_global
    except (ImportError, AttributeError, AssertionError):  # the last where Triton interprets and no longer says so
        from types import SimpleNamespace

        gluon = SimpleNamespace(jit=lambda *function, **_: function[0] if function else lambda kernel: kernel)
        gl = SimpleNamespace(constexpr=object)
        mbarrier = tma = mma_v2 = warpgroup_mma = warpgroup_mma_wait = fence_async_shared = None
        load_described = store_described = TensorDescriptor = None


@gluon.jit
def load_query(query_desc, query, query_ready, batch, head, row):
    """Start copying the rows of both groups of warps, from `row` on; rows past the last one become 0."""
    groups: gl.constexpr = query.shape[0]
    rows: gl.constexpr = query.shape[3]
    for number in gl.static_range(groups):
        mbarrier.expect(query_ready.index(number), query_desc.block_type.nbytes)
        place = [batch, head, row + number * rows, 0]
        load_described(query_desc, place, query_ready.index(number), query.index(number))


@gluon.jit
def load_tiles(
    key_desc,
    value_desc,
    keys,
    values,
    key_ready,
    key_free,
    value_ready,
    value_free,
    batch,
    kv_head,
    begin,
    end,
    turn,
):
    """Copy the tiles `begin .. end - 1` of keys and values as buffers become free; return the next turn."""
    stages: gl.constexpr = keys.shape[0]
    rows: gl.constexpr = keys.shape[3]
    for tile in range(begin, end):
        stage = turn % stages
        # The wait for the round before this one: in the first round a buffer is free.
        phase = (turn // stages & 1) ^ 1
        mbarrier.wait(key_free.index(stage), phase)
        mbarrier.expect(key_ready.index(stage), key_desc.block_type.nbytes)
        load_described(key_desc, [batch, kv_head, tile * rows, 0], key_ready.index(stage), keys.index(stage))
        mbarrier.wait(value_free.index(stage), phase)
        mbarrier.expect(value_ready.index(stage), value_desc.block_type.nbytes)
        load_described(value_desc, [batch, kv_head, tile * rows, 0], value_ready.index(stage), values.index(stage))
        turn += 1
    return turn


@gluon.jit
def start_scores(q, keys, key_ready, turn, layout: gl.constexpr):
    """Wait for a tile of keys and start multiplying its transpose by the rows `q`; a wait gives the dot products."""
    stages: gl.constexpr = keys.shape[0]
    rows: gl.constexpr = q.shape[0]
    columns: gl.constexpr = keys.shape[3]
    stage = turn % stages
    k = keys.index(stage).reshape([columns, keys.shape[4]]).permute((1, 0))
    mbarrier.wait(key_ready.index(stage), turn // stages & 1)
    nothing = gl.zeros([rows, columns], gl.float32, layout)
    return warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)


@gluon.jit
def start_sums(p, values, value_ready, turn, acc):
    """Wait for a tile of values and start adding its rows, weighted by `p`, to `acc`; a wait gives the sums."""
    stages: gl.constexpr = values.shape[0]
    stage = turn % stages
    v = values.index(stage).reshape([values.shape[3], values.shape[4]])
    mbarrier.wait(value_ready.index(stage), turn // stages & 1)
    return warpgroup_mma(p, v, acc, is_async=True)


@gluon.jit
def free_buffer(free, turn):
    """Say that this group of warps has read the tile of a turn."""
    stages: gl.constexpr = free.shape[0]
    mbarrier.arrive(free.index(turn % stages), count=1)


@gluon.jit
def scale_rows(acc, alpha):
    """Multiply the rows of `acc`, whose layout may be another than that of `alpha`."""
    return acc * gl.convert_layout(alpha, gl.SliceLayout(1, acc.type.layout))[:, None]


@gluon.jit
def as_weights(p, dtype: gl.constexpr, layout: gl.constexpr):
    """Return weights in the type and the registers from which a product with values takes them."""
    return gl.convert_layout(p.to(dtype), layout)
