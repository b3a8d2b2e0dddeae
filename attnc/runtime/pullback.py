"""Vector-Jacobian products of plain torch functions, for code that is itself differentiated or transformed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnc.runtime.transforms import are_transforms_active

Results = tuple[Tensor, ...]


def pull_back(
    function: Callable[..., Results], tensors: Sequence[Tensor], vectors: Sequence[Tensor | None], again: bool
) -> Results:
    """Return the derivatives by each of `tensors` of the sum of products of results with `vectors`.

    Tangents and transforms pass through.

    Args:
        function: takes all `tensors` and returns as many results as there are vectors; in it, they are independent of
            each other even where one was computed from another.
        tensors: floats.
        vectors: one for each result; None for 0.
        again: whether the derivatives will be differentiated, by the tensors or by what these were computed from.
    """
    if are_transforms_active():
        results, pull = torch.func.vjp(function, *tensors)  # type: ignore[misc]
        return pull(  # type: ignore[no-any-return]
            tuple(
                torch.zeros_like(result) if vector is None else vector
                for result, vector in zip(results, vectors, strict=True)
            )
        )
    own = [_independent(tensor) for tensor in tensors]
    with torch.enable_grad():
        results = function(*own)
        followed = [
            (result, vector)
            for result, vector in zip(results, vectors, strict=True)
            if vector is not None and result.requires_grad
        ]
        if not followed:
            return tuple(torch.zeros_like(tensor) for tensor in tensors)
        of, by = zip(*followed, strict=True)
        found = torch.autograd.grad(of, own, by, create_graph=again, allow_unused=True)
    return tuple(
        torch.zeros_like(tensor) if part is None else part for part, tensor in zip(found, tensors, strict=True)
    )


def _independent(tensor: Tensor) -> Tensor:
    """Return a tensor to differentiate by, which keeps its graph and its tangent; `detach` would drop the tangent."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return tensor.view_as(tensor)
    with torch.no_grad():
        own = tensor.view_as(tensor)
    return own.requires_grad_()
