"""The exact text of every error: `errors/*.attn` and `files/*/main.attn`, each with what the checker must say."""

import re
from pathlib import Path

import pytest

from attnc import sema
from attnc.diagnostics import CompileError
from attnc.sema.check import check_program
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source

HERE = Path(__file__).parent
ERRORS = sorted((HERE / "errors").glob("*.attn"))
FILES = sorted((HERE / "files").iterdir())
TESTED_ELSEWHERE = {
    "expression-too-large",
    "nesting-too-deep",
    "unknown-attention",
    "unknown-parameter",
    "use-too-deep",
    "use-without-file",
    "used-twice",
    "wrong-parameter-type",
}
"""Codes whose text `test_sema_params.py`, `test_sema_limits.py` and the tests below assert."""


def said_of(path: Path, name: str) -> str:
    with pytest.raises(CompileError) as caught:
        check_program(parse_source(read_source(path, name=name)))
    return str(caught.value) + "\n"


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: path.stem)
def test_error_has_its_exact_text(path):
    assert said_of(path, f"errors/{path.name}") == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("folder", FILES, ids=lambda path: path.name)
def test_error_of_used_file_has_its_exact_text(folder):
    assert said_of(folder / "main.attn", f"{folder.name}/main.attn") == (folder / "expected.txt").read_text()


def test_every_code_has_a_test():
    folder = Path(sema.__path__[0])
    source = "".join(
        (folder / name).read_text()
        for name in ("errors.py", "expression_errors.py", "form_errors.py", "layer_errors.py")
    )
    codes = set(re.findall(r'Diagnostic\(\s*"([a-z-]+)"', source))
    texts = "".join(p.read_text() for p in (*(HERE / "errors").glob("*.txt"), *(HERE / "files").rglob("*.txt")))
    seen = set(re.findall(r"^error\[([a-z-]+)\]", texts, re.MULTILINE))
    assert len(codes) > 50
    assert codes - seen == TESTED_ELSEWHERE
