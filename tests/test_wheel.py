"""The wheel carries everything: installed alone, it compiles a pattern."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PATTERN = """
attention local(width: int = 32) {
    mask causal and i - j < width
}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that sees this environment's libraries, and attnc from the wheel alone."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    zipfile.ZipFile(wheel).extractall(site)
    # A .pth line makes the libraries importable, but not this checkout: .pth files in there are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "python"


def test_wheel_has_grammar_templates_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"attnc/grammar/attn.lark", "attnc/syntax/prelude.attn", "attnc/py.typed"} <= names
    assert any(name.startswith("attnc/templates/") and name.endswith(".jinja") for name in names)
    assert {"attnc/schemes/strassen.json", "attnc/schemes/laderman.json"} <= names
    assert not any(name.startswith(("tests/", "examples/")) for name in names)


def test_installed_wheel_compiles_a_pattern(python, tmp_path):
    (tmp_path / "local.attn").write_text(PATTERN)
    code = "import attnc, sys; print(attnc.__file__); print(attnc.compile('local.attn', out='local.py'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert str(tmp_path.parent) in done.stdout or "environment" in done.stdout.splitlines()[0]
    compile((tmp_path / "local.py").read_text(), "local.py", "exec")
