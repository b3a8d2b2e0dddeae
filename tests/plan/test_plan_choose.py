"""What is planned for an attention."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "algebra"))
from brief_ir import attention, expression, scalar

from attnc.diagnostics import CompileError
from attnc.ir.nodes import TRUE, Const
from attnc.ir.program import Align, AlignKind, Deferred, Normalize, NormalizeKind
from attnc.ir.types import Type
from attnc.plan.choose import plan_attention
from attnc.plan.kernel_plan import Form, Library


@pytest.mark.parametrize(
    ("mask", "library"),
    [
        ("True", Library.FULL),
        ("j < M", Library.FULL),
        ("j <= i", Library.CAUSAL),
        ("not (i < j) and i - j < M", Library.CAUSAL),
        ("j <= i and i - j < 100", None),
    ],
)
def test_plain_patterns_are_library_calls(mask, library):
    (only,) = plan_attention(attention(mask)).passes
    assert only.library is library
    assert only.form is (Form.SOFTMAX if library is None else Form.LIBRARY)


@pytest.mark.parametrize(
    "changes",
    [
        {"score": expression("1.0")},
        {"weight": expression("0.5")},
        {"scale": expression("float(h)")},
        {"normalize": Normalize(NormalizeKind.SOFTMAX, sink=Const(1.0, Type.FLOAT))},
        {"normalize": Normalize(NormalizeKind.SIGMOID)},
        {"align": Align(AlignKind.AT, Const(3, Type.INT))},
    ],
)
def test_anything_besides_softmax_of_a_dot_product_is_not(changes):
    (only,) = plan_attention(replace(attention("j <= i"), **changes)).passes
    assert only.form is Form.SOFTMAX


def test_a_scale_of_its_own_is_not_library_work():
    example = attention("j <= i", tensors=(scalar("heat", Type.FLOAT),))
    tempered = replace(example, scale=expression("heat", {"heat": Type.FLOAT}))
    assert plan_attention(tempered).passes[0].form is Form.SOFTMAX


def test_a_false_assertion_stops_the_plan():
    with pytest.raises(CompileError, match="assertion-false"):
        plan_attention(attention("True", asserts=("j <= i",)))


def test_decompose_none_is_one_pass_in_plain_order():
    one_pass = replace(attention("i - j < 100 and (i - j) % 4 == 0"), deferred=(Deferred("decompose", "none"),))
    (only,) = plan_attention(one_pass).passes
    assert str(only.layout) == "identity"
    with pytest.raises(CompileError, match="nystrom-leaks"):
        plan_attention(replace(one_pass, deferred=(Deferred("decompose", "nystrom"),)))


@pytest.mark.parametrize(
    ("mask", "loops"),
    [
        ("True", 2),
        ("j <= i", 2),
        ("j <= i and i - j < 256", 3),
        ("j <= i and (i - j < 1024 or j < 4)", 4),
        ("(-257 < i - j and i - j < 257) or i < 1 or j < 1", 4),
        ("j <= i or j < 100", 2),
        ("i // 128 == j // 128", 3),
    ],
)
def test_patterns_come_out_as_few_loops(mask, loops):
    tiles = plan_attention(attention(mask)).passes[0].tiles
    assert len(tiles.intervals) == loops
    assert tiles.intervals[0].residual == TRUE or len(tiles.intervals) > 2
