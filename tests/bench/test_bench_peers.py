"""Peers compute what the pattern says, or are refused; whoever is wrong gets no time."""

import io
import json
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from attnc.bench.additive import affine_score
from attnc.bench.cases import Shape, Style, make_data, make_tensors, square, surroundings
from attnc.bench.checking import check_gradients, check_output, true_gradients, true_rows
from attnc.bench.contender import Case, Contender, Unavailable
from attnc.bench.flex import NotExpressible, flex_functions
from attnc.bench.flex_contender import eager_fallback
from attnc.bench.forms import find_form
from attnc.bench.names import Mode
from attnc.bench.report import as_json, duration, size, speed, table
from attnc.bench.run import Comparison, Settings, _work, compare
from attnc.bench.sdpa import sdpa_contender
from attnc.bench.sdpa_backends import _reason, forced
from attnc.bench.standard_row import provider
from attnc.checking import check_source
from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.ir.evaluate import Environment, evaluate
from attnc.reference import dense_mask, evaluate_tensor, pair_environment, reference
from attnc.source import SourceFile

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
CPU = torch.device("cpu")
SHAPE = Shape(2, 4, 2, 37, 50, 16, 16)
MORE = {
    "scaled": "attention a { score 2 * s - 1 }",
    "rows_of_scale": "attention a { input t: float[B, H]\n scale t[b, h] / sqrt(D)\n score s / 2 + h }",
    "weighted": "attention a { weight where(j % 3 == 0, 0, 2.0 + h) }",
    "sink": "attention a { learned t: float[H] = 0.5 * h\n mask causal\n normalize softmax(sink = t[h] + i / N) }",
    "quantified": "attention a { input t: int[B, H, (N + 7) // 8, 3]\n mask any(k < 3, j // 8 == t[b, h, r // 8, k]) }",
    "outside": "attention a { input t: float[M]\n score s + t[2 * j - i] }",
    "hashed": "attention a { mask hash(h, i // 4, j // 4, -7) % 2 == 0 or i == j }",
    "divisor": "attention a { input t: int[M]\n mask i % t[j] == 0 or i // t[j] > 2 }",
    "extremes": "attention a { mask max(i, j, 5) - min(i, j) < 20 and not (abs(i - j) == 3)\n score softcap(s, 3.0) }",
    "aligned": "attention a { input pos: int[B]\n align at(pos[b])\n mask causal }",
    "sums": "attention a { score s + sum(t < 4, sin(t * (i - j) / M)) + exp2(-abs(i - j)) }",
    "casts": "attention a { score s + int(j > 3) * 0.5 + floor(0.3 * i) - int(-0.7 * j)\n mask true }",
}


def attention_of(text):
    return plan_source(SourceFile("p.attn", text)).plans[0].attention


@cache
def all_attentions():
    files = [check_source(read_pattern(path), complete=True).program.attentions for path in EXAMPLES]
    more = [pytest.param(attention_of(text), id=name) for name, text in MORE.items()]
    plain = [one for attentions in files for one in attentions if not surroundings(one)]
    return [*(pytest.param(one, id=one.name) for one in plain), *more]


@pytest.mark.parametrize("text", ["prepare rotary", "keys mean_pool(2, 2)", "decompose nystrom(4)", "feature elu1"])
def test_peers_refuse_what_surrounds_pairs(text):
    attention = check_source(SourceFile("a", f"attention a {{ {text} }}")).program.attentions[0]
    case = case_of(attention)
    for make in (lambda: sdpa_contender(case, causal=False, full=True), lambda: find_form(case.attention)):
        with pytest.raises(Unavailable, match=f"no `{text.split('(')[0]}"):
            make()


def case_of(attention, shape=SHAPE, style=Style.TYPICAL):
    data = make_data(attention, shape, seed=3, style=style, dtype=torch.float32)
    return Case(attention, shape, *make_tensors(shape, seed=3, dtype=torch.float32, device="cpu"), data)


@pytest.mark.parametrize("attention", all_attentions())
@pytest.mark.parametrize("style", Style)
def test_flex_functions_mean_what_the_pattern_means(attention, style):
    case = case_of(attention, style=style)
    shape = case.shape
    functions = flex_functions(attention, shape, case.data, CPU)
    b, h, i, j = torch.meshgrid(
        torch.arange(shape.batch), torch.arange(shape.heads), torch.arange(shape.queries), torch.arange(shape.keys),
        indexing="ij",
    )  # fmt: skip
    mask = dense_mask(
        attention, shape.queries, shape.keys, batch=shape.batch, heads=shape.heads, group=shape.group,
        head_size=shape.head_size, inputs=case.data,
    )  # fmt: skip
    if functions.mask_mod is None:
        assert bool(mask.all())
    else:
        assert torch.equal(functions.mask_mod(b, h, i, j).expand(mask.shape), mask)
    if functions.score_mod is not None:
        score = torch.randn(mask.shape, dtype=torch.float32)
        env = pair_environment(attention, shape.sizes(), case.data, dtype=torch.float32)
        right = evaluate_tensor(attention.score, replace(env, score=score)).expand(mask.shape)
        found = functions.score_mod(score, b, h, i, j).expand(mask.shape)
        torch.testing.assert_close(found[mask], right[mask], rtol=1e-4, atol=1e-4)


def test_flex_refuses_long_quantifiers():
    attention = attention_of("attention a { mask any(t < 100, i * t == j * j) }")
    with pytest.raises(NotExpressible):
        flex_functions(attention, SHAPE, {}, CPU)


@pytest.mark.parametrize("attention", all_attentions())
def test_sdpa_is_right_or_refuses(attention, request):
    case = case_of(attention)
    if request.node.callspec.id in ("gemma", "sigmoid_causal", "extremes"):
        with pytest.raises(Unavailable, match="SDPA has no"):
            sdpa_contender(case, causal=None, full=None)
        return
    contender = sdpa_contender(case, causal=None, full=None)
    out = contender.run(case.query, case.key, case.value)
    right = reference(attention, case.query, case.key, case.value, case.data)
    mask = dense_mask(attention, 37, 50, batch=2, heads=4, group=2, head_size=16, inputs=case.data)
    empty = ~mask.any(-1, keepdim=True)  # a row that may be NaN there
    torch.testing.assert_close(torch.where(empty, 0.0, out).double(), right, rtol=1e-4, atol=1e-4)


def test_plain_patterns_use_sdpas_flags():
    case = case_of(attention_of("attention a { mask causal }"), square(40, heads=2))
    assert sdpa_contender(case, causal=True, full=False).name == "sdpa, causal"
    assert (
        sdpa_contender(replace(case, attention=attention_of("attention a { }")), causal=False, full=True).name == "sdpa"
    )
    longer = case_of(case.attention)
    assert sdpa_contender(longer, causal=True, full=False).name == "sdpa, dense mask"


@pytest.mark.parametrize("text", ["s", "2 * s", "s * h + j", "-(s - j) / 4", "(j + s) * (h + 1) - s", "3.0", "s - s"])
def test_affine_scores(text):
    score = attention_of(f"attention a {{ score {text} }}").score
    found = affine_score(score)
    assert found is not None
    from attnc.ir.nodes import IndexName

    for s in (-1.5, 0.0, 2.0):
        env = Environment({IndexName.HEAD: 3, IndexName.KEY: 5, IndexName.QUERY: 2}, score=s)
        assert evaluate(score, env) == pytest.approx(evaluate(found.factor, env) * s + evaluate(found.offset, env))


@pytest.mark.parametrize("text", ["s * s", "tanh(s)", "1.0 / s", "where(s > 0, s, 0)", "max(s, 0.0)"])
def test_other_scores_are_not_affine(text):
    assert affine_score(attention_of(f"attention a {{ score {text} }}").score) is None


def right_contender(case):
    def run(query, key, value):
        return reference(case.attention, query, key, value, case.data, dtype=None)

    return Contender("right", run)


def test_checks_accept_the_right_and_refuse_the_wrong():
    case = case_of(attention_of("attention a { mask causal and i - j < 9 }"))
    truth = true_rows(case)
    right, gradients = right_contender(case), true_gradients(case)
    assert check_output(right, case, truth).right
    assert check_gradients(right, case, gradients).right
    other = case_of(attention_of("attention a { mask causal and i - j < 8 }"))
    assert not check_output(right_contender(other), case, truth).right
    assert not check_gradients(right_contender(other), case, gradients).right
    nan = Contender("nan", lambda *tensors: right.run(*tensors) * float("nan"))
    assert not check_output(nan, case, truth).right
    assert not check_output(Contender("shape", lambda *tensors: right.run(*tensors)[..., :3]), case, truth).right


def test_long_cases_are_checked_on_some_rows_at_both_ends():
    case = case_of(attention_of("attention a { mask causal and i - j < 9 }"), square(8500, heads=1, head_size=8))
    truth = true_rows(case)
    assert truth.rows[0] == 0
    assert truth.rows[-1] == 8499
    assert 200 <= len(truth.rows) <= 300
    assert truth.exact.shape == (1, 1, len(truth.rows), 8)


def test_compare_gives_no_time_to_who_is_wrong(monkeypatch):
    compiled = plan_source(SourceFile("p.attn", "attention a { mask causal and i - j < 9 }"))
    module = import_compiled(compiled)
    settings = Settings(CPU, torch.float32, ("sdpa",), seconds=0.0)
    fair = compare(compiled.plans[0], module, square(64, heads=2, head_size=16), settings)
    assert [result.name for result in fair.results] == ["attnc", "sdpa, dense mask"]
    assert all(result.timing is not None and result.times_floor > 0 for result in fair.results)
    attend = module.a
    monkeypatch.setattr(module, "a", lambda *tensors, **inputs: attend(*tensors, **inputs) * 1.001)
    unfair = compare(compiled.plans[0], module, square(64, heads=2, head_size=16), settings)
    (wrong,) = [result for result in unfair.results if result.name == "attnc"]
    assert wrong.timing is None
    assert wrong.problem.startswith("wrong output: error ")
    with_backward = compare(
        compiled.plans[0], module, square(64, heads=2, head_size=16), replace(settings, mode=Mode.BOTH)
    )
    assert with_backward.flops == pytest.approx(3.5 * fair.flops)
    alone = compare(compiled.plans[0], module, square(64, heads=2, head_size=16), replace(settings, mode=Mode.BACKWARD))
    assert alone.flops == pytest.approx(2.5 * fair.flops)
    assert Comparison.from_json(json.loads(json.dumps(asdict(alone)))) == alone


def test_a_backward_pass_is_timed_without_the_forward_pass():
    case = case_of(attention_of("attention a { mask causal }"), square(32, heads=2, head_size=8))
    calls = []

    def attend(*tensors):
        calls.append(1)
        return functional.scaled_dot_product_attention(*tensors, is_causal=True)

    work = _work(Contender("counted", attend), case, Mode.BACKWARD)
    assert len(calls) == 1
    first, second = work(), work()
    assert len(calls) == 1
    assert [tensor.shape for tensor in first] == [case.query.shape] * 3
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    both = _work(Contender("counted", attend), case, Mode.BOTH)
    both()
    assert len(calls) == 3


@pytest.mark.parametrize(
    "text", ["attention a { }", "attention a { mask causal }", "attention a { mask i // 8 == j // 8 }"]
)
def test_backends_of_sdpa_are_forced(text):
    case = case_of(attention_of(text), square(64, heads=4, kv_heads=2, head_size=16))
    free = sdpa_contender(case, causal="causal" in text, full="mask" not in text)
    truth = true_rows(case)
    products = {"sdpa-flash": False, "sdpa-math": True}
    for name, multiplies in products.items():
        contender = forced(name, free, case)
        assert provider(contender.name) == name
        assert check_output(contender, case, truth).right
        with contender.around(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            contender.run(case.query, case.key, case.value)
        ran = {event.name for event in profile.events()}
        assert ("aten::bmm" in ran) is multiplies
        assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in ran) is not multiplies
    for name in ("sdpa-efficient", "sdpa-cudnn"):
        with pytest.raises(Unavailable, match="no such backend on a CPU"):
            forced(name, free, case)


def test_a_backend_says_why_it_cannot():
    case = case_of(attention_of("attention a { }"), square(16, heads=1, head_size=8))
    bias = torch.zeros(1, 1, 16, 16, requires_grad=True)  # whose gradient the flash backend does not give
    refused = Contender("sdpa, dense mask", partial(functional.scaled_dot_product_attention, attn_mask=bias))
    with pytest.raises(Unavailable, match="No available kernel"):
        forced("sdpa-flash", refused, replace(case, backward=True))
    said = [
        "Memory efficient kernel not used because: (Triggered internally at x)", "It was disabled.",
        "Flash attention kernel not used because: (Triggered internally at x)", "Head size 300. (Triggered internally)",
    ]  # fmt: skip
    error = RuntimeError("No available kernel.")
    assert _reason("sdpa-flash", error, said) == "Head size 300."
    assert _reason("sdpa-efficient", error, said) == "It was disabled."
    assert _reason("sdpa-cudnn", error, said) == "RuntimeError: No available kernel."


def test_the_math_backend_is_not_tried_where_its_scores_do_not_fit(monkeypatch):
    case = case_of(attention_of("attention a { }"), square(64, heads=2, head_size=8))
    monkeypatch.setattr("attnc.bench.sdpa_backends.free_memory", lambda device: 64 * 64 * 2 * 4 * 4)
    free = sdpa_contender(case, causal=False, full=True)
    with pytest.raises(Unavailable, match="all of its scores take"):
        forced("sdpa-math", free, case)
    assert forced("sdpa-flash", free, case).name == "sdpa-flash"


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_eager_flex_attention_is_found_out():
    query, key, value = (torch.randn(1, 2, 64, 16) for _ in range(3))
    assert "it fell back to eager operators (aten::" in eager_fallback(lambda: flex_attention(query, key, value))
    flash = functional.scaled_dot_product_attention
    assert eager_fallback(lambda: flash(query, key, value, is_causal=True)) == ""


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_who_falls_back_to_eager_gets_no_time(monkeypatch):
    """The whole way: FlexAttention's compiler is broken so that it runs eagerly, as torch would silently do."""
    from attnc.bench import flex_contender

    def silent(function, **options):
        assert options["fullgraph"]
        return lambda *tensors, **more: function(*tensors, **more)

    monkeypatch.setattr(torch, "compile", silent)
    monkeypatch.setattr(flex_contender, "_compiled_anything", lambda: True)
    compiled = plan_source(SourceFile("p.attn", "attention a { mask causal and i - j < 9 }"))
    shape = square(128, heads=2, head_size=16)
    found = compare(
        compiled.plans[0], import_compiled(compiled), shape, Settings(CPU, torch.float32, ("flex",), seconds=0.0)
    )
    results = {result.name: result for result in found.results}
    for name in ("flex 128", "flex 64"):
        assert results[name].timing is None
        assert "it fell back to eager operators" in results[name].problem
    assert results["attnc"].timing is not None


def test_reports():
    compiled = plan_source(SourceFile("p.attn", "attention a { mask causal }"))
    one = compare(
        compiled.plans[0], import_compiled(compiled), square(64, heads=2, head_size=16),
        Settings(CPU, torch.float32, ("sdpa",), seconds=0.0),
    )  # fmt: skip
    json.dumps(as_json([one], {}, {}), allow_nan=False)
    from rich.console import Console

    console = Console(file=io.StringIO(), width=140)
    console.print(table(one))
    text = console.file.getvalue()
    assert "the floor" in text
    assert "2,080 allowed pairs" in text
    assert duration(0.25) == "250 ms"
    assert duration(3e-6) == "3 us"
    assert size(3 << 20) == "3 MiB"
    assert speed(2.5e12) == "2.5 TFLOP/s"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streaming", "alibi", "bigbird", "packed", "relative", "gemma"])
def test_compiled_flex_is_right(name):
    from attnc.bench.flex_contender import flex_contender

    path = next(path for path in EXAMPLES if path.stem == name)
    attention = plan_source(read_pattern(path)).plans[0].attention
    case = case_of(attention, square(256, heads=2, head_size=16))
    contender = flex_contender(case, 64)
    assert check_output(contender, case, true_rows(case)).right
    with torch.no_grad():
        assert contender.audit(lambda: contender.run(case.query, case.key, case.value)) == ""
    with pytest.raises(Unavailable):
        flex_contender(replace(case, backward=True), 64)
