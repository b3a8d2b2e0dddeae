"""`attnc scheme`: what it prints and writes, and its exit codes."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnc import cli
from attnc.resources import schemes_directory


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def scheme(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["scheme", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_carried_schemes_are_described():
    lines = scheme("winograd", "--levels", "2").stdout.splitlines()
    assert lines[:4] == [
        "winograd <2, 2, 2; 7>, 2 levels",
        "exact over the rationals; 0.766 of the multiplications",
        "4 + 4 + 7 = 15 additions of blocks a level",
        "error bound 20.2 times that of the plain product, for large inner sizes",
    ]


def test_the_same_as_json():
    found = json.loads(scheme("strassen", "--json").stdout)
    assert (found["shape"], found["rank"], found["additions"], found["growth"]) == ([2, 2, 2], 7, [5, 5, 8], 12.0)
    assert found["break_even"]["NVIDIA A100 SXM, float32"] == 2065


def test_a_file_becomes_a_module_with_kernels(monkeypatch):
    shutil.copy(schemes_directory() / "strassen.json", "2-by-2.json")
    scheme("2-by-2.json", "-o", "two.py")
    text = Path("two.py").read_text()
    assert '__all__ = ["SCHEME_2_BY_2"]' in text
    monkeypatch.syspath_prepend(".")
    assert importlib.import_module("two").SCHEME_2_BY_2.fused[0].m == 2


def test_mistakes_are_told():
    assert "`none` is neither a file nor a scheme that attnc carries" in scheme("none", code=1).stderr
    Path("bad.json").write_text("{}")
    assert scheme("bad.json", code=1).stderr.startswith("error[scheme-malformed]: `bad.json` has no `shape`")
    shutil.copy(schemes_directory() / "strassen.json", "good.json")
    assert "is the pattern itself" in scheme("good.json", "-o", "good.json", code=1).stderr
    assert "too many levels" in scheme("strassen", "--levels", "9", code=1).stderr
