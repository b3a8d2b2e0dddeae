"""What the stages behind the checker say, exactly: `diagnostics/NAME.attn` is compiled, NAME.txt is expected."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnc.cli import app

FILES = sorted((Path(__file__).parent / "diagnostics").glob("*.attn"))


def compile_(name):
    result = CliRunner().invoke(app, ["compile", name, "-o", "out.py"])
    assert Path("out.py").exists() == (result.exit_code == 0)
    return result


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_text(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(path.name).write_text(path.read_text())
    result = compile_(path.name)
    expected = path.with_suffix(".txt").read_text()
    assert result.stderr == expected
    assert f"[{path.stem}]: " in expected
    assert result.exit_code == (1 if expected.startswith("error") else 0)


OF_MODULES = {"name-clash", "nothing-to-compile", "unusable-name"}
"""What only a module that is written can be wrong about."""


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in OF_MODULES], ids=lambda path: path.stem)
def test_check_finds_what_compile_does(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(path.name).write_text(path.read_text())
    result = CliRunner().invoke(app, ["check", path.name])
    expected = path.with_suffix(".txt").read_text()
    assert result.stderr == expected
    assert result.exit_code == (1 if expected.startswith("error") else 0)


def test_check_leaves_what_depends_on_open_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("open.attn").write_text(
        "attention a { mask causal }\n"
        "layer l(width: int, blocks: int) { heads 4\n query block_diagonal(blocks)\n attend a }\n"
    )
    assert CliRunner().invoke(app, ["check", "open.attn"]).exit_code == 0
    assert CliRunner().invoke(app, ["check", "open.attn", "-D", "width=64"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["check", "open.attn", "-D", "width=64", "-D", "blocks=7"])
    assert wrong.exit_code == 1
    assert "error[blocks-leave-a-rest]" in wrong.stderr


LARGE = {
    "nesting-too-deep": "attention a { mask " + "(" * 10_000 + "true" + ")" * 10_000 + " }",
    "file-too-large": "attention a { mask causal }\n" + "# padding\n" * 1_000_000,
    "expression-too-large": "def f0 = i\n"
    + "".join(f"def f{k + 1} = f{k} + f{k}\n" for k in range(60))
    + "attention a { mask f60 < 3 }\n",
    "statement-too-long": "attention a { mask " + " + ".join(["i"] * 40_000) + " < 3 }",
}


@pytest.mark.parametrize("code", LARGE)
def test_large_files_end_in_one_short_error(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("large.attn").write_text(LARGE[code])
    result = compile_("large.attn")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error[{code}]: ")
    assert result.stderr.count("error[") == 1
    assert len(result.stderr) < 2000
    assert "\nhelp: " in result.stderr


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.attn").mkdir()
    for name, reason in (("missing.attn", "there is no such file"), ("folder.attn", "it is a folder")):
        expected = f"error[cannot-read]: cannot read `{name}`: {reason}\n  --> {name}:1:1\n"
        assert compile_(name).stderr == expected
