"""The runtime as text: which names it defines, and all of it in one piece for modules that stand alone."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attnc.diagnostics import InternalError

PACKAGE = "attnc.runtime"
ROOTS = (
    "dispatch",
    "gradient_launch",
    "gradient_strips",
    "kernel_launch",
    "kernel_loads",
    "kernel_math",
    "launch",
    "pairs",
    "program",
    "summaries",
    "tuned",
)
"""Modules that generated code imports; it needs what these need, and nothing else."""


@dataclass(frozen=True, slots=True)
class RuntimeSource:
    """The runtime's modules.

    Attributes:
        owners: the module of each public name.
        names: every name that a module defines at its top.
        imports: imports of other packages, a line each.
        text: all modules one after another, without imports, those that others need first.
    """

    owners: Mapping[str, str]
    names: frozenset[str]
    imports: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    needs: tuple[str, ...]
    imports: tuple[str, ...]
    defined: tuple[str, ...]
    text: str


GLUON_ROOTS = ("gluon_kernels", "gluon_launch")
"""What modules import besides that have kernels in Gluon."""

DECOMPOSED_ROOTS = ("decomposed", "decomposition", "features", "linear", "preparation", "shorten")
"""The same for modules whose queries and keys are prepared, mapped to features, or never paired."""

FLEX_ROOTS = ("block_mask", "flex", "pairs", "program")
"""The same for modules that call FlexAttention."""


@cache
def read_runtime(roots: tuple[str, ...] = ROOTS) -> RuntimeSource:
    """Read the runtime's modules, which are written so that they can stand in one file.

    Args:
        roots: modules that generated code imports.

    Raises:
        InternalError: two of them define the same name.
    """
    folder = Path(__file__).resolve().parent.parent / "runtime"
    modules: dict[str, _Module] = {}
    waiting = [f"{PACKAGE}.{root}" for root in roots]
    while waiting:
        name = waiting.pop()
        if name not in modules:
            modules[name] = _read_module(folder.joinpath(*name.split(".")[2:]).with_suffix(".py"))
            waiting.extend(modules[name].needs)
    modules = dict(sorted(modules.items()))
    owners: dict[str, str] = {}
    for name, module in modules.items():
        for defined in module.defined:
            if owners.setdefault(defined, name) != name:
                raise InternalError(f"{name} and {owners[defined]} both define {defined}")
    imports = {line for module in modules.values() for line in module.imports}
    text = "\n\n\n".join(modules[name].text for name in _sorted_by_need(modules))
    return RuntimeSource(owners, frozenset(owners), tuple(sorted(imports)), text)


def import_line(module: str, names: Iterable[str]) -> list[str]:
    """Return the lines that import names from a module."""
    ordered = sorted(names, key=lambda name: (_kind(name), name))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= 100:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in ordered), ")"]


def _kind(name: str) -> int:
    """Order constants before classes before functions, as import sorters do."""
    return 0 if name.isupper() else 1 if name[:1].isupper() else 2


def _read_module(path: Path) -> _Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.split("\n")
    needs: list[str] = []
    imports: list[str] = []
    defined: list[str] = []
    dropped: set[int] = set()
    for node in tree.body:
        assert node.end_lineno is not None
        extent = range(node.lineno - 1, node.end_lineno)
        if node is tree.body[0] and isinstance(node, ast.Expr):
            dropped.update(extent)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            dropped.update(extent)
            needed, line = _split_import(node)
            needs.extend(needed)
            imports.extend(line)
        else:
            if not defined:
                dropped.update(range(_first_line(node)))  # what stands above is for the tools that check that file
            defined.extend(_names_defined(node))
    kept = "\n".join(line for number, line in enumerate(lines) if number not in dropped).strip("\n")
    summary = (ast.get_docstring(tree) or path.stem).split("\n")[0]
    return _Module(path.stem, tuple(needs), tuple(imports), tuple(defined), f"# {path.stem}: {summary}\n{kept}")


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _split_import(node: ast.Import | ast.ImportFrom) -> tuple[list[str], list[str]]:
    """Return the runtime's modules that an import needs, or the import's text."""
    if isinstance(node, ast.ImportFrom):
        if node.module is not None and node.module.startswith(f"{PACKAGE}."):
            return [node.module], []
        if node.module == "__future__":
            return [], []
    return [], [ast.unparse(node)]


def _names_defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [name for target in targets for name in _target_names(target)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.If() | ast.Try():
            inner = [*node.body, *node.orelse]
            return list(dict.fromkeys(name for child in inner for name in [*_names_defined(child), *_imported(child)]))
        case _:
            return []


def _target_names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Tuple):
        return [name for element in target.elts for name in _target_names(element)]
    return [target.id] if isinstance(target, ast.Name) else []


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return []


def _sorted_by_need(modules: Mapping[str, _Module]) -> list[str]:
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name not in ordered:
            for need in modules[name].needs:
                visit(need)
            ordered.append(name)

    for name in sorted(modules):
        visit(name)
    return ordered
