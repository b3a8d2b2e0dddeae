"""Whatever is written, the front end answers with a program or with a diagnosis."""

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attnc.diagnostics import CompileError
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.format import format_file
from attnc.syntax.parse import parse_source

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
WORDS = [
    "use",
    "def",
    "attention",
    "layer",
    "input",
    "learned",
    "let",
    "mask",
    "score",
    "scale",
    "weight",
    "normalize",
    "feature",
    "prepare",
    "keys",
    "decompose",
    "align",
    "assert",
    "sorted",
    "and",
    "or",
    "not",
    "if",
    "else",
    "true",
    "false",
    "inf",
    "pi",
    "via",
    "i",
    "j",
    "b",
    "h",
    "r",
    "s",
    "N",
    "M",
    "B",
    "H",
    "D",
    "g",
    "K",
    "t",
    "d0",
    "x",
    "causal",
    "window",
    "same",
    "first",
    "last",
    "any",
    "all",
    "sum",
    "hash",
    "min",
    "max",
    "abs",
    "clamp",
    "where",
    "softcap",
    "exp",
    "int",
    "float",
    "bool",
    "softmax",
    "sigmoid",
    "relu",
    "rows",
    "none",
    "end",
    "at",
    "favor",
    "rotary",
    "query",
    "key",
    "heads",
    "attend",
    "norm",
    "dense",
    "width",
    "nonempty",
    "0",
    "1",
    "2",
    "0.5",
    "1e3",
    "9223372036854775808",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    ";",
    "=",
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "<",
    "<=",
    ">",
    ">=",
    "==",
    "!=",
    "?",
    '"',
    "#",
    "&",
    "|",
    "!",
    "^",
    ".",
    "\n",
    "\t",
]


def attempt(stage, *args, **options):
    """Run a stage; None stands for CompileError, and anything else that is raised fails the test."""
    try:
        return stage(*args, **options)
    except CompileError as error:
        said = str(error)
    assert said.startswith(("error[", "warning["))
    return None


def answer(text: str) -> None:
    file = attempt(parse_source, SourceFile("fuzz.attn", text))
    if file is None:
        return
    again = parse_source(SourceFile("fuzz.attn", format_file(file)))
    assert again == file
    assert format_file(again) == format_file(file)
    for required in (True, False):
        attempt(check_program, file, require_params=required)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
@example("\ufeffattention a {}")
@example("attention a {}\r\n")
@example("def f = 1\x0c")
@example("\ud800")
def test_any_text_is_answered(text):
    answer(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_any_words_are_answered(words):
    answer(" ".join(words))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_any_body_is_answered(words):
    answer(
        f"attention a(p: int = 3, q: float) {{\n input t: int[B, M]\n input x: float[4]\n mask {' '.join(words)}\n}}\n"
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_mutated_examples_are_answered(path):
    text = path.read_text()
    chance = random.Random(path.stem)
    for _ in range(40):
        mutated = text
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(mutated) + 1)
            end = min(len(mutated), at + chance.choice((0, 0, 1, 2, 8)))
            mutated = mutated[:at] + chance.choice(("", *WORDS)) + mutated[end:]
        answer(mutated)
