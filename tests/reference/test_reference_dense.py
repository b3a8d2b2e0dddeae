"""The oracle against formulas written by hand, its gradients, and every rule for degenerate rows."""

import math
from dataclasses import replace

import pytest
import torch
from expressions import (
    ALIGN_START,
    CAUSAL,
    B,
    H,
    I,
    J,
    M,
    N,
    R,
    add,
    attention,
    call,
    compare,
    integer,
    mul,
    real,
    sub,
)
from torch import nn

from attnc.ir.nodes import (
    FALSE,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Index,
    IndexName,
    Read,
    Score,
    Size,
    SizeName,
    Where,
)
from attnc.ir.program import Align, AlignKind, Deferred, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.types import Type
from attnc.reference import dense_mask, dense_weights, initial_value, reference

F64 = torch.float64
BATCH, HEADS, QUERIES, KEYS, HEAD, VALUE = 2, 4, 5, 7, 6, 3


def make(group=1, queries=QUERIES, keys=KEYS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)  # noqa: E731
    kv = HEADS // group
    return (
        draw(BATCH, HEADS, queries, HEAD),
        draw(BATCH, kv, keys, HEAD),
        draw(BATCH, kv, keys, VALUE),
    )


def real_of(expr):
    return Cast(expr, Type.FLOAT)


def division(left, right):
    return Binary(BinaryOp.DIV, left, right, Type.FLOAT)


def given(name, *dims, kind=TensorKind.INPUT, type=Type.FLOAT, initial=None):
    return Tensor(name, kind, type, dims, initial=initial)


def softmax_of(scores, allowed, value):
    weights = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1)
    return torch.nan_to_num(weights) @ value


def dots(query, key):
    return query @ key.transpose(-1, -2) / math.sqrt(HEAD)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_full_attention_is_sdpa(group):
    query, key, value = make(group)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    out, lse = reference(attention(), query, key, value, return_lse=True)
    torch.testing.assert_close(out, expected)
    scores = dots(query, key.repeat_interleave(group, 1))
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1))
    torch.testing.assert_close(
        reference(attention(), query, key, value, scale=0.3), reference(attention(scale=real(0.3)), query, key, value)
    )


@pytest.mark.parametrize("queries", [1, 5, 7, 9])
def test_causal_stands_at_the_end(queries):
    query, key, value = make(queries=queries)
    allowed = torch.ones(queries, KEYS).tril(KEYS - queries).bool()
    out, lse = reference(attention(mask=CAUSAL), query, key, value, return_lse=True)
    torch.testing.assert_close(out, softmax_of(dots(query, key), allowed, value))
    assert torch.equal(
        dense_mask(attention(mask=CAUSAL), queries, KEYS, batch=2, heads=3), allowed.expand(2, 3, -1, -1)
    )
    empty = ~allowed.any(-1)
    assert (out[:, :, empty] == 0).all()
    assert (lse[:, :, empty] == -math.inf).all()
    assert torch.isfinite(lse[:, :, ~empty]).all()


def test_causal_from_the_start_and_at_a_position():
    query, key, value = make()
    out = reference(attention(mask=CAUSAL, align=ALIGN_START), query, key, value)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(out, expected)
    position = Read("pos", (B,), Type.INT)
    pattern = attention(
        mask=CAUSAL, align=Align(AlignKind.AT, position), tensors=[given("pos", Size(SizeName.BATCH), type=Type.INT)]
    )
    shift = torch.tensor([1, -2])
    mask = dense_mask(pattern, QUERIES, KEYS, batch=2, inputs={"pos": shift})
    for b in range(2):
        assert torch.equal(mask[b, 0], torch.ones(QUERIES, KEYS).tril(int(shift[b])).bool())
    shared = dense_mask(pattern, QUERIES, KEYS, batch=2, inputs={"pos": torch.tensor([1])})
    assert torch.equal(shared[1], mask[0])


def test_alibi_softcap_and_window():
    query, key, value = make()
    slope = Read("slope", (H,), Type.FLOAT)
    start = call("exp2", division(mul(real(-8), real_of(add(H, integer(1)))), real_of(Size(SizeName.HEADS))))
    learned = given("slope", Size(SizeName.HEADS), kind=TensorKind.LEARNED, initial=start)
    capped = mul(real(5), call("tanh", division(Score(), real(5))))
    score = sub(capped, mul(slope, real_of(sub(I, J))))
    window = compare("<", sub(I, J), integer(3))
    pattern = attention(mask=window, score=score, tensors=[learned])
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)], dtype=F64)
    torch.testing.assert_close(initial_value(learned, {SizeName.HEADS: HEADS}), slopes)
    i, j = torch.arange(QUERIES)[:, None] + KEYS - QUERIES, torch.arange(KEYS)
    scores = 5 * torch.tanh(dots(query, key) / 5) - slopes[:, None, None] * (i - j)
    expected = softmax_of(scores, i - j < 3, value)
    torch.testing.assert_close(reference(pattern, query, key, value), expected)
    other = slopes.flip(0)
    scores = 5 * torch.tanh(dots(query, key) / 5) - other[:, None, None] * (i - j)
    torch.testing.assert_close(
        reference(pattern, query, key, value, {"slope": other}), softmax_of(scores, i - j < 3, value)
    )


def test_the_other_normalisers():
    query, key, value = make()
    scores = dots(query, key)
    allowed = torch.ones(QUERIES, KEYS).tril(KEYS - QUERIES).bool()
    factor = torch.arange(KEYS, dtype=F64) - 2
    weight = real_of(sub(J, integer(2)))

    def compute(normalize):
        return reference(attention(mask=CAUSAL, weight=weight, normalize=normalize), query, key, value)

    bias = Normalize(NormalizeKind.SIGMOID, bias=call("log", real_of(add(J, integer(1)))))
    shifted = scores + torch.log(torch.arange(KEYS, dtype=F64) + 1)
    expected = (factor * torch.sigmoid(shifted) * allowed) @ value
    torch.testing.assert_close(compute(bias), expected)
    expected = (factor * torch.sigmoid(scores) * allowed) @ value
    torch.testing.assert_close(compute(Normalize(NormalizeKind.SIGMOID)), expected)
    for power in (1, 2, 0.5):
        relu = Normalize(NormalizeKind.RELU, power=Const(power, Type.INT if power > 0.5 else Type.FLOAT))
        expected = (factor * scores.clamp(min=0) ** power * allowed) @ value
        torch.testing.assert_close(compute(relu), expected)
    torch.testing.assert_close(compute(Normalize(NormalizeKind.RELU)), (factor * scores.relu() * allowed) @ value)
    torch.testing.assert_close(compute(Normalize(NormalizeKind.NONE)), (factor * scores * allowed) @ value)
    rows = factor * scores * allowed
    torch.testing.assert_close(compute(Normalize(NormalizeKind.ROWS)), (rows / rows.sum(-1, keepdim=True)) @ value)
    with pytest.raises(ValueError, match="softmax"):
        reference(attention(normalize=Normalize(NormalizeKind.NONE)), query, key, value, return_lse=True)


def test_weighted_softmax_with_a_sink():
    query, key, value = make()
    scores = dots(query, key)
    sink = torch.linspace(-1, 2, HEADS, dtype=F64)
    pattern = attention(
        mask=CAUSAL,
        weight=real_of(J),
        normalize=Normalize(NormalizeKind.SOFTMAX, sink=Read("sink", (H,), Type.FLOAT)),
        tensors=[given("sink", Size(SizeName.HEADS))],
    )
    query9, key9, value9 = make(queries=9)
    out, lse = reference(pattern, query9, key9, value9, {"sink": sink}, return_lse=True)
    assert (out[:, :, :2] == 0).all()
    torch.testing.assert_close(lse[:, :, 0], sink.expand(BATCH, HEADS))
    out, lse = reference(pattern, query, key, value, {"sink": sink}, return_lse=True)
    allowed = torch.ones(QUERIES, KEYS).tril(KEYS - QUERIES).bool()
    weights = torch.arange(KEYS) * torch.exp(scores) * allowed
    total = weights.sum(-1) + torch.exp(sink)[:, None]
    torch.testing.assert_close(out, weights @ value / total[..., None])
    torch.testing.assert_close(lse, torch.log(total))
    some = dense_weights(pattern, query, key, rows=[3, 0], inputs={"sink": sink})
    torch.testing.assert_close(some, (weights / total[..., None])[:, :, [3, 0]])


def test_factors_that_are_zero_do_not_hide_the_others():
    """The largest score has factor 0 and is so large that the others vanish beside it."""
    query, key, value = make()
    pattern = attention(score=Where(compare("==", J, integer(0)), real(5000), Score(), Type.FLOAT), weight=real_of(J))
    weights = torch.arange(KEYS) * torch.exp(dots(query, key))
    out, lse = reference(pattern, query, key, value, return_lse=True)
    torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ value)
    torch.testing.assert_close(lse, torch.log(weights.sum(-1)))


NORMALIZERS = [
    Normalize(NormalizeKind.SOFTMAX),
    Normalize(NormalizeKind.SOFTMAX, sink=Read("bias", (H,), Type.FLOAT)),
    Normalize(NormalizeKind.SIGMOID, bias=Read("bias", (H,), Type.FLOAT)),
    Normalize(NormalizeKind.RELU, power=Const(2, Type.INT)),
    Normalize(NormalizeKind.ROWS),
    Normalize(NormalizeKind.NONE),
]


def name_of(normalize):
    return normalize.kind.value + ("_sink" if normalize.sink else "")


@pytest.mark.parametrize("normalize", NORMALIZERS, ids=name_of)
def test_gradients(normalize):
    """Query, key, value, an input in the score, one in the scale and one in the weight; some rows are empty."""
    scale = mul(real(0.4), Read("beta", (), Type.FLOAT))
    pattern = attention(
        mask=compare("<", J, sub(I, integer(1))),
        score=add(Score(), mul(Read("bias", (H,), Type.FLOAT), real_of(sub(I, J)))),
        scale=scale,
        weight=call("exp", Read("factor", (J,), Type.FLOAT)),
        normalize=normalize,
        tensors=[
            given("bias", Size(SizeName.HEADS)),
            given("beta"),
            given("factor", M),
        ],
    )
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator).requires_grad_()  # noqa: E731
    arguments = draw(1, 2, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 2), draw(2), draw(()), draw(4)
    with_lse = normalize.kind is NormalizeKind.SOFTMAX

    def compute(query, key, value, bias, beta, factor):
        inputs = {"bias": bias, "beta": beta, "factor": factor}
        result = reference(pattern, query, key, value, inputs, return_lse=with_lse)
        if not with_lse:
            return result
        return result[0], torch.where(torch.isinf(result[1]), 0.0, result[1])

    assert torch.autograd.gradcheck(compute, arguments)
    assert torch.autograd.gradgradcheck(compute, arguments)


@pytest.mark.parametrize("normalize", NORMALIZERS, ids=name_of)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_pairs_never_matter(normalize, poison):
    """Keys and values past `length` hold rubbish, and every expression is undefined at masked pairs."""
    allowed = compare("<", J, integer(4))
    undefined = call("log", mul(Read("slope", (H,), Type.FLOAT), real_of(sub(integer(4), J))))
    outside = Read("table", (sub(J, integer(900)),), Type.FLOAT)
    pattern = attention(
        mask=allowed,
        score=add(add(Score(), undefined), outside),
        weight=call("sqrt", mul(real_of(sub(integer(4), J)), Read("slope", (H,), Type.FLOAT))),
        normalize=normalize,
        tensors=[given("slope", Size(SizeName.HEADS)), given("table", None), given("bias", Size(SizeName.HEADS))],
    )
    results = []
    for rubbish in (0.0, poison):
        query, key, value = (tensor.clone() for tensor in make())
        key[:, :, 4:] = rubbish
        value[:, :, 4:] = rubbish
        slope, table = torch.rand(HEADS, dtype=F64) * 0 + 0.7, torch.tensor([poison], dtype=F64)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value, slope, table)]
        inputs = {"slope": slope, "table": table, "bias": torch.zeros(HEADS, dtype=F64)}
        out = reference(pattern, query, key, value, inputs)
        gradients = torch.autograd.grad(out.square().sum(), leaves)
        results.append((out, *gradients))
    for clean, dirty in zip(*results, strict=True):
        assert torch.isfinite(clean).all()
        torch.testing.assert_close(dirty, clean, rtol=0, atol=0)
    assert (results[1][2][:, :, 4:] == 0).all()


def test_a_poisoned_row_does_not_poison_others():
    """A NaN at an allowed pair reaches its own row, and through gradients only what that row sees."""
    query, key, value = make(queries=KEYS)
    key[0, 0, 5] = math.nan
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    out = reference(attention(mask=CAUSAL), *leaves)
    poisoned = torch.zeros(BATCH, HEADS, KEYS, dtype=torch.bool)
    poisoned[0, 0, 5:] = True
    assert torch.equal(out.isnan().any(-1), poisoned)
    assert torch.equal(out.isnan().all(-1), poisoned)
    window = attention(mask=compare("==", J, I))
    out = reference(window, *leaves)
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    for gradient in gradients:
        rows = gradient.isnan().any(-1)
        assert rows[0, 0, 5]
        assert rows.sum() == 1


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinite_values_reach_their_rows(infinity):
    query, key, value = make(queries=KEYS)
    value[0, 0, 5, 1] = infinity
    out = reference(attention(mask=CAUSAL), query, key, value)
    assert (out[0, 0, 5:, 1] == infinity).all()
    assert torch.isfinite(out[0, 0, :5]).all()
    assert torch.isfinite(out[0, 0, :, 0]).all()


def test_rows_whose_denominator_is_zero():
    """All scores minus infinity, factors that cancel, and scores that sum to 0: output and gradients are 0."""
    hollow = given("hollow")
    zero = Read("hollow", (), Type.FLOAT)
    minus = attention(score=add(Score(), call("log", zero)), tensors=[hollow])
    alternating = Where(compare("==", J, integer(0)), zero, real(0), Type.FLOAT)
    cancelling = attention(score=real(2), weight=alternating, tensors=[hollow])
    sums = attention(score=mul(Score(), zero), normalize=Normalize(NormalizeKind.ROWS), tensors=[hollow])
    for pattern in (minus, cancelling, sums):
        hollow_value = torch.zeros((), dtype=F64)
        leaves = [tensor.requires_grad_() for tensor in (*make(), hollow_value)]
        result = reference(pattern, *leaves[:3], {"hollow": leaves[3]}, return_lse=pattern is not sums)
        out = result if pattern is sums else result[0]
        assert (out == 0).all()
        if pattern is not sums:
            assert (result[1] == -math.inf).all()
        gradients = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


def test_unselected_operands_never_matter():
    bad = call("log", Read("x", (), Type.FLOAT))
    pattern = attention(
        score=add(Score(), Where(compare("<", J, integer(3)), bad, real(0), Type.FLOAT)),
        mask=compare(">=", J, integer(3)),
        tensors=[given("x")],
    )
    query, key, value = make()
    x = torch.zeros((), dtype=F64, requires_grad=True)
    out = reference(pattern, query, key, value, {"x": x})
    assert torch.isfinite(out).all()
    (gradient,) = torch.autograd.grad(out.sum(), [x])
    assert gradient == 0


def test_rows_and_sizes_in_expressions():
    sizes = [Size(name) for name in (SizeName.BATCH, SizeName.HEADS, SizeName.HEAD_SIZE, SizeName.GROUP)]
    total = add(add(real_of(N), real_of(M)), add(real_of(R), real_of(Index(IndexName.HEAD))))
    for size in sizes:
        total = add(total, real_of(size))
    pattern = attention(score=mul(Score(), total), normalize=Normalize(NormalizeKind.NONE))
    query, key, value = make(group=2)
    r, h = torch.arange(QUERIES)[:, None], torch.arange(HEADS)[:, None, None]
    factor = QUERIES + KEYS + r + h + BATCH + HEADS + HEAD + 2
    key2, value2 = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    torch.testing.assert_close(reference(pattern, query, key, value), (dots(query, key2) * factor) @ value2)


def test_an_empty_mask_and_one_pair():
    query, key, value = make(queries=1, keys=1)
    out, lse = reference(attention(mask=FALSE), query, key, value, return_lse=True)
    assert (out == 0).all()
    assert (lse == -math.inf).all()
    torch.testing.assert_close(reference(attention(), query, key, value), value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision(dtype):
    query, key, value = (tensor.to(dtype) for tensor in make())
    exact = reference(attention(mask=CAUSAL), query, key, value)
    assert exact.dtype is F64
    own = reference(attention(mask=CAUSAL), query, key, value, dtype=None)
    assert own.dtype is dtype
    torch.testing.assert_close(own.double(), exact, rtol=0.05, atol=0.05)


def test_wrong_inputs_are_named():
    pattern = attention(tensors=[given("doc", Size(SizeName.BATCH), M, type=Type.INT)])
    query, key, value = make()
    with pytest.raises(ValueError, match=r"doc has length 3 in place of 7 in dimension 1"):
        reference(pattern, query, key, value, {"doc": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="doc has 1 dimensions in place of 2"):
        reference(pattern, query, key, value, {"doc": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"rows must be in 0 \.\. 4"):
        dense_weights(attention(), query, key, rows=[-1])
    with pytest.raises(ValueError, match="keys do not fit"):
        reference(attention(), query, key[..., :3], value)
    with pytest.raises(ValueError, match="values do not fit"):
        reference(attention(), query, key, value[:, :, :3])
    with pytest.raises(ValueError, match="`feature other` has no dense meaning"):
        reference(
            replace(pattern, deferred=(Deferred("feature", "other"),)), query, key, value, {"doc": torch.zeros(2, 7)}
        )
    with pytest.raises(KeyError, match="doc"):
        reference(replace(pattern, mask=compare("<", Read("doc", (B, J), Type.INT), I)), query, key, value)
    with pytest.raises(ValueError, match="no input dock"):
        reference(pattern, query, key, value, {"dock": torch.zeros(2)})
