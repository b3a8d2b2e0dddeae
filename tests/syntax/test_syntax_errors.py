"""The exact text of syntax errors: `errors/*.attn`, each with what the parser must say."""

from pathlib import Path

import pytest

from attnc.diagnostics import CompileError
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source

ERRORS = sorted((Path(__file__).parent / "errors").glob("*.attn"))


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_syntax_error_has_its_exact_text(path):
    with pytest.raises(CompileError) as caught:
        parse_source(read_source(path, name=f"errors/{path.name}"))
    assert str(caught.value) + "\n" == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_no_message_names_a_terminal_of_the_grammar(path):
    said = path.with_suffix(".txt").read_text()
    for terminal in ("_SEP", "LPAR", "RPAR", "LBRACE", "NEWLINE", "$END", "Token", "COMPARE", "EQUAL"):
        assert terminal not in said


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-file"),
        ("# only a comment\n\n", "empty-file"),
        ("attention a {\0}", "not-text"),
        ("attention a { mask \ud800 }", "not-text"),
        ("# " + "x" * (1 << 20), "file-too-large"),
        ("# " + "\u20ac" * 400_000, "file-too-large"),
        ("attention a { mask " + "(" * 10_000, "nesting-too-deep"),
        ("attention a { mask " + "not " * 201 + "causal }", "nesting-too-deep"),
        ("attention a { mask " + " + ".join(["i"] * 1000) + " < 3 }", "nesting-too-deep"),
        ("attention a { mask " + " + ".join(["i"] * 40_000) + " < 3 }", "statement-too-long"),
    ],
    ids=lambda value: value if len(value) < 30 else None,
)
def test_limits_have_their_own_errors(text, code):
    with pytest.raises(CompileError) as caught:
        parse_source(SourceFile("limit.attn", text))
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]


def test_two_hundred_levels_are_allowed():
    parse_source(SourceFile("deep.attn", f"def f = {'(' * 200}i{')' * 200}"))
    parse_source(SourceFile("deep.attn", f"def f = {'-' * 200}i"))


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"attention a { mask \xff }", "not-text", "the byte 0xff at offset 19"),
        (b"\x7fELF\0\0", "not-text", "a NUL byte at offset 4"),
        (b"x" * 10_000_000, "file-too-large", "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_text(tmp_path, data, code, words):
    path = tmp_path / "pattern.attn"
    path.write_bytes(data)
    with pytest.raises(CompileError) as caught:
        read_source(path)
    assert caught.value.diagnostics[0].code == code
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CompileError, match=r"cannot read `.*none.attn`: there is no such file"):
        read_source(tmp_path / "none.attn")
    with pytest.raises(CompileError, match=r"cannot read .*: it is a folder"):
        read_source(tmp_path)
