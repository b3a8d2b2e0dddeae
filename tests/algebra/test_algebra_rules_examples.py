"""The shipped examples: legal before and after simplification, and their normal form can be read in again."""

from pathlib import Path

import pytest

from attnc.algebra.scoring import derive_scoring
from attnc.algebra.simplify import simplify_attention
from attnc.ir.nodes import Score
from attnc.ir.program import NormalizeKind
from attnc.ir.show import show, show_attention
from attnc.ir.verify import verify, verify_expression
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.attn"))


def attentions(name, text, path=None):
    return check_program(parse_source(SourceFile(name, text, path)), params=None).attentions


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    for attention in attentions(path.name, path.read_text(), path):
        verify(attention)
        simple, _ = simplify_attention(attention)
        verify(simple)
        assert simplify_attention(simple) == (simple, ())
        score, base_2, _, steps = derive_scoring(simple)
        verify_expression(score, score=True)
        assert (base_2 is None) == (attention.normalize.kind is not NormalizeKind.SOFTMAX)
        if base_2 is not None:
            verify_expression(base_2, score=True)
            assert [step.rule for step in steps if step.rule == "base-2"]
            assert (score == Score()) == (base_2 == Score())
        (again,) = attentions("<shown>", show_attention(simple))
        again, _ = simplify_attention(again)
        assert (again.mask, again.score, again.scale, again.normalize) == (
            simple.mask,
            simple.score,
            simple.scale,
            simple.normalize,
        )
        assert (again.weight, again.align, again.tensors) == (simple.weight, simple.align, simple.tensors)


@pytest.mark.parametrize(
    ("statements", "mask", "score"),
    [
        ("mask not (j > i or not window(4))", "j <= i and -4 < i - j and i - j < 4", "s"),
        ("mask causal\nmask i - j >= 0 and (j < 9 or j < 5)", "j <= i and j < 9", "s"),
        ("mask causal if true else window(3)", "j <= i", "s"),
        ("mask any(t < 4, causal and j % 4 == t)", "j <= i and any(t < 4, j % 4 == t)", "s"),
        ("mask all(t < 1, j >= t)", "j >= 0", "s"),
        ("score clamp(clamp(s, -3, 9), -5, 7)", "true", "min(max(s, -3.0), 7.0)"),
        ("score softcap(s * 2, 8)", "true", "tanh(s * 0.25) * 8.0"),
        ("score s; score s * 2; score s / 4", "true", "s * 0.5"),
        ("score where(j < 4, where(j < 4, s, 1), 2)", "true", "where(j < 4, s, 2.0)"),
        ("score s + (i - i)", "true", "s"),
    ],
)
def test_normal_forms(statements, mask, score):
    (attention,) = attentions("<test>", f"attention a {{\n{statements}\n}}")
    simple, _ = simplify_attention(attention)
    assert show(simple.mask) == mask
    assert show(simple.score) == score
