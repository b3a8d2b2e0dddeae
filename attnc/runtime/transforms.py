"""What `torch.func` and forward mode need of code that is made of torch operations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
"""Types of tensors whose operations no subclass sees."""


def is_watched() -> bool:
    """Tell whether something traces, transforms or records operations: compiler, mode, transform or profiler."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or are_transforms_active():
        return True
    if torch._C._is_torch_function_mode_enabled() or torch._C._get_tracing_state() is not None:
        return True
    return torch._C._autograd._profiler_enabled()


def are_transforms_active() -> bool:
    """Tell whether a transform of `torch.func` (`grad`, `jvp`, `vmap`, ...) is being computed."""
    return torch._C._are_functorch_transforms_active()


def are_nested_tangents() -> bool:
    """Tell whether tangents of tangents are being computed, as by `jacfwd` inside `jacfwd`."""
    if torch.compiler.is_compiling() or not are_transforms_active():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1


def have_tangents(tensors: Iterable[Tensor]) -> bool:
    """Tell whether one of the tensors is a dual one, whose tangent an operator would drop silently.

    Tensors that `torch.compile` traces with hide their tangents: whether it traces at a dual level has to do.
    """
    if torch.autograd.forward_ad._current_level < 0:
        return False
    if torch.compiler.is_compiling():
        return True
    duals = [torch.autograd.forward_ad.unpack_dual(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    return any(dual.tangent is not None for dual in duals)


def may_hold(condition: Tensor) -> bool:
    """Tell whether a condition holds somewhere; true where there are no values: under `vmap`, in traces, on `meta`."""
    if torch.compiler.is_compiling() or condition.is_meta or is_batched(condition):
        return True
    return detect_fake_mode(condition) is not None or bool(condition.any())


def may_need_gradient(value: Tensor) -> bool:
    """Tell whether a gradient may flow through a value: tensors of transforms do not always say so themselves."""
    return value.requires_grad or (are_transforms_active() and value.is_floating_point())


def is_batched(tensor: Tensor) -> bool:
    """Tell whether a tensor stands for many under `vmap`, in which case its values cannot decide anything."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def refuse_batched(name: str, tensors: Iterable[Tensor]) -> None:
    """Refuse to look at the values of tensors that stand for many.

    Raises:
        RuntimeError: one of them does.
    """
    if any(is_batched(tensor) for tensor in tensors):
        raise RuntimeError(
            f"{name}: checked=True looks at values, which vmap hides: check before, by a call outside of vmap, "
            "and leave `checked` out inside"
        )


def refuse_gradients_in_batches(name: str, grads: Iterable[Tensor | None]) -> None:
    """Refuse what autograd's own batching hands to a backward pass: it knows neither operators nor many views.

    Raises:
        RuntimeError: a gradient stands for many.
    """
    if any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads):
        raise RuntimeError(
            f"{name} takes no batches of gradients (is_grads_batched, vectorize): torch.func.jacrev, or "
            "torch.func.vmap over the result of torch.func.vjp, computes the same"
        )
