"""What `explain` says of backward passes."""

import io

import pytest
from rich.console import Console

from attnc.checking import check_source
from attnc.explanation import explain_plan
from attnc.explanation_text import lay_out
from attnc.plan.choose import plan_attention
from attnc.source import SourceFile

LENGTH, HEADS, HEAD_SIZE = 96, 2, 16


def explained(text):
    attention = check_source(SourceFile("p.attn", text), complete=True).program.attentions[0]
    return explain_plan(plan_attention(attention), length=LENGTH, heads=HEADS, head_size=HEAD_SIZE)


def words(explanation):
    console = Console(file=io.StringIO(), width=200)
    for part in lay_out(explanation):
        console.print(part, markup=False)
    return console.file.getvalue()


def slopes(text):
    found = explained(text).as_json()["gradients"]["slopes"]
    return [(one["of"], one["by"], one["read_by"], one["slope"]) for one in found]


@pytest.mark.parametrize(
    ("declared", "index", "axes"),
    [
        ("float[H]", "h", "head"),
        ("float[B, H, N]", "b, h, i", "row"),
        ("float[M]", "j", "column"),
        ("float[H, 513]", "h, min(max(i - j, -256), 256) + 256", "diagonal"),
        ("float[N, M]", "i, j", "pair"),
    ],
)
def test_tables_say_which_pairs_share_an_element(declared, index, axes):
    found = slopes(f"attention a {{ input t: {declared}\n score s + 2 * t[{index}] }}")
    assert found[0] == ("score", "s", None, "1.0")
    assert [one[0] for one in found[1:]] == ["score"]
    assert found[1][2:] == (axes, "2.0")


def test_every_function_of_a_pattern_is_differentiated():
    found = slopes(
        "attention a { learned sink: float[H] = 0.0\n learned beta: float[H] = 1.0\n input t: float[M]\n"
        " scale beta[h]\n score 3 * s\n weight exp(t[j])\n normalize softmax(sink = sink[h]) }"
    )
    assert [(of, by) for of, by, *_ in found] == [
        ("score", "s"),
        ("weight", "t[j]"),
        ("sink", "sink[h]"),
        ("scale", "beta[h]"),
    ]
    assert found[0][3] == "3.0"
    assert found[1][3] == "exp(t[j])"
    biased = slopes("attention a { learned t: float[H] = 0.0\n normalize sigmoid(bias = t[h]) }")
    assert ("bias", "t[h]", "head", "1.0") in biased


@pytest.mark.parametrize(
    ("text", "kept", "numbers"),
    [
        ("mask causal", "lse", 1),
        ("weight exp(-abs(i - j) / 8)", "peak", 2),
        ("mask window(9)\nnormalize rows", "total", 1),
        ("normalize sigmoid", None, 0),
    ],
)
def test_work_and_memory_of_the_backward_pass(text, kept, numbers):
    explanation = explained(f"attention a {{ {text} }}")
    found = explanation.as_json()["gradients"]
    assert found["kept"] == kept
    assert found["kept_bytes"] == HEADS * LENGTH * (2 * HEAD_SIZE + 4 * numbers)
    assert found["flops"] == 10 * HEAD_SIZE * HEADS * explanation.pairs
    shown = words(explanation)
    assert f"{found['kept_bytes']:,} bytes" in shown
    assert f"{found['flops']:,}" in shown


def test_data_that_decides_leaves_the_work_open():
    explanation = explained("attention a { input doc: int[B, M] sorted\n mask same(doc) }")
    assert explanation.as_json()["gradients"]["flops"] is None
    assert "Gradients" in words(explanation)
