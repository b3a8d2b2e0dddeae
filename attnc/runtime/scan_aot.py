"""Compiling the kernels of causal scans without the device that they are for."""

from __future__ import annotations

import torch

from attnc.runtime.aot import ARCHITECTURES, LENGTH, KernelReport, Recorded, report_launch
from attnc.runtime.scan_launch import scan_launches
from attnc.runtime.scan_logs import ScanLogs
from attnc.runtime.tiles import assume_target

BATCH, HEADS = 2, 4


def compile_scan(
    target: str,
    dtype: torch.dtype,
    features: int,
    values: int,
    *,
    logs: bool = True,
    reverse: bool = False,
    chunk: int = 64,
) -> tuple[KernelReport, ...]:
    """Compile the kernels of a long scan with a state at its end, in the order in which a call runs them.

    Args:
        target: one of `ARCHITECTURES`.
        dtype: of rows and keys.
        features: numbers of a row.
        values: numbers of what is summed.
        logs: whether there are weights.
        reverse: walk from the end.
        chunk: rows of a chunk.

    Raises:
        ValueError: an unknown target.
        RuntimeError: Triton is missing or interprets its kernels.
    """
    if target not in ARCHITECTURES:
        raise ValueError(f"unknown target {target}; known: {', '.join(ARCHITECTURES)}")
    with torch.device("meta"):
        x, y = (torch.empty(BATCH, HEADS, LENGTH, features, dtype=dtype) for _ in range(2))
        z, out = (torch.empty(BATCH, HEADS, LENGTH, values, dtype=dtype) for _ in range(2))
        state, end = (torch.empty(BATCH, HEADS, features, values) for _ in range(2))
        rows, keys = (torch.empty(1, HEADS, LENGTH, dtype=torch.float64) for _ in range(2))
        of_rows = ScanLogs(rows, keys, torch.empty(1, HEADS, dtype=torch.float64)) if logs else None
    with assume_target(target):
        launches = list(scan_launches(x, y, z, of_rows, state, out, end, HEADS, reverse, chunk))
    reports = []
    for launch in launches:
        blocks = {"BLOCK_M": launch.block, "BLOCK_N": launch.block}  # what reports know tiles by
        recorded = Recorded(launch.kernel, launch.kernel.__name__, blocks | launch.arguments)
        reports.append(report_launch(recorded, target, dtype, features))
    return tuple(reports)
