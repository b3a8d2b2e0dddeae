"""The formatter: its text parses to the same tree, and it leaves its own text alone."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.source import SourceFile, Span
from attnc.syntax import tree
from attnc.syntax.format import format_expr, format_file
from attnc.syntax.parse import parse_source

ROOT = Path(__file__).parents[2]
PATTERNS = [
    *sorted((ROOT / "examples").glob("*.attn")),
    ROOT / "attnc" / "syntax" / "prelude.attn",
    *sorted((ROOT / "tests" / "sema" / "errors").glob("*.attn")),
    Path(__file__).parent / "reference.attn",
]
NOWHERE = Span(SourceFile("none", ""), 0, 0, 1, 1)


def parse(text: str) -> tree.File:
    return parse_source(SourceFile("test.attn", text))


@pytest.mark.parametrize("path", PATTERNS, ids=lambda path: path.stem)
def test_formatting_keeps_the_tree_and_is_idempotent(path):
    file = parse(path.read_text())
    text = format_file(file)
    assert parse(text) == file
    assert format_file(parse(text)) == text
    assert [c.text for c in parse(text).comments] == [c.text for c in file.comments]


def test_layout():
    untidy = (
        "# head\nuse   'x'\n".replace("'", '"')
        + "attention a(x: int=1, # one {\n   y: float=2.5) { # open\n # first\n\n\n mask ((i<j)) and  # inside\n"
        "    (j < 3 or (i <\n  x)); score s # both\n\n # before\n   input t:int[B,M]sorted\n} # closed\n# end\n"
    )
    assert format_file(parse(untidy)) == (
        '# head\nuse "x"\n# one {\nattention a(x: int = 1, y: float = 2.5) {  # open\n    # first\n\n    # inside\n'
        "    mask i < j and (j < 3 or i < x)\n    score s  # both\n\n    # before\n    input t: int[B, M] sorted\n"
        "}  # closed\n# end\n"
    )


def test_long_chains_get_several_lines():
    terms = [f"abs(i - j) % {number} == 0" for number in range(1, 9)]
    text = format_file(parse(f"attention a {{ mask {' or '.join(terms)} }}"))
    assert max(map(len, text.splitlines())) < 40
    assert format_file(parse(text)) == text


names = st.sampled_from(["i", "j", "x", "causal"]).map(lambda text: tree.Name(text, NOWHERE))
atoms = (
    names
    | st.integers(0, 99).map(lambda n: tree.Number(n, str(n), NOWHERE))
    | st.sampled_from(["0.5", "1e-3"]).map(lambda text: tree.Number(float(text), text, NOWHERE))
    | st.sampled_from(["true", "false", "inf", "pi"]).map(lambda word: tree.Literal(word, NOWHERE))
)


def compound(inner: st.SearchStrategy[tree.Expr]) -> st.SearchStrategy[tree.Expr]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(lambda op, x: tree.Unary(op, x, NOWHERE), st.sampled_from(["-", "+", "not"]), inner),
        st.builds(
            lambda op, x, y: tree.Binary(op, x, y, NOWHERE),
            st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]),
            inner,
            inner,
        ),
        st.builds(
            lambda parts, ops: tree.Comparison(parts, tuple(ops[: len(parts) - 1]), NOWHERE),
            several,
            st.lists(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), min_size=2, max_size=2),
        ),
        st.builds(lambda op, parts: tree.Logic(op, parts, NOWHERE), st.sampled_from(["and", "or"]), several),
        st.builds(lambda c, x, y: tree.Conditional(c, x, y, NOWHERE), inner, inner, inner),
        st.builds(
            lambda f, parts: tree.Call(f, tuple(tree.Argument(p, span=NOWHERE) for p in parts), NOWHERE), names, several
        ),
        st.builds(lambda t, parts: tree.Subscript(t, parts, NOWHERE), names, several),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(atoms, compound, max_leaves=12))
def test_expressions_survive_being_written_and_read(expr):
    text = format_expr(expr)
    declaration = parse(f"def f = {text}").declarations[0]
    assert isinstance(declaration, tree.Def)
    assert declaration.body == expr
    assert format_expr(declaration.body) == text
