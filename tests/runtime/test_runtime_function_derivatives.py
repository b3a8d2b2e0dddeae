"""Derivatives of every operator and function, as gradients of kernels and of the CPU program, twice, and forward."""

import pytest
import torch
from patterns import attention_of, module_of, outputs_and_gradients, tensors

from attnc.reference.dense import reference

TERMS = (
    "s + w[b, j] // 0.7",
    "s // 0.7 + w[b, j]",
    "s + i // w[b, j]",
    "s + 3.0 // w[b, j]",
    "s * (w[b, j] // s)",
    "s + 3.0 % w[b, j]",
    "s + w[b, j] % 0.7",
    "s + w[b, j] % (h + 0.3)",
    "s % w[b, j]",
    "i % w[b, j] + s",
    "s + floor(w[b, j] * s)",
    "s + int(w[b, j] * 3) * w[b, j]",
    "s / w[b, j]",
    "s + 1 / w[b, j]",
    "s + abs(w[b, j]) ** 1.3",
    "s + 1.3 ** w[b, j]",
    "s ** 3 * w[b, j]",
    "abs(s) ** abs(w[b, j])",
    "abs(s - w[b, j])",
    "min(s, w[b, j], 0.3)",
    "max(s, 0.5 * w[b, j])",
    "clamp(s, -abs(w[b, j]), 0.8)",
    "exp(0.3 * s) * w[b, j]",
    "exp2(s - w[b, j])",
    "log(abs(s) + abs(w[b, j]) + 0.1)",
    "log2(1.5 + tanh(s * w[b, j]))",
    "sqrt(1 + s * s * w[b, j] * w[b, j])",
    "softcap(s, abs(w[b, j]) + 0.5)",
    "sigmoid(s) * w[b, j]",
    "erf(s + w[b, j])",
    "sin(s * w[b, j]) + cos(s - w[b, j])",
    "s if s > w[b, j] else w[b, j] * s",
    "s + sum(t < 3, w[b, (j + t) % M] * sin(s + t))",
)
"""Scores in which a learned tensor and the score are operands of everything that the language has."""

SIZES = {"B": 2, "H": 2, "G": 1, "N": 9, "M": 11, "D": 8, "E": 8}

ROUNDED = [term for term in TERMS if "//" in term or "%" in term or "floor" in term or "int" in term]
SMOOTH = [pytest.param(term, marks=pytest.mark.slow) for term in TERMS if term not in ROUNDED]


def case(term, dtype):
    """Return the checked attention, the compiled function and arguments: at no place does a derivative jump."""
    text = f"attention one {{ input w: float[B, M]\n mask j <= i + 2\n score {term} }}"
    query, key, value = tensors(**SIZES, dtype=dtype)
    draw = torch.Generator().manual_seed(4)
    w = torch.rand((SIZES["B"], SIZES["M"]), generator=draw, dtype=torch.float64) + 0.25
    signs = torch.randint(0, 2, w.shape, generator=draw) * 2 - 1
    w = (w * signs).to(dtype).requires_grad_()
    return attention_of(text), module_of(text).one, (query, key, value, w)


def of_reference(attention, leaves):
    query, key, value, w = leaves
    return outputs_and_gradients(
        lambda: reference(attention, query, key, value, {"w": w}, return_lse=True, dtype=torch.float64), leaves, True
    )


@pytest.mark.parametrize("term", TERMS)
def test_gradients_of_the_cpu_program(term, monkeypatch):
    check_gradients(term, "cpu", monkeypatch)


@pytest.mark.parametrize("term", [*ROUNDED, *SMOOTH])
def test_gradients_of_kernels(term, monkeypatch):
    check_gradients(term, "triton", monkeypatch)


def check_gradients(term, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    attention, function, leaves = case(term, torch.float32)
    query, key, value, w = leaves
    found = outputs_and_gradients(lambda: function(query, key, value, w=w, return_lse=True), leaves, True)
    for mine, exact in zip(found, of_reference(attention, leaves), strict=True):
        size = max(1.0, float(exact[exact.isfinite()].abs().max()))
        torch.testing.assert_close(mine.double(), exact.double(), rtol=5e-5, atol=5e-5 * size)


@pytest.mark.parametrize("term", [*ROUNDED, *SMOOTH])
def test_second_derivatives_and_forward_mode(term):
    _, function, leaves = case(term, torch.float64)

    def run(query, key, value, w):
        return function(query, key, value, w=w)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, check_fwd_over_rev=True)
