"""Patterns that grow without bound end in an error, soon; so do long chains of files. Warnings."""

import time

import pytest

from attnc.diagnostics import CompileError
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source


def codes(text: str) -> list[str]:
    with pytest.raises(CompileError) as caught:
        check_program(parse_source(SourceFile("big.attn", text)))
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


def chain(first: str, following: str, last: str, count: int) -> str:
    links = "".join(following.format(here=k + 1, before=k) for k in range(count))
    return first + links + last.format(last=count)


GROWING = {
    "doubling lets": (
        chain("attention a {\n let x0 = i\n", " let x{here} = x{before} + x{before}\n", " mask x{last} < 3\n}}", 100),
        "expression-too-large",
    ),
    "doubling definitions": (
        chain("def f0 = i\n", "def f{here} = f{before} + f{before}\n", "attention a {{ mask f{last} < 3 }}", 60),
        "expression-too-large",
    ),
    "doubling arguments": (
        chain(
            "def f0(x) = x + x\n",
            "def f{here}(x) = f{before}(f{before}(x))\n",
            "attention a {{ mask f{last}(i) < 3 }}",
            40,
        ),
        "expression-too-large",
    ),
    "doubling constants": (
        chain("def f0 = 1\n", "def f{here} = f{before} * f{before}\n", "attention a {{ mask f{last} < i }}", 60),
        "expression-too-large",
    ),
    "deep definitions": (
        chain("def f0 = i\n", "def f{here} = f{before} + 1\n", "attention a {{ mask f{last} < 3 }}", 500),
        "nesting-too-deep",
    ),
    "deep arguments": (
        chain("def f0(x) = x\n", "def f{here}(x) = f{before}(x)\n", "attention a {{ mask f{last}(i) < 3 }}", 300),
        "nesting-too-deep",
    ),
    "deep lets": (
        chain("attention a {\n let x0 = i\n", " let x{here} = x{before} + 1\n", " mask x{last} < 3\n}}", 500),
        "nesting-too-deep",
    ),
    "long score": ("attention a {\n" + " score s + 1\n" * 300 + "}", "nesting-too-deep"),
    "long comparison": (f"attention a {{ mask {' < '.join(['i'] * 15_000)} }}", "expression-too-large"),
    "large power": ("attention a { score 2 ** 1000000000000 }", "integer-too-large"),
    "many mistakes": ("attention a {\n" + " mask unknwn\n" * 2000 + "}", "unknown-name"),
}


@pytest.mark.parametrize(("text", "code"), GROWING.values(), ids=GROWING.keys())
def test_growth_ends_in_an_error(text, code):
    started = time.perf_counter()
    assert set(codes(text)) == {code}
    assert time.perf_counter() - started < 10  # a second where nothing else runs


def test_mistakes_are_counted_up_to_a_limit():
    assert len(codes("attention a {\n" + " mask unknwn\n" * 2000 + "}")) == 100


def test_what_is_just_not_too_deep():
    for inner in ("abs(" * 190 + "i" + ")" * 190, " + ".join(["i"] * 190), "exp(" * 190 + "i" + ")" * 190):
        check_program(parse_source(SourceFile("deep.attn", f"attention a {{ score {inner} }}")))
    many = " or ".join(f"j == {number}" for number in range(1000))
    check_program(parse_source(SourceFile("wide.attn", f"attention a {{ mask {many} }}")))


def test_long_chain_of_files(tmp_path):
    for number in range(80):
        (tmp_path / f"f{number}.attn").write_text(f'use "f{number + 1}.attn"\ndef d{number} = i < j\n')
    (tmp_path / "f80.attn").write_text("def last_one = i < j\n")
    with pytest.raises(CompileError) as caught:
        check_program(parse_source(read_source(tmp_path / "f0.attn")))
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["use-too-deep"]
    assert check_program(parse_source(read_source(tmp_path / "f60.attn"))).attentions == ()


def test_use_from_text_without_a_file():
    with pytest.raises(CompileError) as caught:
        check_program(parse_source(SourceFile("<string>", 'use "x.attn"\nattention a { mask near(3) }\n')))
    assert str(caught.value) == (
        "error[use-without-file]: `use` needs a file to start from\n"
        "  --> <string>:1:5\n"
        "   |\n"
        ' 1 | use "x.attn"\n'
        "   |     ^^^^^^^^ this text was not read from a file\n"
        "help: save it to a file, or write the definitions here"
    )


def test_using_a_file_twice_is_a_warning(tmp_path):
    (tmp_path / "b.attn").write_text("def near(w: int) = abs(i - j) <= w\n")
    (tmp_path / "a.attn").write_text('use "b.attn"\nuse "./b.attn"\nattention a { mask near(3) }\n')
    program = check_program(parse_source(read_source(tmp_path / "a.attn", name="a.attn")))
    assert [str(warning) for warning in program.warnings] == [
        "warning[used-twice]: `./b.attn` is used already\n"
        "  --> a.attn:2:5\n"
        "   |\n"
        ' 2 | use "./b.attn"\n'
        "   |     ^^^^^^^^^^ this line does nothing\n"
        "help: remove it"
    ]


def test_links_are_followed_before_the_folder_is_checked(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.attn").write_text("def near = i < j\n")
    (inside / "link.attn").symlink_to(outside / "secret.attn")
    (inside / "loop.attn").symlink_to(inside / "loop.attn")
    for name, code in (("link", "use-outside-folder"), ("loop", "use-not-found")):
        path = inside / f"main_{name}.attn"
        path.write_text(f'use "{name}.attn"\nattention a {{ mask near }}\n')
        with pytest.raises(CompileError) as caught:
            check_program(parse_source(read_source(path)))
        assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]
