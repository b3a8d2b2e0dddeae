"""The house's rules that a machine can check: imports point one way, files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnc"

ALLOWED = {
    "source": set(),
    "resources": {"diagnostics"},
    "diagnostics": {"source"},
    "ir": {"source", "diagnostics"},
    "syntax": {"source", "diagnostics", "resources"},
    "sema": {"source", "diagnostics", "syntax", "ir", "resources"},
    "algebra": {"source", "diagnostics", "ir"},
    "reference": {"source", "diagnostics", "ir"},
    "plan": {"source", "diagnostics", "ir", "algebra"},
    "codegen": {"source", "diagnostics", "ir", "algebra", "plan", "resources"},
    "runtime": set(),
}
"""What each stage may import of the package, besides itself. Stages that are not named here wire others together."""

OWNERS = {
    "lark": {"syntax"},
    "islpy": {"algebra"},
    "sympy": {"algebra"},
    "jinja2": {"codegen"},
    "typer": {"cli"},
    "matplotlib": {"show", "pictures", "bench"},
    "platformdirs": {"runtime", "compiler"},
}
"""Third-party libraries with an owner: no other stage imports them."""

FILES = sorted(PACKAGE.rglob("*.py"))


def stage_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "attnc":
                found.update(f"attnc.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    stage = stage_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "attnc" and len(parts) > 1 and stage in ALLOWED:
            assert parts[1] in ALLOWED[stage] | {stage}, f"{stage} must not import {name}"
        if parts[0] in OWNERS:
            assert stage in OWNERS[parts[0]], f"{parts[0]} belongs to {OWNERS[parts[0]]}, not to {stage}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path}:{node.lineno} {node.name}"
