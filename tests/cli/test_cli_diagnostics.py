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
