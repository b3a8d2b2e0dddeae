"""Whole path, from scores to weights: every normaliser with every weight, scale and kind of term."""

import math

import pytest
import torch
from dense_formula import ON_TRITON, compare, make_tensors, pattern, read

import attnc

pytestmark = pytest.mark.filterwarnings("ignore::attnc.compiler.PatternWarning", "ignore:invalid value:RuntimeWarning")

Z = torch.tensor([0.3, -0.7], dtype=torch.float64)
U = torch.linspace(0.1, 2, 10, dtype=torch.float64).view(2, 5)
TAU = torch.tensor([1.3, 0.8], dtype=torch.float64)


def of_head(name):
    return lambda p, x: read(x[name], p.h)


RULES = {
    "softmax": {},
    "softmax(sink = z[h] + 0.01 * i - b)": {"sink": lambda p, x: read(x["z"], p.h) + 0.01 * p.i - p.b},
    "sigmoid(bias = -log(M))": {"rule": "sigmoid", "bias": lambda p, x: -math.log(p.M)},
    "sigmoid(bias = z[h] * (i - j))": {"rule": "sigmoid", "bias": lambda p, x: read(x["z"], p.h) * (p.i - p.j)},
    "relu": {"rule": "relu"},
    "relu(power = 1.5)": {"rule": "relu", "power": 1.5},
    "rows": {"rule": "rows", "score": lambda s, p, x: s * 0.1 + 2},
    "none": {"rule": "none"},
}
WEIGHTS = {
    "": None,
    "weight 0.9 ** abs(i - j)": lambda p, x: 0.9 ** (p.i - p.j).abs(),
    "weight u[h, j % 5]; weight 1 / (1 + b)": lambda p, x: read(x["u"], p.h, p.j % 5) / (1.0 + p.b),
    "weight float(int((i + j) % 3 == 0))": lambda p, x: ((p.i + p.j) % 3 == 0).double(),
}
SCALES = {
    "": None,
    "scale 0.3": lambda p, x: 0.3,
    "scale tau[h] * log(2 + max(i, 0)) / sqrt(D)": lambda p, x: (
        read(x["tau"], p.h) * torch.log(2.0 + p.i.clamp(min=0)) / math.sqrt(p.D)
    ),
}
CASES = [(rule, weight, scale) for rule in RULES for weight in WEIGHTS for scale in SCALES]
DECLARED = "learned z: float[H] = 0.5; learned u: float[H, 5] = 1; input tau: float[H]"


def weigh(rule, weight, scale, call_scale=None):
    score = "score s * 0.1 + 2" if rule == "rows" else ""
    compare(
        pattern(
            DECLARED, "mask i - j < 9 and j - i < 4 or (i + j) % 7 == 3", f"normalize {rule}", weight, scale, score
        ),
        make_tensors(queries=15, keys=21, head_size=4),
        {"z": Z, "u": U, "tau": TAU},
        mask=lambda p, x: ((p.i - p.j < 9) & (p.j - p.i < 4)) | ((p.i + p.j) % 7 == 3),
        weight=WEIGHTS[weight],
        scale=SCALES[scale],
        call_scale=call_scale,
        **RULES[rule],
    )


@pytest.mark.parametrize(("rule", "weight", "scale"), CASES[::5])
def test_rules(rule, weight, scale):
    weigh(rule, weight, scale)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "weight", "scale"), CASES)
def test_rules_at_a_scale_of_the_call(rule, weight, scale):
    weigh(rule, weight, scale, call_scale=-0.77)


@pytest.mark.parametrize(("rule", "weight", "scale"), CASES[::7])
def test_rules_in_the_kernel(rule, weight, scale, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", ON_TRITON)
    weigh(rule, weight, scale)


TERMS = {
    "t": lambda p, x: torch.as_tensor(x["t"], dtype=torch.float64),
    "b * 0.5": lambda p, x: p.b * 0.5,
    "h * 0.5": lambda p, x: p.h * 0.5,
    "i * t": lambda p, x: p.i * x["t"],
    "t * j": lambda p, x: p.j * x["t"],
    "float(M)": lambda p, x: torch.tensor(float(p.M)),
    "t if on else 1.0": lambda p, x: torch.as_tensor(x["t"], dtype=torch.float64),
}
PLACES = ("score s + {}", "score s * {}", "score {}", "weight {}", "normalize sigmoid(bias = {})")


@pytest.mark.parametrize("target", ["auto", ON_TRITON])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("place", PLACES)
def test_terms_of_any_shape(place, term, target, monkeypatch):
    """A term may be one number, or one number a row or key; alone or beside others."""
    monkeypatch.setenv("ATTNC_TARGET", target)
    f = TERMS[term]
    formula = {
        "score s + {}": {"score": lambda s, p, x: s + f(p, x)},
        "score s * {}": {"score": lambda s, p, x: s * f(p, x)},
        "score {}": {"score": lambda s, p, x: 0 * s + f(p, x)},
        "weight {}": {"weight": f},
        "normalize sigmoid(bias = {})": {"rule": "sigmoid", "bias": f},
    }[place]
    compare(
        pattern("input t: float; input on: bool", place.format(term)),
        make_tensors(heads=4, kv_heads=2, queries=7, keys=11),
        {"t": torch.tensor(0.4, dtype=torch.float64), "on": True},
        **formula,
    )


@pytest.mark.parametrize("target", ["auto", ON_TRITON])
@pytest.mark.parametrize("large", [500, 5000])
@pytest.mark.parametrize("mask", ["true", "causal", "j != 3"])
def test_pairs_of_weight_0_may_score_high(large, mask, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    compare(
        pattern(f"mask {mask}", "weight j % 2", f"score s + ({large}.0 if j % 2 == 0 else 0)"),
        make_tensors(queries=8, keys=8),
        mask={"true": None, "causal": lambda p, x: p.j <= p.i, "j != 3": lambda p, x: p.j != 3}[mask],
        weight=lambda p, x: (p.j % 2).double(),
        score=lambda s, p, x: s + torch.where(p.j % 2 == 0, float(large), 0.0),
    )


def test_pairs_of_weight_0_may_score_high_in_float32():
    compare(
        pattern("mask causal", "weight j % 2", "score s + (5000.0 if j % 2 == 0 else 0)"),
        dtype=torch.float32,
        mask=lambda p, x: p.j <= p.i,
        weight=lambda p, x: (p.j % 2).double(),
        score=lambda s, p, x: s + torch.where(p.j % 2 == 0, 5000.0, 0.0),
    )


@pytest.mark.parametrize("rule", ["rows", "none"])
def test_denominators_of_0(rule):
    compare(
        pattern("score (1 if j % 2 == 0 else -1)", "mask causal", f"normalize {rule}"),
        mask=lambda p, x: p.j <= p.i,
        rule=rule,
        score=lambda s, p, x: 0 * s + torch.where(p.j % 2 == 0, 1.0, -1.0),
    )


@pytest.mark.parametrize("mask", ["false", "j < i - 5"])
@pytest.mark.parametrize("rule", ["softmax", "softmax(sink = z[h])", "sigmoid", "relu(power = 2)", "rows", "none"])
def test_rows_without_keys(mask, rule):
    formula = {"sink": of_head("z")} if "sink" in rule else {"rule": rule.split("(")[0]}
    formula |= {"power": 2} if "power" in rule else {}
    compare(
        pattern("learned z: float[H] = 0", f"mask {mask}", f"normalize {rule}"),
        x={"z": Z},
        mask=lambda p, x: (p.j < p.i - 5) & (mask != "false"),
        **formula,
    )


@pytest.mark.parametrize("target", ["auto", ON_TRITON])
@pytest.mark.parametrize("rule", ["softmax", "sigmoid", "relu", "rows", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", ["j != 5", "keep[b, j] and causal"])
def test_masked_pairs_never_matter(rule, bad, mask, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    tensors = [tensor.float() if target == ON_TRITON else tensor for tensor in make_tensors(queries=20, keys=20)]
    query, key, value = tensors
    spoiled_key, spoiled_value = key.clone(), value.clone()
    spoiled_key[:, :, 5], spoiled_value[:, :, 5, 2] = bad, bad
    module = attnc.loads(
        pattern("input keep: bool[B, M]", f"mask {mask}", f"normalize {rule}", "score s * s + 0.1 * j")
    )
    keep = torch.arange(20).expand(2, 20) != 5
    results = []
    for given in ((query, key, value), (query, spoiled_key, spoiled_value)):
        leaves = [tensor.clone().requires_grad_(target != ON_TRITON) for tensor in given]
        out = module.foo(*leaves, keep=keep)
        if target != ON_TRITON:
            out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for clean, spoiled in zip(*results, strict=True):
        if clean is not None:
            torch.testing.assert_close(spoiled, clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["auto", ON_TRITON])
@pytest.mark.parametrize("rule", ["softmax", "sigmoid", "relu", "rows", "none"])
@pytest.mark.parametrize("where", range(3))
def test_nan_reaches_the_rows_that_see_it(rule, where, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    tensors = [tensor.float() for tensor in make_tensors(batch=1, queries=90, keys=90)]
    tensors[where][:, :, 11, 2] = math.nan
    module = attnc.loads(pattern("mask -4 < i - j < 6", f"normalize {rule}"))
    row = torch.arange(90)
    seeing = (row == 11) if where == 0 else (row - 11 > -4) & (row - 11 < 6)
    columns = torch.arange(8) == 2 if where == 2 else torch.ones(8, dtype=torch.bool)
    for found in (module.foo(*tensors), module.foo_reference(*tensors)):
        assert torch.equal(found.isnan()[0, 0], seeing[:, None] & columns[None, :])


def test_unselected_operands_never_matter():
    t = torch.tensor([0.5, -2.0], dtype=torch.float64)

    def score(s, p, x):
        t = read(x["t"], p.h)
        chosen = torch.where(t > 0, torch.log(torch.where(t > 0, t, 1.0)), t)
        root = torch.where(s > 0, torch.sqrt(torch.where(s > 0, s, 1.0)), 0.0)
        return s + chosen * p.j + root

    compare(
        pattern(
            "learned t: float[H] = 1",
            "mask causal and (j < 3 or 10 // (j - 2) < 9)",
            "score s + (log(t[h]) if t[h] > 0 else t[h]) * j + where(s > 0, sqrt(s), 0)",
        ),
        x={"t": t},
        mask=lambda p, x: (p.j <= p.i) & ((p.j < 3) | (10 // (p.j - 2).clamp(min=1) < 9)),
        score=score,
    )


def test_gradcheck():
    module = attnc.loads(
        pattern(
            "learned t: float[H, 9] = 0; input a: float",
            "mask window(5) or sinks(1)",
            "score softcap(s * a + t[h, i - j + 4], 3)",
            "normalize softmax(sink = t[h, 0])",
            "scale a",
        )
    )
    tensors = [tensor.requires_grad_() for tensor in make_tensors(1, 2, 5, 7, 3, kv_heads=1)]
    t = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda q, k, v, t, a: module.foo(q, k, v, t=t, a=a, return_lse=True), (*tensors, t, a), fast_mode=True
    )
