"""Outputs and gradients against the dense definition in float64, and calls in CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bundle.data import DTYPES, Pattern, Shape, make_arguments, widened

FORWARD_FACTOR, BACKWARD_FACTOR = 2.0, 3.0
"""Errors that are allowed, in errors of plain PyTorch in the same precision: FlashAttention's own rule."""

UNITS, GRADIENT_UNITS = 8, 32
"""Units in the last place that are always allowed: on few numbers PyTorch may be right by luck."""

SUMMED = 4.0
"""How much more gradients of small tensors may be off: they are sums over all pairs, in another order."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new tensors with NaN, and those of integers with their greatest value, while the block runs."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the greatest absolute difference; infinities may agree, and a NaN on either side is one."""
    one, other = one.double(), other.double()
    difference = torch.where(one == other, 0.0, (one - other).abs())
    return float(difference.max()) if difference.numel() else 0.0


def allowance(same: Tensor, exact: Tensor, dtype: str, factor: float, units: int) -> float:
    """Return what an error may be: so many times that of plain PyTorch in the same precision."""
    finite = exact[torch.isfinite(exact)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return factor * distance(same, exact) + units * torch.finfo(DTYPES[dtype]).eps * max(largest, 1.0)


def verdict(found: Tensor, same: Tensor, exact: Tensor, dtype: str, factor: float, units: int) -> dict[str, Any]:
    """Compare a result with the exact one, beside that of plain PyTorch."""
    error, allowed = distance(found, exact), allowance(same, exact, dtype, factor, units)
    return {"ok": error <= allowed, "error": error if math.isfinite(error) else None, "allowed": allowed}


def check(pattern: Pattern, shape: Shape, dtype: str, device: str) -> dict[str, Any]:
    """Compare output, log-sum-exp and every gradient of one call."""
    found = output_verdicts(pattern, shape, dtype, device) | gradient_verdicts(pattern, shape, dtype, device)
    wrong = [name for name, one in found.items() if not one["ok"]]
    return {"ok": not wrong, "wrong": wrong, "compared": found}


def output_verdicts(pattern: Pattern, shape: Shape, dtype: str, device: str) -> dict[str, dict[str, Any]]:
    """Compare what a call without gradients returns."""
    tensors, inputs = make_arguments(pattern, shape, dtype, device)
    options = {"return_lse": True} if pattern.softmax else {}
    dense = pattern.function("reference")
    with torch.no_grad():
        with poisoned():
            found = pattern.function()(*tensors, **inputs, **options)
        same = dense(*tensors, **inputs, **options)
        exact = dense(*(tensor.double() for tensor in tensors), **widened(inputs), **options)
    if not pattern.softmax:
        return {"output": verdict(found, same, exact, dtype, FORWARD_FACTOR, UNITS)}
    both = zip(("output", "lse"), found, same, exact, strict=True)
    return {name: verdict(*one, dtype, FORWARD_FACTOR, UNITS) for name, *one in both}


def gradient_verdicts(pattern: Pattern, shape: Shape, dtype: str, device: str) -> dict[str, dict[str, Any]]:
    """Compare the output of a call with gradients, and all of them."""
    call, dense = pattern.function(), pattern.function("reference")
    with poisoned():
        found = with_gradients(pattern, call, shape, dtype, device)
    same = with_gradients(pattern, dense, shape, dtype, device)
    exact = with_gradients(pattern, dense, shape, dtype, device, wide=True)
    verdicts = {}
    for name in found:
        factor, units = (FORWARD_FACTOR, UNITS) if name == "output, trained" else (BACKWARD_FACTOR, GRADIENT_UNITS)
        verdicts[name] = verdict(found[name], same[name], exact[name], dtype, factor, units)
        if name.removeprefix("gradient of ") in pattern.differentiable:
            one = verdicts[name]
            one["allowed"] *= SUMMED
            one["ok"] = one["error"] is not None and one["error"] <= one["allowed"]
    return verdicts


def with_gradients(
    pattern: Pattern,
    function: Callable[..., Any],
    shape: Shape,
    dtype: str,
    device: str,
    *,
    wide: bool = False,
    others: bool = True,
) -> dict[str, Tensor]:
    """Return the output and all gradients, for the same gradient of the output every time.

    Args:
        pattern: for whose arguments they are.
        function: what is differentiated.
        shape: of the arguments.
        dtype: of them.
        device: where they are.
        wide: whether they are widened to float64.
        others: whether gradients of arguments besides query, key and value are among them.
    """
    tensors, inputs = make_arguments(pattern, shape, dtype, device)
    if wide:
        tensors, inputs = tuple(tensor.double() for tensor in tensors), widened(inputs)  # type: ignore[assignment]
    names = pattern.differentiable if others else []
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*tensors, *(inputs[name] for name in names))]
    out = function(*leaves[:3], **(inputs | dict(zip(names, leaves[3:], strict=True))))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(23)).to(device, DTYPES[dtype])
    gradients = torch.autograd.grad(out, leaves, upstream.to(out.dtype))
    named = zip(("query", "key", "value", *names), gradients, strict=True)
    return {"output, trained": out.detach()} | {f"gradient of {name}": one for name, one in named}


def capture(pattern: Pattern, shape: Shape, dtype: str) -> dict[str, Any]:
    """Capture a call and its gradients in a CUDA graph, replay it on other data, and compare with the call itself.

    The kernels are the same, so that nothing may differ; a wait for the device inside of the call ends the capture.
    """
    tensors, inputs = make_arguments(pattern, shape, dtype, "cuda")
    call = pattern.function()
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    upstream = torch.randn(leaves[0].shape, device="cuda").to(DTYPES[dtype])

    def step() -> tuple[Tensor, ...]:
        out = call(*leaves, **inputs)
        return (out, *torch.autograd.grad(out, leaves, upstream))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled before anything is captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    torch.cuda.synchronize()
    found = [tensor.clone() for tensor in captured]
    error = max(distance(one, same) for one, same in zip(found, step(), strict=True))
    return {"ok": error == 0.0, "error": error if math.isfinite(error) else None, "allowed": 0.0}
