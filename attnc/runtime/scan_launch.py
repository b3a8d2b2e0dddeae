"""The host's side of the kernels of causal scans: tiles, references of logs, and memory for sums of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnc.runtime.kernel_launch import LEAST_BLOCK, KernelCall, KernelLaunch, launchable
from attnc.runtime.kernel_math import tl  # type: ignore[attr-defined]
from attnc.runtime.scan_kernels import scan_rows_kernel, scan_sums_kernel, scan_walk_kernel
from attnc.runtime.scan_logs import ScanLogs, running_references
from attnc.runtime.tiles import Tiles, padded, target_of

SUMS_BYTES = 1 << 30
"""Memory for the sums of chunks that are computed together, unless one chunk of each head has more."""

WALK_BLOCK = 512
"""Elements of a state that one program carries along the chunks."""


@dataclass(frozen=True, slots=True)
class ScanTiles:
    """How the kernels of a scan are cut: rows, features and values of a block, threads and stages."""

    rows: int
    features: int
    values: int
    warps: int
    stages: int


SCAN_TILES = {
    ("sm_80", 2): ScanTiles(64, 64, 128, 8, 2),
    ("sm_86", 2): ScanTiles(64, 64, 64, 4, 2),
    ("sm_90", 2): ScanTiles(64, 64, 128, 8, 2),
    ("sm_100", 2): ScanTiles(64, 64, 128, 8, 2),
    ("gfx942", 2): ScanTiles(64, 64, 64, 4, 1),
    ("sm_80", 4): ScanTiles(32, 32, 64, 4, 1),
    ("sm_86", 4): ScanTiles(32, 32, 64, 4, 1),
    ("sm_90", 4): ScanTiles(32, 32, 64, 4, 1),
    ("sm_100", 4): ScanTiles(32, 32, 64, 4, 1),
    ("gfx942", 4): ScanTiles(32, 32, 64, 4, 1),
    ("cpu", 2): ScanTiles(64, 64, 128, 4, 1),
    ("cpu", 4): ScanTiles(64, 64, 128, 4, 1),
}
"""Blocks by target and bytes of an element, of what is compiled without spills; smaller sizes have smaller blocks, and
up to 64 values four warps."""


def launch_scan(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    rows: Tensor | None,
    keys: Tensor | None,
    state: Tensor | None,
    state_log: Tensor | None,
    heads: int,
    reverse: bool,
    chunk: int,
    with_state: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernels of a scan of checked arguments, see `causal_scan`.

    Returns:
        The output, the state at the end and its log; the last two are empty where not wanted, or there is none.
    """
    batch, _, length, features = x.shape
    values = z.shape[3]
    logs = ScanLogs.of(rows, keys, state_log, x, has_state=state is not None)
    out = z.new_empty((batch, heads, length, values), dtype=out_dtype)
    end = z.new_empty((batch, heads, features, values) if with_state else (0,), dtype=torch.float32)
    log = z.new_empty((0,), dtype=torch.float64)
    if logs is not None and with_state:
        log = logs.start if not length else torch.maximum(logs.keys.amax(-1), logs.start)
        log = log.clone(memory_format=torch.contiguous_format) if log is logs.start else log.contiguous()
    if not out.numel() or not features:
        out.zero_()
        if with_state:
            end.zero_() if state is None else end.copy_(state)
        return out, end, log
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():  # Triton launches on the current one
        for launch in scan_launches(x, y, z, logs, state, out, end, heads, reverse, chunk):
            options = launch.arguments["num_warps"], launch.arguments["num_stages"]
            call = KernelCall(x, Tiles(launch.block, launch.block, *options))
            launchable(launch.kernel, call)[(launch.programs,)](**launch.arguments)
    return out, end, log


def scan_launches(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    logs: ScanLogs | None,
    state: Tensor | None,
    out: Tensor,
    end: Tensor,
    heads: int,
    reverse: bool,
    chunk: int,
) -> Iterator[KernelLaunch]:
    """Yield the launches of a scan in their order, where there is anything to compute.

    Args:
        x: of rows.
        y: of keys.
        z: of keys.
        logs: of weights.
        state: to start from.
        out: memory of the output, contiguous.
        end: memory of the state at the end, contiguous; empty where it is not wanted.
        heads: number of heads.
        reverse: walk from the end.
        chunk: rows of a chunk, at least; a power of two is taken.
    """
    features = x.shape[3]
    x, y, z = (in_whole_vectors(part) for part in (x, y, z))
    batch, length, sizes = x.shape[0], x.shape[2], (x.shape[3], z.shape[3])
    dtype = min((x.dtype, y.dtype, z.dtype), key=lambda one: (one.itemsize, str(one)))
    tiles = scan_tiles(x.device, dtype, *sizes)
    chunk = padded(min(chunk, length))
    tiles = replace(tiles, rows=min(tiles.rows, chunk))
    all_chunks = -(-length // chunk)
    at_once = max(1, SUMS_BYTES // (batch * heads * sizes[0] * sizes[1] * 4))
    references = None if logs is None else running_references(logs, chunk, reverse).contiguous()
    common = {
        **_scan_matrices(heads, x=x, y=y, z=z),
        **_log_arguments(logs, references),
        "heads": heads, "length": length, "features": sizes[0], "values": sizes[1], "out_values": out.shape[3],
        "all_chunks": all_chunks, "SCALED": dtype is torch.float16, "DOT": _SCAN_DOTS[dtype],
        "LOGS": logs is not None, "REVERSE": reverse, "CHUNK": chunk,
        "BLOCK_N": tiles.rows, "BLOCK_F": tiles.features, "BLOCK_E": tiles.values,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    carry, walked = state, 0
    state_shape = batch, heads, features, out.shape[3]
    while walked < all_chunks:
        chunks = min(at_once, all_chunks - walked)
        first = all_chunks - walked - chunks if reverse else walked
        goes_on = walked + chunks < all_chunks
        needs_sums = chunks > 1 or goes_on or carry is not None or end.numel() > 0
        sums = None
        if needs_sums:
            sums = x.new_empty((batch, heads, chunks, *sizes), dtype=torch.float32)
            leaves = x.new_empty(state_shape, dtype=torch.float32) if goes_on and not end.numel() else end
            yield from _sums_of_chunks(common, sums, carry, leaves, references, tiles, first, walked, state_shape[2:])
            carry = leaves
        yield _rows_of_chunks(common, sums, out, tiles, first, chunks)
        walked += chunks


def in_whole_vectors(part: Tensor) -> Tensor:
    """Return a tensor whose rows can be read as vectors: itself, or a copy with zeros behind the rows."""
    size, vector = part.shape[3], LEAST_BLOCK
    strides = part.stride()
    if strides[3] == 1 and not any(stride % (16 // part.itemsize) for stride in strides[:3]) and size % vector == 0:
        return part
    room = part.new_zeros((*part.shape[:3], -(-size // vector) * vector))
    room[..., :size] = part
    return room


def scan_tiles(device: torch.device, dtype: torch.dtype, features: int, values: int) -> ScanTiles:
    """Return the blocks for a device and a type, not larger than the sizes are."""
    tiles = SCAN_TILES[target_of(device), max(2, dtype.itemsize)]
    block = min(tiles.values, padded(values))
    warps = tiles.warps if block > 64 else min(tiles.warps, 4)
    return replace(tiles, features=min(tiles.features, padded(features)), values=block, warps=warps)


_SCAN_DOTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
"""Types of the factors of products; sums are float32."""


def _scan_matrices(heads: int, **parts: Tensor) -> dict[str, Any]:
    """Return arguments that say where rows of tensors are, and how many heads share them."""
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found[f"{name}_ptr"] = part
        found[f"{name}_group"] = heads // part.shape[1]
        found |= {f"{name}_stride_{axis}": stride for axis, stride in zip("bhn", part.stride(), strict=False)}
    return found


def _log_arguments(logs: ScanLogs | None, references: Tensor | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    given = {"rows": None, "keys": None} if logs is None else {"rows": logs.rows, "keys": logs.keys}
    for name, part in {**given, "references": references}.items():
        found[f"{name}_ptr"] = part
        batch, head, last = (0, 0, 0) if part is None else _broadcast_strides(part)
        found |= {f"{name}_stride_b": batch, f"{name}_stride_h": head}
        if name != "references":
            found[f"{name}_stride_n"] = last
    return found


def _broadcast_strides(part: Tensor) -> tuple[int, int, int]:
    """Return the strides of logs, 0 where all entries of the batch or all heads share them."""
    batch, head, last = part.stride()
    return batch if part.shape[0] > 1 else 0, head if part.shape[1] > 1 else 0, last


def _sums_of_chunks(
    common: dict[str, Any],
    sums: Tensor,
    carry: Tensor | None,
    leaves: Tensor,
    references: Tensor | None,
    tiles: ScanTiles,
    first: int,
    walked: int,
    of_state: tuple[int, ...],
) -> Iterator[KernelLaunch]:
    """Yield the launches that leave in `sums` what each chunk starts from, and in `leaves` what is behind them."""
    batch, heads, chunks, features, values = sums.shape
    blocks = -(-features // tiles.features) * -(-values // tiles.values)
    arguments = {"sums_ptr": sums, "first_chunk": first, "chunks": chunks}
    names = scan_sums_kernel.arg_names if hasattr(scan_sums_kernel, "arg_names") else ()
    yield KernelLaunch(scan_sums_kernel, batch * heads * chunks * blocks, _arguments_of(names, common | arguments))
    strides = (0, 0, 0, 0) if carry is None else carry.stride()
    size = features * values
    block = min(WALK_BLOCK, padded(size))
    arguments = {
        "sums_ptr": sums, "state_ptr": carry, "end_ptr": leaves if leaves.numel() else None,
        "references_ptr": references,
        "references_stride_b": common["references_stride_b"], "references_stride_h": common["references_stride_h"],
        **{f"state_stride_{axis}": stride for axis, stride in zip("bhfe", strides, strict=True)},
        "heads": heads, "features": features, "values": values, "chunks": chunks, "walked": walked,
        "state_features": of_state[0], "state_values": of_state[1],
        "LOGS": references is not None, "STATE": carry is not None, "END": leaves.numel() > 0,
        "BLOCK": block, "STAGES": 4, "num_warps": 4, "num_stages": 4,
    }  # fmt: skip
    yield KernelLaunch(scan_walk_kernel, batch * heads * -(-size // block), arguments)


def _rows_of_chunks(
    common: dict[str, Any], sums: Tensor | None, out: Tensor, tiles: ScanTiles, first: int, chunks: int
) -> KernelLaunch:
    batch, heads, _, values = out.shape
    blocks = common["CHUNK"] // tiles.rows * -(-values // tiles.values)
    arguments = {"sums_ptr": sums, "out_ptr": out, "first_chunk": first, "chunks": chunks, "SUMS": sums is not None}
    names = scan_rows_kernel.arg_names if hasattr(scan_rows_kernel, "arg_names") else ()
    return KernelLaunch(scan_rows_kernel, batch * heads * chunks * blocks, _arguments_of(names, common | arguments))


def _arguments_of(names: tuple[str, ...], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a kernel has, and its options."""
    return {name: value for name, value in arguments.items() if name in names or name.startswith("num_")}
