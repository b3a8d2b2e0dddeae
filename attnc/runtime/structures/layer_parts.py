"""What a layer does between its projections and its attention: heads, rotary positions, and a look at its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from attnc.runtime.blocks import bind_tables, head_pairs
from attnc.runtime.calls import call_sizes
from attnc.runtime.checks import check_inputs
from attnc.runtime.dispatch import Operation
from attnc.runtime.preparation import Preparation, prepare
from attnc.runtime.structures.projection import Projection


def check_tokens(layer: str, width: int, x: Tensor, context: Tensor | None) -> None:
    """Raise TypeError or ValueError where what a layer is called with is not (B, N, width)."""
    for name, tensor in (("x", x), ("context", context)):
        if tensor is None and name == "context":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{layer}: {name} is {type(tensor).__name__}, expected a tensor")
        if tensor.dim() != 3 or tensor.shape[2] != width:
            raise ValueError(f"{layer}: {name} has shape {tuple(tensor.shape)}, expected (B, N, {width})")
        if not tensor.is_floating_point():
            raise TypeError(f"{layer}: {name} is {str(tensor.dtype).removeprefix('torch.')}, expected floats")
    if context is not None and context.shape[0] != x.shape[0]:
        raise ValueError(f"{layer}: x has {x.shape[0]} batch entries, context has {context.shape[0]}")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn (B, N, heads * D) into (B, heads, N, D), a view."""
    return torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Turn (B, heads, N, D) into (B, N, heads * D)."""
    return x.transpose(1, 2).flatten(2)


def rotate_pairs(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate elements `t` and `t + D/2` of each row by `position * theta ** (-2 t / D)` (Su et al., *RoFormer*).

    Args:
        x: (B, H, N, D).
        positions: (N,), or (B or 1, H, N).
        theta: the base.
    """
    return prepare((Preparation("rotary", theta),), x, positions)


def positions_from(start: int, count: int, like: Tensor, step: int = 1) -> Tensor:
    """Return positions `start`, `start + step`, ... on the device of a tensor."""
    return torch.arange(start, start + count * step, step, device=like.device)


def aligned_positions(
    operation: Operation, query: Tensor, key: Tensor, value: Tensor, inputs: Mapping[str, object]
) -> Tensor:
    """Return the positions of queries where more than lengths decides them: (B or 1, H, N)."""
    inputs = {**inputs, "K": key.shape[2]}  # what an attention that shortens its keys counts from
    read = [
        one for one in operation.program.tensors if one.name in inputs and one.name in operation.program.mask_tables
    ]
    program, sizes = replace(operation.program, tensors=tuple(read), summaries=()), call_sizes(query, key, value)
    tables = bind_tables(program, check_inputs(program, inputs, sizes, query.device, query.dtype), sizes)
    shift = head_pairs(program, sizes, tables, torch.float64, query.device).shift
    assert shift is not None
    per_head = shift.reshape(shift.shape or (1,) * 6).expand(-1, sizes.kv_heads, 1, sizes.g, 1, 1)
    return per_head.reshape(-1, sizes.H, 1) + torch.arange(sizes.N, device=query.device)


def project_state(layer: nn.Module, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Load the state dict of a layer with dense projections into one with others.

    Args:
        layer: whose projections take the nearest matrices of their structures.
        state: `NAME.weight` for each projection, and everything else under the layer's own names.

    Returns:
        The relative error of each projection, see `Projection.from_dense`.

    Raises:
        KeyError: a projection has no dense matrix in `state`.
        RuntimeError: what is left of `state` is not what is left of the layer's.
    """
    rest, errors = dict(state), {}
    for name, module in layer.named_children():
        if isinstance(module, Projection):
            errors[name] = module.from_dense(rest.pop(f"{name}.weight"))
    own = layer.state_dict()
    kept = {name: tensor for name, tensor in own.items() if name.partition(".")[0] in errors}
    layer.load_state_dict({**rest, **kept})
    return errors
