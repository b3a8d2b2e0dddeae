"""Linear forms and features where numbers are large, shared by heads or missing, and what calls of them are told."""

import math

import pytest
import torch

import attnc
from attnc.checking import check_source
from attnc.reference import reference
from attnc.runtime.linear import State
from attnc.source import SourceFile

pytestmark = pytest.mark.filterwarnings("ignore::attnc.compiler.PatternWarning")


def load(body):
    text = f"attention x {{ {body} }}"
    return attnc.loads(text), check_source(SourceFile("x", text)).program.attentions[0]


def make(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def heads_of(queries, keys, heads=4, groups=2, size=8, dtype=torch.float64):
    return (
        make(2, heads, queries, size, seed=1, dtype=dtype),
        make(2, groups, keys, size, seed=2, dtype=dtype),
        make(2, groups, keys, 6, seed=3, dtype=dtype),
    )


SHARED = {
    "decay": "feature elu1\n mask causal\n weight 0.9 ** (i - j)",
    "decay_sums": "feature elu1\n mask causal\n weight 0.9 ** (i - j)\n normalize none",
    "of_keys": "feature elu1\n mask causal\n weight 0.9 ** j",
    "of_batch": "input w: float[B, ?]\n feature relu\n mask causal\n weight exp(w[b, i] - w[b, j])\n normalize none",
    "full": "feature elu1\n weight exp(0.3 * j)",
    "turned": "feature cosformer\n mask causal\n weight 0.95 ** (i - j)",
    "pooled": "keys mean_pool(3, 2)\n feature elu1\n weight 0.5 ** j",
    "projected": "keys project(8, 300)\n feature elu1\n weight 0.5 ** j",
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize(("queries", "keys"), [(3, 200), (100, 200), (150, 150)])
def test_exponents_that_all_heads_share(name, queries, keys):
    module, attention = load(SHARED[name])
    leaves = [one.requires_grad_() for one in heads_of(queries, keys)]
    inputs = {"w": make(2, 200)} if name == "of_batch" else {}
    if name == "projected":
        inputs = {which: make(8, 300, seed=5) for which in ("key_projection", "value_projection")}
    out, exact = module.x(*leaves, **inputs), reference(attention, *leaves, inputs)
    assert torch.allclose(out, exact, rtol=1e-9, atol=1e-9)
    upstream = make(*out.shape, seed=4)
    found, right = (torch.autograd.grad(one, leaves, upstream) for one in (out, exact))
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-8 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("name", ["decay", "decay_sums", "of_keys"])
def test_states_of_exponents_that_all_heads_share(name):
    module, attention = load(SHARED[name])
    query, key, value = heads_of(90, 90)
    first, state = module.x(query[:, :, :31], key[:, :, :31], value[:, :, :31], return_state=True)
    second = module.x(query[:, :, 31:], key[:, :, 31:], value[:, :, 31:], state=state)
    exact = reference(attention, query, key, value, {})
    assert torch.allclose(torch.cat((first, second), 2), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [40, 300])
@pytest.mark.parametrize("feature", ["exp", "favor(16)"])
@pytest.mark.parametrize("mask", ["causal", "window(7)", "causal and i - j < 20"])
@pytest.mark.parametrize("normalize", ["rows", "none"])
def test_early_rows_keep_their_digits_beside_much_greater_later_keys(length, feature, mask, normalize):
    module, attention = load(f"feature {feature}\n mask {mask}\n normalize {normalize}")
    query, key, value = heads_of(length, length, dtype=torch.float32)
    # both maps, at their greatest direction or at all of them, see these keys rise by hundreds of powers of e
    key = 0.2 * key + torch.linspace(0, 120 if feature == "exp" else 0, length).view(-1, 1)
    if feature != "exp":
        key = key * torch.linspace(12, 1, length).view(-1, 1)
    query = 0.1 * query
    exact = reference(attention, query.double(), key.double(), value.double(), {})
    size = exact.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    inside = (size < 1e37) & (size > 1e-37)
    for found in (module.x(query, key, value), module.x_reference(query, key, value)):
        assert found.dtype == torch.float32
        assert bool(inside.any())
        error = torch.where(inside, (found.double() - exact).abs() / size, 0.0)
        assert float(error.max()) < 1e-3
    weights = module.x_weights(query, key, rows=[0, length // 2])
    assert weights.dtype == torch.float32
    found = weights.double() @ value.double().repeat_interleave(2, 1)
    rows = [0, length // 2]
    error = torch.where(inside[:, :, rows], (found - exact[:, :, rows]).abs() / size[:, :, rows], 0.0)
    assert float(error.max()) < 1e-3


LENGTHS = {
    "M": "feature elu1\n mask causal\n weight (1 - 1.0 / M) ** (i - j)",
    "N": "feature elu1\n mask causal\n scale 1.0 / N\n normalize none",
    "r": "feature elu1\n mask causal\n weight 1.0 / (1 + r)\n normalize none",
    "M, ": "input w: float[M]\n feature elu1\n mask causal\n weight w[j]",
}


@pytest.mark.parametrize("what", LENGTHS)
def test_states_of_what_depends_on_one_call_alone_are_refused(what):
    module, attention = load(LENGTHS[what])
    query, key, value = heads_of(70, 70)
    inputs = {"w": make(70)} if "input w" in LENGTHS[what] else {}
    assert torch.allclose(module.x(query, key, value, **inputs), reference(attention, query, key, value, inputs))
    with pytest.raises(ValueError, match=rf"return_state: the weights of x depend on {what[0]}"):
        module.x(query, key, value, **inputs, return_state=True)


def test_tables_of_any_length_go_with_states():
    module, attention = load("input w: float[?]\n feature elu1\n mask causal\n weight w[j]")
    query, key, value = heads_of(90, 90)
    inputs = {"w": make(90).abs()}
    first, state = module.x(query[:, :, :50], key[:, :, :50], value[:, :, :50], **inputs, return_state=True)
    second = module.x(query[:, :, 50:], key[:, :, 50:], value[:, :, 50:], **inputs, state=state)
    exact = reference(attention, query, key, value, inputs)
    assert torch.allclose(torch.cat((first, second), 2), exact, rtol=1e-9, atol=1e-9)


def test_powers_of_zero_have_their_derivative():
    module, attention = load("learned c: float[H] = 0.0\n mask causal\n weight c[h] ** (i - j)\n normalize none")
    query, key, value = heads_of(9, 9)  # few enough for pairs
    base = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(module.x(query, key, value, c=base).sum(), base)[0]
    right = torch.autograd.grad(reference(attention, query, key, value, {"c": base}).sum(), base)[0]
    assert bool((right != 0).all())
    assert torch.allclose(found, right)


@pytest.mark.parametrize("mask", ["causal", "window(9)", "true"])
def test_squares_of_half_precision_do_not_overflow(mask):
    module, attention = load(f"feature square\n mask {mask}")
    query, key, value = (20 * one for one in heads_of(80, 80, dtype=torch.float16))
    query, key = query * 20, key * 20
    exact = reference(attention, query.double(), key.double(), value.double(), {})
    for found in (module.x(query, key, value), module.x_reference(query, key, value)):
        assert found.dtype == torch.float16
        assert float((found.double() - exact).abs().max()) < 2e-2 * float(exact.abs().max())


def test_queries_without_keys_have_their_sink_for_a_log_sum_exp():
    module, attention = load(
        "learned drain: float[H] = 0.5\n keys mean_pool(5, 3)\n mask causal\n normalize softmax(sink = drain[h])"
    )
    query, key, value = heads_of(9, 3)
    drain = make(4).requires_grad_()
    for call in (module.x, module.x_reference):
        out, lse = call(query, key, value, drain=drain, return_lse=True)
        right, exact = reference(attention, query, key, value, {"drain": drain}, return_lse=True)
        assert torch.equal(out, right)
        assert torch.equal(lse, exact)
        assert torch.equal(lse[1, :, 3], drain)
        assert torch.equal(torch.autograd.grad(lse.sum(), drain)[0], torch.full((4,), 18.0).double())


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"scale": "1"}, TypeError, "scale is a str"),
        ({"dropout_p": 2.0, "seed": 1}, ValueError, "dropout_p is 2.0"),
        ({"precision": "exact"}, ValueError, "precision is 'exact'"),
        ({"return_lse": 1}, TypeError, "return_lse is an int"),
    ],
)
def test_arguments_are_checked_where_no_key_is_left(options, kind, message):
    module, _ = load("keys mean_pool(5, 3)\n mask causal")
    query, key, value = heads_of(9, 3)
    for call in (module.x, module.x_reference):
        with pytest.raises(kind, match=message):
            call(query, key, value, **options)


def test_weights_of_odd_heads_that_are_turned_are_told():
    module, _ = load("prepare rotary\n mask causal")
    query, key, _ = heads_of(5, 5, size=7)
    with pytest.raises(ValueError, match="query has head size 7, expected an even one"):
        module.x_weights(query, key, rows=[0])


@pytest.fixture(scope="module")
def summed():
    return load("feature elu1\n mask causal\n weight exp(-0.1 * (i - j))")[0]


WRONG_STATES = [
    (lambda state: state._replace(memory=[1.0]), TypeError, "state has a memory that is a list"),
    (lambda state: state._replace(memory=state.memory[:1]), ValueError, "state has a memory of shape"),
    (lambda state: state._replace(memory=state.memory.int()), ValueError, "state has a memory of int32"),
    (lambda state: state._replace(memory=state.memory.to("meta")), ValueError, "state is on meta"),
    (lambda state: state._replace(log=0.0), TypeError, "state has a log that is a float"),
    (lambda state: state._replace(log=torch.zeros(3, dtype=torch.float64)), ValueError, "state has a log of shape"),
    (lambda state: state._replace(log=state.log.float()), ValueError, "state has a log of float32"),
    (lambda state: state._replace(length="9"), TypeError, "state has a length that is a str"),
    (lambda state: state._replace(length=-1), ValueError, "state has a length of -1"),
    (tuple, TypeError, "state is a tuple"),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG_STATES)
def test_wrong_states_are_told(summed, change, kind, message):
    query, key, value = heads_of(9, 9)
    _, state = summed.x(query, key, value, return_state=True)
    assert isinstance(state, State)
    with pytest.raises(kind, match=message):
        summed.x(query, key, value, state=change(state))


def test_seeds_of_modules_are_checked():
    layer = load("feature favor(16)")[0].X()
    with pytest.raises(TypeError, match="feature_seed is a float"):
        layer.redraw(1.5)
    with pytest.raises(TypeError, match="feature_seed is a str"):
        layer.set_extra_state({"feature_seed": "3"})
    layer.redraw(3)
    layer.set_extra_state({})
    assert layer.feature_seed is None


def test_infinite_rows_without_keys_stay_zero():
    module, _ = load("keys mean_pool(5, 3)")
    query, key, value = heads_of(4, 2)
    out, lse = module.x(query + math.inf, key, value, return_lse=True)
    assert torch.equal(out.nan_to_num(), torch.zeros_like(out))
    assert bool((lse == -math.inf).all())
