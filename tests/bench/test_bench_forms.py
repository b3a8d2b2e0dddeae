"""What libraries are told of a pattern: guessed, proven, and nothing where it would be something else."""

from pathlib import Path

import pytest

from attnc.bench import cases
from attnc.bench.contender import Unavailable
from attnc.bench.forms import Form, find_form
from attnc.bench.libraries.natten import _square
from attnc.checking import check_source
from attnc.compiler import plan_source
from attnc.files import read_pattern
from attnc.source import SourceFile

PATTERNS = Path(cases.__file__).parent / "patterns"
DOCUMENTS = "input doc: int[B, M] sorted\n"


def attention_of(text):
    return plan_source(SourceFile("p.attn", f"attention a {{ {text} }}")).plans[0].attention


def shipped(name):
    return check_source(read_pattern(PATTERNS / f"{name}.attn"), complete=True).program.attentions[0]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", Form()),
        ("mask causal", Form(right=0)),
        ("mask j < i + 1 and not (j > i)", Form(right=0)),
        ("mask causal and i - j < 256", Form(255, 0)),
        ("mask window(9)", Form(8, 8)),
        ("mask i - j <= 3", Form(left=3)),
        ("mask causal and dilated(64, 4)", Form(252, 0, 4)),
        ("mask causal and (i - j) % 64 == 0", Form(right=0, gap=64)),
        ("mask causal\n scale 0.25", Form(right=0, scale=0.25)),
        ("mask causal\n score softcap(s, 50.0)", Form(right=0, cap=50.0)),
        ("mask causal\n score 30 * tanh(s / 30)", Form(right=0, cap=30.0)),
        (f"{DOCUMENTS} mask causal and same(doc)", Form(right=0, documents="doc")),
        (f"{DOCUMENTS} mask same(doc)", Form(documents="doc")),
        ("mask causal\n learned t: float[H] = 0.1\n score s - t[h] * (i - j)", Form(right=0, slopes="t")),
        ("learned t: float[H] = 0.1\n score s - t[h] * abs(j - i)", Form(slopes="t")),
        (
            f"{DOCUMENTS} learned t: float[H] = 0.1\n mask causal and same(doc)\n score s + t[h] * (j - i)",
            Form(right=0, documents="doc", slopes="t"),
        ),
    ],
)
def test_forms(text, form):
    assert find_form(attention_of(text)) == form


@pytest.mark.parametrize(
    "text",
    [
        "mask causal and (i - j < 9 or j < 4)",
        "mask causal and i - j < 9 * (h + 1)",
        "mask i // 64 == j // 64",
        "mask causal and not (i == 40 and j == 3)",
        "mask causal and (i - j < 9 or i > 9000)",  # the middle query alone looks like a window
        "input doc: int[B, M]\n mask causal and same(doc)",
        "input n: int[B]\n mask j < n[b]",
        "score tanh(s)",
        "score softcap(s, 50.0) + 0.1",
        "score softcap(s, 50.0) * where(i == j, 2, 1)",
        "learned t: float[H] = 0.1\n score s - t[h] * (i - j)",  # not causal: a bonus for keys behind the query
        "learned t: float[H] = 0.1\n score s - 2 * t[h] * abs(i - j)",
        "learned t: float[9] = 0.1\n score s + t[clamp(i - j, 0, 8)]",
        "weight 1.0 + h",
        "normalize softmax(sink = 0.0)",
        "normalize sigmoid(bias = 0.0)",
    ],
)
def test_what_has_no_form(text):
    with pytest.raises(Unavailable, match=r"it has no such|it has no factors"):
        find_form(attention_of(text))


def test_images_of_natten_are_moved_inside_and_ours_are_cut_off():
    assert _square(shipped("standard/neighborhood_inside")) == (128, 3)
    with pytest.raises(Unavailable, match="moved inside at the border, and this pattern cuts them off"):
        _square(shipped("neighborhood"))
    with pytest.raises(Unavailable, match="no such pattern"):
        _square(shipped("literature/swin"))


def test_what_a_library_has_no_argument_for_is_refused():
    for form, word in (
        (Form(), "not causal"), (Form(9, 0), "windows"), (Form(9, 0, 3), "dilation"), (Form(9, 9), "windows"),
        (Form(right=0, documents="doc"), "documents"), (Form(right=0, cap=2.0), "soft cap"),
        (Form(right=0, slopes="t"), "slopes"),
    ):  # fmt: skip
        with pytest.raises(Unavailable, match=word):
            form.without()
    Form(9, 9).without(window=True, full=True)
    Form(9, 0, 3).without(gap=True)
    with pytest.raises(Unavailable, match="dilation"):
        Form(9, 0, 3).without(window=True)
