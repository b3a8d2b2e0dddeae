"""The commands on files with layers."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attnc
from attnc import cli
from attnc.compiler import import_compiled, plan_source
from attnc.source import SourceFile
from attnc.verify.layers import verify_layer

EXAMPLE = Path(__file__).parents[2] / "examples" / "monarch_ffn.attn"
LATENTS = EXAMPLE.with_name("mla.attn")
TEXT = """attention near(reach: int = 40) {
    input gain: float
    mask causal and i - j < reach
    score s * gain
}
layer block(width: int = 24) {
    norm rms
    heads 2
    query low_rank(3); value conv(2, 1)
    rotary theta = 100
    attend near(reach = 3)
    feedforward gelu(hidden = 12, monarch(3))
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    Path("block.attn").write_text(TEXT)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_compile_names_what_is_in_the_module(place):
    assert run("compile", "block.attn").stdout == "block.attn -> block.py  (near, block_near, block)\n"
    assert "class Block(nn.Module):" in Path("block.py").read_text()
    shown = run("compile", "block.attn", "--emit", "ir").stdout
    assert "layer block(width: int = 24) {" in shown
    plan = run("compile", "block.attn", "--emit", "plan").stdout
    assert "value: conv(2, 1), 24 x 24, 624 parameters: conv, matmul, kernels causal" in plan
    told = run("compile", "block.attn", "--target", "flex", code=1).stderr
    assert told.startswith("error[no-flex-layer]: the layer `block` calls a compiled attention")
    assert "block.attn:6:7" in told


def test_explain(place):
    near, own, layer = json.loads(run("explain", "block.attn", "--json", "-n", 64).stdout)
    assert (near["name"], own["name"], layer["name"], layer["kind"]) == ("near", "block_near", "block", "layer")
    module = attnc.load("block.attn")
    assert layer["parameters"] == sum(one.numel() for one in module.Block().parameters())
    assert layer["attention_flops"] == 4 * 12 * 2 * (3 * 64 - 3)
    assert attnc.explain("block.attn", length=64)[-1] == layer
    text = run("explain", "block.attn", "-n", 64).stdout
    assert "block(width = 24)" in text
    assert "Projections at 64 positions" in text
    assert "attend near(reach = 3)" in text


def test_explain_of_the_example():
    layer = json.loads(run("explain", EXAMPLE, "--json").stdout)[-1]
    down = layer["projections"][-1]
    assert (down["parameters"], down["dense_parameters"], down["form"]) == (81920, 1048576, "2 bmms")


def test_verify_finds_what_is_wrong_with_a_layer(monkeypatch):
    compiled = plan_source(SourceFile("block.attn", TEXT))
    module = import_compiled(compiled)
    (plan,) = compiled.layers
    outcomes = list(verify_layer(plan, module))
    assert [one.problem for one in outcomes] == ["", "", ""]
    assert all(one.cases == 4 and one.worst <= 1 for one in outcomes)
    monkeypatch.setattr(module, "rotate_pairs", lambda x, positions, theta: x)
    assert "output: error" in next(iter(verify_layer(plan, module))).problem


def test_verify_tries_both_orders_and_steps(monkeypatch):
    text = """attention a { input doc: int[B, M] sorted
 mask causal and same(doc) }
layer b(width: int = 24) { heads 4; kv_heads 2; key low_rank(5); value low_rank(4); attend a }"""
    compiled = plan_source(SourceFile("b.attn", text))
    module = import_compiled(compiled)
    (plan,) = compiled.layers

    def problems():
        return {one.topic: one.problem for one in verify_layer(plan, module)}

    topics = [
        f"layer {topic} ({order})"
        for order in ("absorb", "expand")
        for topic in ("output", "output in half precision", "gradients")
    ]
    found = problems()
    assert list(found) == [*topics, "layer output by steps"]
    assert not any(found.values())
    monkeypatch.setattr(module, "absorb_up", lambda query, up, heads: 99 * query[..., :1].expand(-1, -1, -1, 5))
    found = problems()
    assert all(found[f"layer {topic} (absorb)"] for topic in ("output", "gradients"))
    assert not any(found[topic] for topic in topics if topic.endswith("(expand)"))
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "extend_cache", lambda cache, key, value, of_context: module.LayerCache(key, value, of_context)
    )
    found = problems()
    assert "doc has shape" in found.pop("layer output by steps")
    assert not any(found.values())


def test_explain_has_the_prices_of_both_orders(place):
    layer = json.loads(run("explain", LATENTS, "--json", "-n", 4096).stdout)[-1]
    key, value = layer["latents"]
    assert (key["name"], key["rank"], value["name"], value["rank"]) == ("key", 128, "value", 128)
    pairs, factor = 16 * 4096 * 4097 // 2, 2 * 128 * 64 * 16
    for one in (key, value):
        assert [(price["form"], price["flops"], price["chosen"]) for price in one["whole"]] == [
            ("expand", factor * 4096 + 2 * pairs * 64, True),
            ("absorb", factor * 4096 + 2 * pairs * 128, False),
        ]
        assert [(price["form"], price["flops"], price["chosen"]) for price in one["step"]] == [
            ("absorb", factor + 2 * 16 * 4096 * 128, True),
            ("expand", factor * 4096 + 2 * 16 * 4096 * 64, False),
        ]
        latents, up, query = 128 * 4096, 16 * 64 * 128, 16 * 64  # each is read; what lies between is written and read
        assert [price["bytes"] for price in one["step"]] == [
            2 * (latents + up + query + 2 * 16 * 128), 2 * (latents + up + query + 2 * 16 * 64 * 4096)
        ]  # fmt: skip
    assert layer["cache"] == {
        "kept": "keys", "numbers_per_token": 256, "numbers_of_heads": 2048, "numbers": 0, "refused_because": "",
        "call_of": "",
    }  # fmt: skip
    text = run("explain", LATENTS, "-n", 4096).stdout
    assert "256 numbers of each token; keys and values of heads would be 2,048" in text
    (row,) = [line for line in text.splitlines() if "(q up) c^T" in line]
    assert row.split()[:2] == ["key", "absorb"]
    assert row.split()[-1] == "one"
    own = json.loads(run("explain", "block.attn", "--json").stdout)[-1]
    assert own["latents"] == []
    assert own["cache"]["refused_because"].startswith("the kernels of `value` read tokens")
    assert "none: the kernels of `value`" in run("explain", "block.attn").stdout
    Path("turned.attn").write_text(
        "attention a { mask causal }\nattention b { feature relu\n mask causal }\n"
        "layer turned(width: int = 24) { heads 2; key low_rank(3); rotary theta = 100; attend a }\n"
        "layer summed(width: int = 24) { heads 2; attend b }"
    )
    text = run("explain", "turned.attn").stdout
    assert "`key` is always expanded: `rotary` turns the keys of heads." in text
    assert "48 numbers of each token: keys and values of heads" in text
    assert "312 numbers however many tokens: sums over keys" in text


@pytest.mark.slow
def test_commands_that_know_attentions_alone(place):
    verified = json.loads(run("verify", "block.attn", "--json").stdout)
    assert {one["attention"] for one in verified[0]["checks"]} == {"near", "block_near", "block"}
    assert not any(one["problem"] for one in verified[0]["checks"])
    run("show", "block.attn", "-n", 64, "-o", "out.png")
    run("check", "block.attn")
    run("compare", "block.attn:near", "block.attn:near")
    run("bench", "block.attn", "-n", 64, "--peers", "none", "--heads", 1)


def test_names_that_cannot_stand_beside_each_other():
    for text, code in (
        ("attention a { }\nlayer dense_projection(width: int = 4) { heads 2; attend a }", "unusable-name"),
        ("attention a { }\nlayer value_error(width: int = 4) { heads 2; attend a }", None),
        ("attention fooBar { }\nlayer foo_bar(width: int = 4) { heads 2; attend fooBar }", "name-clash"),
        ("attention a { }\n" + "".join(f"layer {name}(width: int = 4) {{ heads 2; attend a }}\n" for name in "bB"),
         "name-clash"),
        ("attention a { input x: float\n score s * x }\nlayer b(width: int = 4) { heads 2; attend a }",
         "unusable-name"),
        ("attention functional { }\nlayer b(width: int = 4) { heads 2; attend functional }", "unusable-name"),
        ("attention a { }\nlayer none(width: int = 4) { heads 2; attend a }", "unusable-name"),
    ):  # fmt: skip
        if code is None:
            attnc.loads(text)
            continue
        with pytest.raises(attnc.CompileError) as caught:
            attnc.loads(text)
        assert [one.code for one in caught.value.diagnostics] == [code], text


def test_assertions_of_a_layers_attention_are_proven():
    text = "attention a(back: bool = true) { mask not back or j <= i\n assert causal }\n"
    layer = "layer b(width: int = 4) { heads 2; attend a(back = %s) }"
    attnc.loads(text + layer % "true")
    with pytest.raises(attnc.CompileError, match="assertion-false") as caught:
        attnc.loads(text + layer % "false")
    assert "in the layer `b`, which attends with back = false" in str(caught.value)


def test_a_study_trains_a_layer():
    from attnc.study.contenders import contender, planned_patterns
    from attnc.study.flops import matrix_elements, step_flops
    from attnc.study.models import Size
    from attnc.study.recall import recall

    text = (
        "attention a { mask causal }\nlayer block(width: int = 16) { norm rms; heads 4; attend a; query low_rank(2) }"
    )
    (pattern,) = planned_patterns(plan_source(SourceFile("block.attn", text)))
    task, size = recall(24, 2, 4, 4, 4, 1.0), Size(16, 3, 2)
    one = contender(pattern, task, size, "block")
    model = one.make(0)
    assert len(model.layers.layers) == 3
    elements = 3 * (3 * 256 + 2 * 32) + model.head.weight.numel()
    assert matrix_elements(model) == elements
    assert step_flops(model, size, one.pairs, 24, 2) == 6 * 48 * elements + 14 * 2 * 300 * 3 * 16
    tokens = task.draw(5, torch.Generator().manual_seed(1)).tokens
    assert model(tokens).isfinite().all()
    assert contender(pattern, task, Size(32, 1, 2), "block").missing == "its width is 16, and the study's is 32"


@pytest.mark.parametrize(
    ("line", "reads"), [("scale 1.0 / (r + 1)", "r"), ("weight 1.0 / (M + j)", "M"), ("score s + 1.0 * j", "")]
)
def test_explain_says_where_stretches_are_not_the_whole_sequence(tmp_path, line, reads):
    file = tmp_path / "kept.attn"
    file.write_text(f"attention a {{ mask causal\n {line} }}\nlayer l(width: int = 32) {{ heads 4\n attend a }}\n")
    text = CliRunner().invoke(cli.app, ["explain", str(file)]).stdout
    assert (f"Rows depend on `{reads}` of their call: stretches are not the whole sequence" in text) == bool(reads)
