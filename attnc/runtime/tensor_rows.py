"""Tensors as kernels can read and write their rows: as they are, or copied where elements lie too far apart."""

from __future__ import annotations

import torch
from torch import Tensor

from attnc.runtime.tiles import FEW_ROWS

WIDEST_ROW = 2**23
"""Elements between rows below which offsets inside of a tile of 256 rows take 32 bits."""

DESCRIPTOR_ALIGNMENT = 16
"""Bytes: a tensor descriptor's matrix, and each of its rows, starts at a multiple of it."""

ROW_STEP = 16
"""Elements: Triton reads rows in vectors where they are a multiple of it apart, and else number by number."""


def is_describable(matrices: Tensor) -> bool:
    """Tell whether a program can make a tensor descriptor for a matrix of keys or values `(B, G, M, D)`.

    A tensor without data, as `torch.compile` traces with, is taken to lie in memory that begins at a multiple of
    `DESCRIPTOR_ALIGNMENT`; code that it compiles moves tensors that do not.
    """
    size = matrices.element_size()
    if matrices.numel() == 0 or matrices.stride(3) != 1 or matrices.stride(2) < matrices.shape[3]:
        return False
    steps = [step for length, step in zip(matrices.shape[:3], matrices.stride()[:3], strict=True) if length > 1]
    if matrices.stride(2) * size % DESCRIPTOR_ALIGNMENT or any(step * size % DESCRIPTOR_ALIGNMENT for step in steps):
        return False
    has_data = type(matrices) in (Tensor, torch.nn.Parameter) and not matrices.is_meta
    start = matrices.data_ptr() if has_data else matrices.storage_offset() * size
    return start % DESCRIPTOR_ALIGNMENT == 0


def with_contiguous_rows(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where elements of a row or rows of a tile lie too far apart."""
    return tensor if tensor.stride(-1) == 1 and tensor.stride(-2) < WIDEST_ROW else tensor.contiguous()


def in_rows(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors, or copies and memory for the output, as kernels can read and write their rows."""
    query, key, value = (with_contiguous_rows(tensor) for tensor in (query, key, value))
    written = with_contiguous_rows(out)
    if query.shape[2] > FEW_ROWS and query.element_size() <= 2:
        query, key, value = (_with_aligned_rows(tensor) for tensor in (query, key, value))
        written = written if value.shape[3] == out.shape[3] else out.new_empty((*out.shape[:3], value.shape[3]))
    return query, key, value, written


def _with_aligned_rows(tensor: Tensor) -> Tensor:
    """Return a tensor of 16-bit numbers, or a copy with zeros behind its rows where those could not be read as vectors.

    Number by number they take as many addresses, for which registers do not suffice. The copy is linear in the rows.
    """
    width = tensor.shape[3]
    if width % ROW_STEP == 0 and tensor.stride(2) % ROW_STEP == 0 and is_describable(tensor):
        return tensor
    return torch.nn.functional.pad(tensor, (0, -width % ROW_STEP)).contiguous()
