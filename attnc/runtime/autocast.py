"""Autocast: attention runs in its lower precision, as PyTorch's own does, and never twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

CallGiven = ParamSpec("CallGiven")
CallResult = TypeVar("CallResult")


def lower_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return query, key and value as autocast hands them to `scaled_dot_product_attention`; float64 is left alone."""
    device = next((tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)), "")
    if not device or not _is_autocast_on(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) if _is_eligible(tensor, device) else tensor for tensor in tensors)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which products are taken in the precision of their factors."""
    return torch.autocast(device, enabled=False) if _is_autocast_on(device) else nullcontext()


def unaffected_by_autocast(function: Callable[CallGiven, CallResult]) -> Callable[CallGiven, CallResult]:
    """Run what computes on a CPU in the precision that it chose itself."""

    @wraps(function)
    def run(*args: CallGiven.args, **kwargs: CallGiven.kwargs) -> CallResult:
        with without_autocast("cpu"):
            return function(*args, **kwargs)

    return run


def _is_autocast_on(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # torch knows no autocast of `meta`, and says so


def _is_eligible(tensor: object, device: str) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype is not torch.float64
        and tensor.device.type == device
    )
