"""Plans of layers: which positions kernels read, what projections cost, and the text of a layer."""

import pytest

from attnc.compiler import plan_source
from attnc.explanation_layers import explain_layer
from attnc.ir.show_layer import show_layer
from attnc.plan.convolutions import Direction
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.stage_text import layer_plan_text
from attnc.syntax.parse import parse_source

MASKS = {
    "full": "",
    "causal": "mask causal",
    "window": "mask window(3)",
    "narrow": "mask window(2)",
    "chunks": "mask chunk(16)",
    "prefix_lm": "mask causal or j < 5",
    "bigbird": "mask random_blocks(8, 2, 0)",
    "near": "mask grid_near(8, 1)",
}


def plan_of(items, attention="", width=64):
    text = f"attention a {{ {attention} }}\nlayer l(width: int = {width}) {{ heads 4; attend a\n {items} }}"
    (plan,) = plan_source(SourceFile("l.attn", text)).layers
    return plan


@pytest.mark.parametrize(
    ("mask", "kernel", "direction"),
    [
        ("full", 5, Direction.CENTRED),
        ("full", 2, Direction.CAUSAL),
        ("causal", 1, Direction.CENTRED),
        ("causal", 2, Direction.CAUSAL),
        ("causal", 3, Direction.CAUSAL),
        ("window", 5, Direction.CENTRED),
        ("window", 7, Direction.CAUSAL),
        ("narrow", 4, Direction.CENTRED),
        ("narrow", 5, Direction.CAUSAL),
        ("chunks", 3, Direction.CAUSAL),
        ("prefix_lm", 3, Direction.CAUSAL),
        ("bigbird", 3, Direction.CAUSAL),
    ],
)
def test_kernels_look_ahead_where_every_query_does(mask, kernel, direction):
    assert plan_of(f"value conv({kernel}, 1)", MASKS[mask]).projection("value").direction is direction


def test_squares_of_a_grid_are_seen():
    for mask in ("full", "near"):
        plan = plan_of("query conv2d(8, 3, 1)", MASKS[mask])
        assert plan.projection("query").direction is Direction.CENTRED
    assert plan_of("query conv2d(8, 1, 1)", MASKS["causal"]).projection("query").direction is Direction.CENTRED


def test_costs_of_projections():
    plan = plan_of(
        "kv_heads 2; query low_rank(8); key monarch(4); value masked(i >= j); output banded(2)\n"
        " norm rms; feedforward swiglu(hidden = 128, block_diagonal(8))",
        "mask causal\n learned t: float[H, 3] = 1.0\n score s * t[h, 0]",
    )
    parameters = {one.matrix.name: one.parameters for one in plan.projections}
    assert parameters == {
        "query": 8 * 128, "key": 4 * (8 * 16 + 8 * 8), "value": 32 * 33 // 2, "output": 64 + 2 * 63,
        "gate": 128 * 64 // 8, "up": 128 * 64 // 8, "down": 128 * 64 // 8,
    }  # fmt: skip
    assert plan.projection("query").bytes == 2 * (64 + 64 + 2 * 8)
    explained = explain_layer(plan, length=100)
    assert explained.parameters == sum(parameters.values()) + 2 * 64 + 4 * 3
    assert [one.flops for one in explained.projections] == [200 * one for one in parameters.values()]
    assert explained.attention_flops == 4 * 16 * 4 * 5050
    assert explained.flops == explained.attention_flops + 200 * sum(parameters.values())
    assert explained.attention_bytes == 2 * 100 * 16 * (2 * 4 + 2 * 2)
    found = explained.as_json()
    assert (found["kind"], found["name"], found["attention"]) == ("layer", "l", "a")
    assert found["projections"][1] | {"bytes": 0} == {
        "name": "key", "structure": "monarch", "arguments": {"blocks": "4"}, "rows": 32, "columns": 64,
        "form": "2 bmms", "taken": {"form": "bmms of strips", "reason": "default: not measured"},
        "via": None, "kernels": None, "parameters": 768, "dense_parameters": 2048, "flops": 153600, "bytes": 0,
    }  # fmt: skip


def test_shorter_keys_cost_less():
    whole, half = (
        explain_layer(plan_of(f"key conv(3, {stride}); value conv(3, {stride})"), length=64) for stride in (1, 2)
    )
    assert half.attention_flops * 2 == whole.attention_flops
    assert half.projections[1].flops * 2 == whole.projections[1].flops


def test_entries_that_sets_cannot_count_are_evaluated():
    plan = plan_of("query masked(hash(i, j) % 5 == 0)")
    assert plan.projection("query").parameters is None
    cost = explain_layer(plan, length=8).projections[0]
    assert 0.15 * 4096 < cost.parameters < 0.25 * 4096
    assert "query: masked(hash(i, j) % 5 == 0), 64 x 64, ? parameters: bmm of tiles" in layer_plan_text(plan)


def test_the_text_of_a_layer_means_the_same_again():
    text = (
        "attention near(w: int = 4) { mask i - j < w }\n"
        "layer block(width: int = 64, part: int = 2) {\n norm layer\n heads 4; kv_heads 2\n query masked(i <= j)\n"
        ' key low_rank(2 * 4) via bilinear("scheme.json", 2)\n rotary theta = 100\n attend near(width // 8)\n'
        " output banded(part); feedforward gelu(hidden = 4 * width, monarch(4) via strassen(1))\n}\n"
    )

    def checked(text):
        return check_program(parse_source(SourceFile("l.attn", text))).layers[0]

    layer = checked(text)
    shown = show_layer(layer)
    assert "layer block(width: int = 64) {  # part = 2" in shown
    assert show_layer(checked(text.split("layer")[0] + shown)) == shown.replace("  # part = 2", "")
