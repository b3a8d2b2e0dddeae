"""Kernels of structured projections against dense matrices: outputs and gradients."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bundle.checks import BACKWARD_FACTOR, FORWARD_FACTOR, GRADIENT_UNITS, UNITS, poisoned, verdict
from bundle.data import DTYPES

MODULE = "projections"
"""The file of the bundle that has the projections, `MODULE.py`."""

STRUCTURES = tuple(
    (dtype, kind, *sizes)
    for kind in ("BlockDiagonalProjection", "MonarchProjection")
    for dtype, sizes in (
        ("bfloat16", (1024, 1024, 16, 4096)),
        ("bfloat16", (1024, 4096, 16, 1000)),
        ("float16", (4096, 1024, 32, 65)),
        ("bfloat16", (768, 768, 16, 100)),
        ("float16", (96, 60, 12, 63)),
        ("float32", (512, 512, 8, 257)),
    )
)
"""Types, classes, inputs, outputs, blocks, tokens."""

DRY_STRUCTURES = (("float32", "MonarchProjection", 24, 36, 6, 20),)


@cache
def module() -> ModuleType:
    """Return the module of projections."""
    return import_module(MODULE)


def check(dtype: str, kind: str, sizes: list[int], device: str) -> dict[str, Any]:
    """Compare one call and its gradients with float64, beside plain PyTorch in the same type."""
    inputs, outputs, blocks, tokens = sizes
    torch.manual_seed(0)
    made = getattr(module(), kind)(inputs, outputs, blocks).to(device, DTYPES[dtype])
    x = torch.randn(tokens, inputs, device=device).to(DTYPES[dtype])
    grad = torch.randn(tokens, outputs, device=device).to(DTYPES[dtype])
    chain, other, *_ = made.table(x.device).names()
    found = _results(made, "kernel" if device != "cpu" else other, x, grad)
    same = _results(made, chain, x, grad)
    exact = _results(made.double(), chain, x.double(), grad.double())
    names = ("output", "gradient of x", *(f"gradient of {name}" for name, _ in made.named_parameters()))
    compared = {}
    for name, *results in zip(names, found, same, exact, strict=True):
        factor, units = (BACKWARD_FACTOR, GRADIENT_UNITS) if "gradient" in name else (FORWARD_FACTOR, UNITS)
        compared[name] = verdict(*results, dtype, factor, units)
    wrong = [name for name, one in compared.items() if not one["ok"]]
    return {"ok": not wrong, "wrong": wrong, "compared": compared}


def _results(made: Any, form: str, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return output and gradients by a form."""
    given = x.clone().requires_grad_()
    chosen = module().ProjectionForm(form)
    with poisoned(), module().try_tiles({made.measured_as: chosen}):
        if form == "kernel":
            suits = made.table(x.device).named(form).suits
            assert suits(given, tuple(made.parameters())), "no kernel suits this call"
        out = made(given)
        return [out.detach(), *torch.autograd.grad(out, [given, *made.parameters()], grad)]
