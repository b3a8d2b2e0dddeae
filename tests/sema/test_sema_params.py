"""Parameters: their values, what is refused, and which attention they go to."""

import math

import pytest

from attnc.diagnostics import CompileError
from attnc.ir.nodes import Const
from attnc.ir.types import Type
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

TEXT = """attention a(w: int, x: float = 1, on: bool = true, v: int = 2 * 3) {
    mask i - j < w and on
    score s * x
}
attention c(w: int = 3, u: int = w + 1) {
    mask i - j < w + u
}
"""


def check(text=TEXT, **options):
    return check_program(parse_source(SourceFile("p.attn", text)), **options)


def said(text=TEXT, **options) -> str:
    with pytest.raises(CompileError) as caught:
        check(text, **options)
    return str(caught.value)


def test_values_and_defaults():
    first, second = check(params={"w": 5, "x": 2}).attentions
    assert first.params == (
        ("w", Const(5, Type.INT)),
        ("x", Const(2.0, Type.FLOAT)),
        ("on", Const(True, Type.BOOL)),
        ("v", Const(6, Type.INT)),
    )
    assert second.params == (("w", Const(5, Type.INT)), ("u", Const(6, Type.INT)))
    assert first.params[0][1].name == "w"
    assert check(params={"w": 5, "x": math.inf}).attentions[0].params[1][1].value == math.inf


def test_missing_parameter():
    assert said() == (
        "error[missing-parameter]: `a` needs a value for `w`\n"
        "  --> p.attn:1:13\n"
        "   |\n"
        " 1 | attention a(w: int, x: float = 1, on: bool = true, v: int = 2 * 3) {\n"
        "   |             ^ it has no default\n"
        "help: give one: `-D w=64` on the command line, `w=64` in Python"
    )
    assert [a.name for a in check(require_params=False).attentions] == ["a", "c"]


def test_one_attention_needs_only_its_own():
    assert [a.name for a in check(attention="c").attentions] == ["c"]
    assert "unknown-parameter" in said(attention="c", params={"x": 1.0})
    text = said("attention a {}\nattention ab {}\n", attention="abc")
    assert text == "error[unknown-attention]: there is no attention `abc`\nhelp: did you mean `ab`?"


def test_unknown_parameter():
    assert said(params={"w": 1, "zzz": True}) == (
        "error[unknown-parameter]: there is no parameter `zzz`\nhelp: there are `w`, `x`, `on`, `v`, `u`"
    )
    assert said("attention a(window: int = 3) {}", params={"windw": 3}) == (
        "error[unknown-parameter]: there is no parameter `windw`\nhelp: did you mean `window`?"
    )
    assert "this file has no parameters" in said("attention a {}", params={"w": 3})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("w", 0.5, "an int"),
        ("w", True, "an int"),
        ("w", "3", "an int"),
        ("x", True, "a float"),
        ("x", None, "a float"),
        ("on", 1, "a bool"),
    ],
)
def test_wrong_type(name, value, kind):
    text = said(params={"w": 5, name: value})
    assert text.startswith(f"error[wrong-parameter-type]: `{name}` cannot be {value!r}\n  --> p.attn:1:")
    assert f"^ it is {kind}\nhelp: give {kind}" in text


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_beyond_64_bits(value):
    assert "error[integer-too-large]: the value given for `w` does not fit into 64 bits" in said(params={"w": value})


def test_values_that_make_a_divisor_zero():
    text = "attention a(w: int) { mask i // w == j // w }"
    assert check(text, params={"w": 2}).attentions
    assert check(text, require_params=False).attentions
    assert said(text, params={"w": 0}).count("error[division-by-zero]") == 2
