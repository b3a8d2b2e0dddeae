"""SDPA forced to one of its backends, or the reason why that backend cannot compute a case."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnc.bench.contender import Case, Contender, Unavailable, first_line
from attnc.bench.machine import free_memory

KERNELS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}

HEADINGS = {"sdpa-flash": "flash", "sdpa-efficient": "mem", "sdpa-cudnn": "cudnn", "sdpa-math": "math"}
"""How the warnings begin that say why a backend is not used."""

ON_CPU = ("sdpa-flash", "sdpa-math")

SCORES = 3
"""Tensors of all scores that the math backend holds at once, besides the copies that autograd keeps."""


def forced(name: str, free: Contender, case: Case) -> Contender:
    """Return the contender `free`, which calls SDPA, with the backend of that name alone.

    Raises:
        Unavailable: the backend cannot, and why.
    """
    if case.device.type == "cpu" and name not in ON_CPU:
        raise Unavailable("PyTorch has no such backend on a CPU")
    if name == "sdpa-math":
        shape = case.shape
        scores = shape.batch * shape.heads * shape.queries * shape.keys * max(4, case.query.element_size())
        if scores * SCORES * (2 if case.backward else 1) > 0.6 * free_memory(case.device):
            raise Unavailable(f"all of its scores take {scores / 2**30:.1f} GiB, several times over")
    around = partial(sdpa_kernel, KERNELS[name])
    with warnings.catch_warnings(record=True) as said, torch.set_grad_enabled(case.backward):
        warnings.simplefilter("always")
        try:
            with around():
                free.run(*_leaves(case))
        except RuntimeError as error:
            raise Unavailable(_reason(name, error, [str(one.message) for one in said])) from None
    _, comma, how = free.name.partition(",")
    return replace(free, name=f"{name}{comma}{how}", around=around)


def _leaves(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().requires_grad_(case.backward) for tensor in (case.query, case.key, case.value))


def _reason(name: str, error: RuntimeError, said: list[str]) -> str:
    """Return why: SDPA warns of one backend after the other, a heading and reasons, then refuses in general."""
    reasons: list[str] = []
    ours = False
    for text in (one.split("(Triggered internally")[0].strip() for one in said):
        if "not used because" in text:
            ours = text.lower().startswith(HEADINGS[name])
        elif ours and text:
            reasons.append(text)
    return "; ".join(dict.fromkeys(reasons))[:200] or first_line(error)
