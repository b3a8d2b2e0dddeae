"""Causal scans by kernels against their definition: outputs, states and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bundle.checks import BACKWARD_FACTOR, FORWARD_FACTOR, GRADIENT_UNITS, UNITS, poisoned, verdict
from bundle.data import DTYPES

MODULE = "causal_scan"
"""The file of the bundle that has the function, `MODULE.py`."""

SCANS = (
    ("bfloat16", (2, 4, 2, 257, 64, 64), "decay", False),
    ("float16", (1, 4, 4, 1000, 128, 65), "decay", True),
    ("bfloat16", (1, 2, 1, 4096, 256, 128), "none", False),
    ("float16", (2, 2, 2, 100, 33, 16), "steep", False),
    ("float32", (1, 4, 2, 300, 64, 65), "decay", True),
    ("bfloat16", (1, 2, 2, 65, 16, 16), "none", True),
)
"""Types; batch, heads, heads of keys, length, features, values; weights; whether the walk is from the end."""

DRY_SCANS = (("float32", (1, 2, 1, 40, 16, 5), "decay", False),)

RATES = {"none": None, "decay": 0.02, "steep": 50.0}
"""How fast the logs of weights fall with the distance."""


@cache
def function() -> Callable[..., tuple[Tensor, Any, Any]]:
    """Return the function that is checked."""
    return import_module(MODULE).causal_scan  # type: ignore[no-any-return]


def check(dtype: str, sizes: list[int], weights: str, reverse: bool, device: str) -> dict[str, Any]:
    """Compare one call and its gradients with float64, beside plain PyTorch in the same type."""
    tensors, logs = make_scan(dtype, sizes, weights, reverse, device)
    found = _call(function(), tensors, logs, reverse)
    same = _call(definition, tensors, logs, reverse)
    exact = _call(definition, [part.double() for part in tensors], logs, reverse)
    names = ("output", "state", "gradient of x", "gradient of y", "gradient of z")
    compared = {}
    for name, *results in zip(names, found, same, exact, strict=True):
        factor, units = (BACKWARD_FACTOR, GRADIENT_UNITS) if "gradient" in name else (FORWARD_FACTOR, UNITS)
        compared[name] = verdict(*results, dtype, factor, units)
    wrong = [name for name, one in compared.items() if not one["ok"]]
    return {"ok": not wrong, "wrong": wrong, "compared": compared}


def make_scan(
    dtype: str, sizes: list[int], weights: str, reverse: bool, device: str
) -> tuple[list[Tensor], tuple[Tensor | None, Tensor | None]]:
    """Return `x`, `y`, `z` and a gradient of the output, and the logs of rows and keys."""
    batch, heads, key_heads, length, features, values = sizes
    random = torch.Generator(device).manual_seed(0)
    shapes = ((heads, features), (key_heads, features), (key_heads, values), (heads, values))
    tensors = [
        torch.randn(batch, count, length, size, generator=random, device=device).mul_(size**-0.25).to(DTYPES[dtype])
        for count, size in shapes
    ]
    rate = RATES[weights]
    if rate is None:
        return tensors, (None, None)
    place = torch.arange(length, dtype=torch.float64, device=device)[None, None]
    place = place.flip(-1) if reverse else place
    rates = rate * torch.arange(1, heads + 1, dtype=torch.float64, device=device)[None, :, None]
    return tensors, (-rates * place, rates * place)


def _call(
    scan: Callable[..., Any], tensors: list[Tensor], logs: tuple[Tensor | None, Tensor | None], reverse: bool
) -> list[Tensor]:
    """Return output, state and gradients."""
    *given, grad = tensors
    given = [part.clone().requires_grad_() for part in given]
    with poisoned():
        out, state, _ = scan(*given, *logs, reverse=reverse, return_state=True)
        grads = torch.autograd.grad(out, given, grad)
    return [out.detach(), state.detach(), *grads]


def definition(
    x: Tensor, y: Tensor, z: Tensor, rows: Tensor | None, keys: Tensor | None, *, reverse: bool, return_state: bool
) -> tuple[Tensor, Tensor, None]:
    """Compute the same with a weight for every pair."""
    y, z = (part.repeat_interleave(x.shape[1] // part.shape[1], 1) for part in (y, z))
    pairs = x @ y.transpose(-1, -2)
    pairs = pairs.triu() if reverse else pairs.tril()
    of_state = y
    if rows is not None and keys is not None:
        seen = torch.ones(pairs.shape[-2:], dtype=torch.bool, device=x.device)
        exponents = (rows.unsqueeze(-1) + keys.unsqueeze(-2)).masked_fill(
            ~(seen.triu() if reverse else seen.tril()), -torch.inf
        )
        pairs = pairs * exponents.exp().to(x.dtype)
        of_state = y * (keys - keys.amax(-1, keepdim=True)).exp().unsqueeze(-1).to(x.dtype)
    return pairs @ z, of_state.transpose(-1, -2) @ z, None
