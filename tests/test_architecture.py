"""The house's rules that a machine can check: imports point one way, files stay small."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnc"

BASE = {"source", "diagnostics"}
STAGES = {"syntax", "sema", "ir", "algebra", "plan", "codegen", "runtime"}

ALLOWED = {
    # the journey
    "source": set(),
    "diagnostics": {"source"},
    "resources": {"diagnostics"},
    "ir": BASE,
    "syntax": {*BASE, "resources"},
    "sema": {*BASE, "syntax", "ir", "resources"},
    "algebra": {*BASE, "ir"},
    "plan": {*BASE, "ir", "algebra"},
    "codegen": {*BASE, "ir", "algebra", "plan", "resources"},
    "runtime": set(),
    "checking": {*BASE, "syntax", "ir", "sema", "algebra", "plan", "schemes"},
    "compiler": {
        *BASE, *STAGES, "checking", "files", "resources", "comparison", "explanation", "explanation_layers", "schemes",
    },
    # beside it
    "flex": {*BASE, "ir"},
    "reference": {*BASE, "ir"},
    "blockwise": {"ir", "reference"},
    "tile_map": {"ir", "reference", "algebra", "blockwise", "runtime"},
    "explanation": {
        "ir", "algebra", "plan", "blockwise", "explanation_counts", "explanation_forms", "explanation_gradients",
        "explanation_plan",
    },
    "explanation_forms": {"ir", "plan"},
    "explanation_gradients": {"ir", "algebra", "plan"},
    "explanation_counts": {"ir", "algebra", "plan", "tile_map"},
    "explanation_plan": {"ir", "algebra", "plan", "explanation_counts"},
    "explanation_text": {
        "ir", "algebra", "plan", "explanation", "explanation_gradients", "explanation_plan", "explanation_plan_text",
    },
    "explanation_plan_text": {"ir", "algebra", "plan", "explanation", "explanation_plan"},
    "explanation_latents": {"ir", "plan", "explanation_forms"},
    "explanation_layers": {
        "ir", "algebra", "plan", "blockwise", "explanation", "explanation_counts", "explanation_latents",
        "explanation_products", "schemes",
    },
    "explanation_products": {"plan", "runtime"},
    "explanation_layers_text": {
        "ir", "explanation_latents", "explanation_layers", "explanation_plan_text", "explanation_products", "schemes",
    },
    "comparison": {*BASE, "syntax", "ir", "sema", "algebra"},
    "stage_text": {*BASE, "syntax", "ir", "plan", "codegen", "checking", "compiler"},
    "machine_code": {"diagnostics", "runtime", "compiler"},
    "pictures": {"diagnostics"},
    "files": {*BASE, "syntax"},
    "schemes": {*BASE, "ir", "algebra", "codegen", "runtime", "resources"},
    "parameters": set(),
    "terminal": {"diagnostics"},
    "bench": {
        *BASE, "ir", "algebra", "plan", "reference", "blockwise", "tile_map", "checking", "compiler", "files",
        "parameters", "pictures", "terminal",
    },
    "study": {
        "diagnostics", "ir", "algebra", "plan", "blockwise", "checking", "compiler", "explanation_layers", "files",
        "pictures", "terminal", "bench",
    },
    "show": {"ir", "algebra", "plan", "blockwise", "tile_map", "bench", "pictures", "layout_pictures"},
    "layout_pictures": {"ir", "algebra", "plan", "reference", "blockwise", "tile_map", "bench"},
    "verify": {*BASE, "ir", "algebra", "plan", "reference", "runtime", "compiler", "bench"},
    "tuning": {"diagnostics", "plan", "codegen", "runtime", "compiler", "bench", "files", "terminal"},
    # the commands
    "commands": {
        *BASE, "compiler", "bench", "comparison", "explanation", "explanation_layers", "explanation_layers_text",
        "explanation_text", "files", "machine_code",
        "parameters", "pictures", "schemes", "show", "stage_text", "study", "terminal", "tuning", "verify",
    },
    "cli": {"diagnostics", "cli_options", "cli_study", "cli_tune", "commands", "files", "parameters", "terminal"},
    "cli_options": set(),
    "cli_study": {"commands", "parameters"},
    "cli_tune": {"cli_options", "commands", "parameters"},
    "__main__": {"cli"},
    "__init__": {"compiler", "diagnostics", "flex"},
}  # fmt: skip
"""What each stage may import of the package, besides itself and the version."""

OWNERS = {
    "lark": {"syntax"},
    "islpy": {"algebra"},
    "sympy": {"algebra"},
    "jinja2": {"codegen"},
    "typer": {"cli", "cli_options", "cli_study", "cli_tune"},
    "matplotlib": {"show", "pictures", "bench"},
    "platformdirs": {"runtime"},
    "rich": {
        "terminal",
        "explanation_text",
        "explanation_layers_text",
        "explanation_plan_text",
        "machine_code",
        "bench",
        "study",
        "tuning",
        "verify",
    },
    "torch": {
        "runtime",
        "reference",
        "flex",
        "blockwise",
        "explanation_products",
        "tile_map",
        "machine_code",
        "bench",
        "show",
        "layout_pictures",
        "study",
        "tuning",
        "verify",
    },
    "transformers": {"study"},
    "triton": {"runtime", "tuning"},
    "filelock": {"runtime"},
    **{name: {"bench"} for name in ("xformers", "flash_attn", "natten", "flashinfer", "fla")},
}
"""Third-party libraries: no other stage imports them."""

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
        if parts[0] == "attnc" and len(parts) > 1 and name != "attnc.__version__":
            assert parts[1] in ALLOWED[stage] | {stage}, f"{stage} must not import {name}"
        elif parts[0] != "attnc" and parts[0] not in sys.stdlib_module_names:
            assert stage in OWNERS[parts[0]], f"{parts[0]} belongs to {OWNERS[parts[0]]}, not to {stage}"


def test_every_stage_has_its_rule():
    assert {stage_of(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path}:{node.lineno} {node.name}"
