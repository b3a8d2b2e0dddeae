"""The formulas of LANGUAGE.md sections 4 and 6 in plain float64, one dense tensor at a time, for whole-path tests.

Each test writes its pattern twice: as `.attn` text, and as small torch functions of a `Pair`. Nothing of the compiler
is used to compute what is expected, so the package's own reference is tested as well.
"""

import math
import os
from types import SimpleNamespace

import torch

import attnc

ON_TRITON = "triton"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}
ZERO = torch.zeros((), dtype=torch.float64)


def pattern(*statements, head=""):
    """Return the text of `attention foo` with some statements."""
    return f"attention foo{head} {{\n" + "\n".join(statements) + "\n}\n"


def read(table, *index):
    """Return elements of a table, 0 outside of it."""
    index = torch.broadcast_tensors(*(torch.as_tensor(place) for place in index))
    inside = torch.ones(index[0].shape, dtype=torch.bool)
    for place, size in zip(index, table.shape, strict=True):
        inside &= (place >= 0) & (place < size)
    safe = tuple(place.clamp(0, max(size - 1, 0)) for place, size in zip(index, table.shape, strict=True))
    return torch.where(inside, table[safe], torch.zeros((), dtype=table.dtype))


def pairs(batch, heads, queries, keys, head_size=1, shift=None):
    """Return `b h i j r` of all pairs, as int tensors over `[B, H, N, M]`, and the sizes."""
    p = SimpleNamespace(B=batch, H=heads, N=queries, M=keys, D=head_size)
    p.b, p.h = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(heads).view(1, -1, 1, 1)
    p.r, p.j = torch.arange(queries).view(1, 1, -1, 1), torch.arange(keys).view(1, 1, 1, -1)
    p.i = p.r + (keys - queries if shift is None else shift(p))
    return p


def dense(
    query, key, value, x, *, mask=None, score=None, scale=None, weight=None, rule="softmax", sink=None, bias=None,
    power=1, shift=None,
):  # fmt: skip
    """Return output, log-sum-exp (softmax only), weights and mask; differentiable.

    Args:
        query: `(B, H, N, D)`, `key` and `value` with fewer heads perhaps; finite.
        x: inputs and learned tensors by name.
        mask, weight, scale, sink, bias, shift: functions of `(pair, x)`; `shift` gives `i - r`.
        score: function of `(s, pair, x)`.
        rule: `softmax`, `sigmoid`, `relu`, `rows` or `none`, with their `sink`, `bias`, `power`.
    """
    torch.set_default_dtype(torch.float64)  # so that an int tensor times a Python float keeps its precision
    try:
        batch, heads, queries, head_size = query.shape
        group = heads // key.shape[1]
        p = pairs(batch, heads, queries, key.shape[2], head_size, shift and (lambda p: shift(p, x)))
        keys, values = (tensor.double().repeat_interleave(group, 1) for tensor in (key, value))
        shape = (batch, heads, queries, key.shape[2])
        allowed = torch.ones(shape, dtype=torch.bool) if mask is None else mask(p, x).expand(shape)
        factor = 1 / math.sqrt(head_size) if scale is None else scale(p, x)
        s = torch.where(allowed, torch.einsum("bhnd,bhmd->bhnm", query.double(), keys) * factor, ZERO)
        s = s if score is None else score(s, p, x).expand(shape)
        f = torch.ones(shape) if weight is None else torch.as_tensor(weight(p, x)).double().expand(shape)
        if rule == "softmax":
            weights, lse = _softmax(s, f, allowed, sink and sink(p, x).double().expand(*shape[:3], 1))
        else:
            weights, lse = _other(s, f, allowed, rule, bias and bias(p, x), power), None
        seen = torch.where(allowed.unsqueeze(-1), values.unsqueeze(2), ZERO)
        return (weights.unsqueeze(-1) * seen).sum(3), lse, weights, allowed
    finally:
        torch.set_default_dtype(torch.float32)


def _softmax(s, f, allowed, sink):
    top = torch.where(allowed & (f != 0), s, -math.inf).amax(-1, keepdim=True)
    top = top if sink is None else torch.maximum(top, sink)
    top = torch.where(top.isinf(), ZERO, top).detach()
    terms = torch.where(allowed, f * torch.exp((torch.where(allowed, s, ZERO) - top).clamp(max=700)), ZERO)
    total = terms.sum(-1, keepdim=True) + (0 if sink is None else torch.exp(sink - top))
    safe = torch.where(total == 0, 1.0, total)
    lse = torch.where(total == 0, -math.inf, torch.log(safe) + top).squeeze(-1)
    return torch.where(total == 0, ZERO, terms / safe), lse


def _other(s, f, allowed, rule, bias, power):
    match rule:
        case "sigmoid":
            s = torch.sigmoid(s if bias is None else s + bias)
        case "relu":
            s = torch.where(s > 0, s, ZERO) ** power
    weights = torch.where(allowed, f * s, ZERO)
    if rule != "rows":
        return weights
    total = weights.sum(-1, keepdim=True)
    return torch.where(total == 0, ZERO, weights / torch.where(total == 0, 1.0, total))


def make_tensors(batch=2, heads=2, queries=17, keys=17, head_size=8, kv_heads=None, value_size=None, seed=0):
    """Return a query, key and value in float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (
            (batch, heads, queries, head_size),
            (batch, kv_heads or heads, keys, head_size),
            (batch, kv_heads or heads, keys, value_size or head_size),
        )
    )


def assert_close(got, want, tolerance, what):
    """Compare in float64; NaN and infinities must stand at the same places."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, (what, got.shape, want.shape)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}")


def on_triton():
    """Tell whether `ATTNC_TARGET` asks for the kernel."""
    return os.environ.get("ATTNC_TARGET") == ON_TRITON


def compare(text, tensors=None, x=None, *, dtype=None, params=None, call_scale=None, gradients=True, **formula):
    """Compare everything that a compiled pattern offers with the formula.

    Args:
        text: of `attention foo`.
        tensors: query, key, value; by default those of `make_tensors()`.
        x: inputs and learned tensors by name, floats in float64.
        dtype: of query, key and value; None is float64, or float32 on Triton.
        params: values of compile-time parameters.
        call_scale: given at the call.
        gradients: compare those too (not on Triton).
        formula: as in `dense`.
    """
    dtype = dtype or (torch.float32 if on_triton() else torch.float64)
    tensors, x = tensors or make_tensors(), dict(x or {})
    module = attnc.loads(text, **(params or {}))
    gradients = gradients and not on_triton()
    query, key, value = (tensor.detach().to(dtype) for tensor in tensors)
    low = torch.float64 if dtype is torch.float64 else torch.float32
    given = {name: tensor.to(low) if _is_float(tensor) else tensor for name, tensor in x.items()}
    mine = {**dict(zip("qkv", (query, key, value), strict=True)), **given}
    theirs = {name: tensor.double() if _is_float(tensor) else tensor for name, tensor in mine.items()}
    mine, theirs = (
        {n: t.detach().requires_grad_(gradients) if _is_float(t) else t for n, t in each.items()}
        for each in (mine, theirs)
    )
    keywords = {} if call_scale is None else {"scale": call_scale}
    formula |= {} if call_scale is None else {"scale": lambda p, x: call_scale}
    ours = {name: mine[name] for name in x}
    want, want_lse, weights, allowed = dense(
        theirs["q"], theirs["k"], theirs["v"], {name: theirs[name] for name in x}, **formula
    )
    with_lse = formula.get("rule", "softmax") == "softmax"
    got = module.foo(mine["q"], mine["k"], mine["v"], **ours, **keywords, return_lse=with_lse)
    got, lse = got if with_lse else (got, None)
    tolerance = TOLERANCE[dtype]
    assert got.dtype == dtype
    assert_close(got, want, tolerance, "output")
    if lse is not None:
        assert lse.dtype == low
        assert_close(lse, want_lse, tolerance, "log-sum-exp")
    if not on_triton():
        rows = sorted({0, query.shape[2] // 2, query.shape[2] - 1})
        with torch.no_grad():
            assert_close(module.foo_reference(query, key, value, **given, **keywords), want, tolerance, "reference")
            some = module.foo_weights(query, key, rows=rows, **given, **keywords)
        assert_close(some, weights[:, :, rows], tolerance, "weights")
        sizes = {"B": query.shape[0], "H": query.shape[1]}
        assert torch.equal(module.foo_mask(query.shape[2], key.shape[2], **sizes, **given), allowed)
    if gradients:
        _compare_gradients(mine, theirs, (got, lse), (want, want_lse), 10 * tolerance)
    return module


def _compare_gradients(mine, theirs, got, want, tolerance):
    generator = torch.Generator().manual_seed(7)
    totals = []
    factors = [
        torch.randn(result.shape, generator=generator, dtype=torch.float64) for result in want if result is not None
    ]
    for results in (got, want):
        total = 0.0
        for result, factor in zip((result for result in results if result is not None), factors, strict=True):
            total = total + (torch.where(result.isinf(), 0.0, result) * factor.to(result.dtype)).sum().double()
        totals.append(total)
    for total in totals:
        if total.requires_grad:
            total.backward()
    for name, tensor in theirs.items():
        if _is_float(tensor):
            own, other = (t.grad if t.grad is not None else torch.zeros_like(t) for t in (mine[name], tensor))
            assert_close(own, other, tolerance, f"gradient of {name}")


def _is_float(tensor):
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
