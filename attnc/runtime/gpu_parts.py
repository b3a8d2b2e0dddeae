"""A pass of several by PyTorch's FlashAttention, and the others by kernels that start from what it has summed.

An output with its log-sum-exp is all that a kernel hands on, so nothing is merged afterwards. For gradients the library
is given the output and the log-sum-exp of all passes together: each pair's weight follows from those, so that what it
returns is exactly the share of its own pairs, to which that of the others is added.
"""

from __future__ import annotations

from torch import Tensor

from attnc.runtime.gpu_library import library_name, takes_scale, takes_tensors, window_backward, window_forward
from attnc.runtime.launch import Begun
from attnc.runtime.program import LibraryPart, Program
from attnc.runtime.tuned import takes_library


def part_of_call(
    program: Program, tensors: tuple[Tensor, Tensor, Tensor], scale: float | None, *, dropout: bool, backward: bool
) -> LibraryPart | None:
    """Return the pass that the library is to compute: it can, and was measured to be faster so; None for none.

    Args:
        program: with the passes that are for these lengths.
        tensors: query, key and value.
        scale: the caller's factor on the dot product.
        dropout: whether weights are dropped.
        backward: whether it is the backward pass.
    """
    part, (query, key, value) = program.part, tensors
    if part is None or dropout or not takes_scale(scale) or not _suits(part, query, key, value):
        return None
    name = library_name(program, backward=backward, part=True)
    return part if takes_library(name, query, value.shape[3], (query.shape[2], key.shape[2])) else None


def _suits(part: LibraryPart, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether the library takes the part of these tensors: it has rows and keys there."""
    length = query.shape[2]
    return length == key.shape[2] and length > max(part.rows[0], part.keys[0]) and takes_tensors(query, key, value)


def part_forward(part: LibraryPart, tensors: tuple[Tensor, Tensor, Tensor], scale: float | None) -> Begun:
    """Return what the library makes of a part, for kernels to begin with."""
    return Begun(part.rows[0], *window_forward(part.window, _own_tensors(part, tensors), scale))


def add_part_gradients(
    part: LibraryPart,
    sums: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    results: tuple[Tensor, Tensor],
    scale: float | None,
) -> None:
    """Add the gradients of a part to those of the other passes.

    Args:
        part: computed by the library.
        sums: gradients of query, key and value by all other passes; changed in place.
        grad_out: of the output.
        tensors: query, key and value.
        results: output and log-sum-exp of all passes together.
        scale: the caller's factor on the dot product.
    """
    sides = part.rows, part.keys, part.keys
    known = _own(part.rows, results[0]), _own(part.rows, results[1])
    own = _own_tensors(part, tensors)
    found = window_backward(part.window, _own(part.rows, grad_out), own, known, scale)
    for side, total, grad in zip(sides, sums, found, strict=True):
        _own(side, total).add_(grad)


def _own_tensors(part: LibraryPart, tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = tensors
    return _own(part.rows, query), _own(part.keys, key), _own(part.keys, value)


def _own(side: tuple[int, int | None], tensor: Tensor) -> Tensor:
    """Return the rows or keys `[B, H, N, ...]` of a part, as a view."""
    first, past = side
    length = tensor.shape[2]
    return tensor.narrow(2, first, (length if past is None else min(past, length)) - first)
