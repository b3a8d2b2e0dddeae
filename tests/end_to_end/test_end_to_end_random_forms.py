"""Random surroundings of pairs, as text: forms of linear cost, features, shorter keys and states against the oracle."""

import inspect
import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import attnc
from attnc.checking import check_source
from attnc.diagnostics import CompileError
from attnc.reference import reference
from attnc.source import SourceFile

PREPARED = st.lists(st.sampled_from(["unit", "rms", "rotary", "rotary(theta = 50)"]), max_size=3)
POSITIVE = ["relu", "elu1", "exp", "square", "favor(8)", "favor(21, seed = 5)", "cosformer"]
MASKS = ["true", "causal", "causal", "causal", "window(5)", "causal and i - j < 9", "i % 3 == j % 3", "j <= i + 2"]
FACTORS = [
    "0.9 ** (i - j)", "exp(-0.1 * abs(i - j))", "(i + 1)", "1 / (j + 1)", "exp(0.2 * i) * exp(-0.2 * j)",
    "rate[h] ** (i - j)", "(1 + 0.1 * h)", "table[j]", "0.5 ** j", "exp2(-0.1 * (h + 1) * (i - j))",
    "(1 - exp2(-5 - h)) ** (i - j)", "exp(0.1 * table[j] - 0.1 * table[i])", "(1 + (i - j) % 3)", "(2 + M)",
]  # fmt: skip
SCALES = ["0.3", "1.0 / (1 + h)", "0.1 * (i + 1)", "1 / sqrt(D)"]
SCORES = ["s * 2", "s / (1 + j)", "s + 0.1", "s * (1 + i) * 0.1", "0.5 * s"]
KEYS = ["mean_pool(3, 2)", "mean_pool(2, 2)", "conv(3, 1)", "project(5, 80)"]


@st.composite
def attentions(draw):
    """The text of an attention with some of all statements that surround its pairs."""
    feature = draw(st.sampled_from([None, "identity", *POSITIVE]))
    lines = [f"prepare {one}" for one in draw(PREPARED)]
    lines += [] if feature is None else [f"feature {feature}"]
    kinds = ["none", "none", "sigmoid"] + (["rows"] * 4 if feature in POSITIVE else ["softmax"] * 2)
    lines.append(f"normalize {draw(st.sampled_from(kinds))}")
    mask = draw(st.sampled_from(MASKS))
    keys = draw(st.sampled_from([None] * 6 + KEYS))
    if feature == "cosformer":  # beyond M, where queries of shorter keys stand, its weights cancel
        keys = None
    if keys is not None:
        lines.append(f"keys {keys}")
        mask = "true" if keys.startswith("project") else draw(st.sampled_from(["true", "causal", "first(j) <= i"]))
    lines.append(f"mask {mask}")
    factors = draw(st.lists(st.sampled_from(FACTORS), max_size=2))
    lines += [f"weight {' * '.join(factors)}"] if factors else []
    for name, choices in (("scale", SCALES), ("score", SCORES)):
        chosen = draw(st.sampled_from([None, None, *choices]))
        lines += [] if chosen is None else [f"{name} {chosen}"]
    lines += draw(st.sampled_from([[], [], ["align start"]]))
    lines += draw(st.sampled_from([[], [], [], ["decompose chunk(7)"], ["decompose none"]]))
    return "learned rate: float[H] = 0.7\n input table: float[?]\n " + "\n ".join(lines)


def compiled(text):
    text = f"attention x {{ {text} }}"
    try:
        return attnc.loads(text), check_source(SourceFile("x", text)).program.attentions[0]
    except CompileError as error:
        assume(error is None)  # what does not fit is refused: another pattern
        raise


def tensors_of(attention, group, queries, keys, seed):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, key, value = make(2, 2 * group, queries, 4), make(2, 2, keys, 4), make(2, 2, keys, 4)
    inputs = {"rate": make(2 * group).abs() * 0.3 + 0.5, "table": make(100).abs() + 0.1}
    for one in attention.tensors:
        if not one.hidden and one.name not in inputs:
            inputs[one.name] = make(*((4, 3) if "filter" in one.name else (5, 80)))
    known = {one.name for one in attention.tensors}
    return query, key, value, {name: value for name, value in inputs.items() if name in known}


def close(found, right):
    size = float(right.detach().abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(found, right, rtol=1e-7, atol=1e-8 * max(1.0, size), equal_nan=True)


def check(text, seed, group, queries, keys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, attention = compiled(text)
    query, key, value, inputs = tensors_of(attention, group, queries, keys, seed)
    leaves = [one.requires_grad_() for one in (query, key, value)]
    exact = reference(attention, *leaves, inputs)
    upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    right = torch.autograd.grad(exact, leaves, upstream, allow_unused=True, materialize_grads=True)
    for call in (module.x, module.x_reference):
        out = call(*leaves, **inputs)
        close(out, exact)
        found = torch.autograd.grad(out, leaves, upstream, allow_unused=True, materialize_grads=True)
        for one, other in zip(found, right, strict=True):
            close(one, other)
    check_states(module, leaves, inputs, exact if queries == keys else None)


def check_states(module, leaves, inputs, exact):
    """Take a sequence in stretches, where that is possible."""
    if exact is None or "state" not in inspect.signature(module.x).parameters:
        return
    found, state, at = [], None, 0
    for end in sorted({1, exact.shape[2] // 3, exact.shape[2]} - {0}):
        stretch = [one[:, :, at:end] for one in leaves]
        if module._x.decomposition.linear.lengths or "cosformer" in repr(module._x.decomposition.feature):
            with pytest.raises(ValueError, match="depend on"):
                module.x(*stretch, **inputs, return_state=True)
            return
        out, state = module.x(*stretch, **inputs, state=state, return_state=True)
        found.append(out)
        at = end
    close(torch.cat(found, 2), exact)


SIZES = st.sampled_from([1, 2, 5, 17, 40, 70])


@settings(suppress_health_check=list(HealthCheck), max_examples=25)
@example("feature exp\n normalize none\n score s + 0.1", 0, 1, 5, 5)
@example("feature favor(8)\n normalize rows\n mask window(5)\n score s + 0.1", 0, 2, 17, 17)
@given(text=attentions(), seed=st.integers(0, 9999), group=st.integers(1, 2), queries=SIZES, keys=SIZES)
def test_random_forms(text, seed, group, queries, keys):
    check(text, seed, group, queries, keys)


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck), max_examples=300)
@given(text=attentions(), seed=st.integers(0, 9999), group=st.integers(1, 2), queries=SIZES, keys=SIZES)
def test_many_random_forms(text, seed, group, queries, keys):
    check(text, seed, group, queries, keys)
