"""The work that an attention cannot avoid: floating-point operations, and bytes that are read and written once."""

from __future__ import annotations

import math

import torch

from attnc.bench.cases import Shape
from attnc.bench.contender import Case
from attnc.bench.names import Mode

FORWARDS = {Mode.FORWARD: 1.0, Mode.BACKWARD: 2.5, Mode.BOTH: 3.5}
"""Work in forward passes: a backward pass has five products of all pairs where a forward pass has two."""


def useful_flops(shape: Shape, pairs: float, mode: Mode = Mode.FORWARD) -> float:
    """Return the floating-point operations on the allowed pairs of one head: two for each multiply-add."""
    forward = 2.0 * pairs * (shape.head_size + shape.value_size) * shape.heads * shape.batch
    return forward * FORWARDS[mode]


def least_bytes(case: Case, mode: Mode) -> int:
    """Return the bytes that cross the memory bus if every tensor does so once, whatever the mask.

    A forward pass reads query, key, value and the pattern's tensors, and writes the output. A backward pass reads
    those, the output and its gradient, and writes the gradients of query, key and value.
    """
    shape, size = case.shape, case.query.element_size()
    given = sum(math.prod(tensor.shape) for tensor in (case.query, case.key, case.value)) * size
    out = shape.batch * shape.heads * shape.queries * shape.value_size * size
    data = sum(value.nbytes for value in case.data.values() if isinstance(value, torch.Tensor))
    forward = given + out + data
    backward = 2 * given + 2 * out + data
    return {Mode.FORWARD: forward, Mode.BACKWARD: backward, Mode.BOTH: forward + backward}[mode]
