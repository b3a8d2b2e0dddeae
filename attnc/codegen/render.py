"""Plans to the text of a Python module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata

import jinja2

from attnc.codegen.expr_torch import printable
from attnc.codegen.gradient_view import GradientsView, gradient_views
from attnc.codegen.launch_view import LaunchView, launch_views
from attnc.codegen.layer_schemes import SCHEME_ROOTS, LayerSchemeView, scheme_names, scheme_views
from attnc.codegen.layer_view import LayerView, layer_imports, layer_names, layer_roots, layer_view
from attnc.codegen.names import check_builtins, check_layer_names, check_names, public_names
from attnc.codegen.runtime_source import DECOMPOSED_ROOTS, GLUON_ROOTS, ROOTS, RuntimeSource, import_line, read_runtime
from attnc.codegen.tuned_text import tuned_lines
from attnc.codegen.view import AttentionView, attention_view
from attnc.diagnostics import InternalError
from attnc.plan.configs import TunedConfig
from attnc.plan.kernel_plan import Plan
from attnc.plan.layer_plan import LayerPlan
from attnc.resources import templates_directory
from attnc.source import SourceFile

_FOREIGN = {
    "math": "import math",
    "torch": "import torch",
    "nn": "from torch import nn",
    "Tensor": "from torch import Tensor",
    "Sequence": "from collections.abc import Sequence",
    "Callable": "from collections.abc import Callable",
    "Mapping": "from collections.abc import Mapping",
    "Any": "from typing import Any",
    "functional": "from torch.nn import functional",
    "BlockMask": "from torch.nn.attention.flex_attention import BlockMask",
}
"""Names of other packages that generated code may use, and where they come from."""

_NOT_STANDALONE = {"use_remembered_tiles": "attnc.runtime.tuned_store"}
"""Functions of the runtime that modules which stand alone have no use for, and their modules."""

_STANDARD = sys.stdlib_module_names


@dataclass(frozen=True, slots=True)
class ModuleView:
    """What the template of a module lays out.

    Attributes:
        comments: the pattern's text, as comment lines.
        runtime: source of the runtime where the module stands alone; empty where it is imported.
        tuned: lines of the tuned tiles that the module is written with.
    """

    comments: tuple[str, ...]
    title: str
    imports: tuple[str, ...]
    exports: tuple[str, ...]
    runtime: str
    tuned: tuple[str, ...]
    attentions: tuple[tuple[AttentionView, tuple[LaunchView, ...], tuple[GradientsView, ...]], ...]
    layers: tuple[LayerView, ...] = ()
    schemes: tuple[LayerSchemeView, ...] = ()


def render_module(
    plans: Sequence[Plan],
    layers: Sequence[LayerPlan] = (),
    *,
    source: SourceFile | None = None,
    standalone: bool = False,
    tuned: Sequence[TunedConfig] = (),
    gluon: bool = False,
) -> str:
    """Write the Python module of one pattern file.

    The text depends on the arguments and the version of attnc alone.

    Args:
        plans: at least one; each becomes a function with its companions and a class.
        layers: each becomes a class; their attentions are among `plans`.
        source: the pattern, shown at the top; by default the file that the first attention comes from.
        standalone: put the runtime's source into the module, which then imports torch (and triton) alone, and does not
            ask the user's cache for tuned tiles.
        tuned: configurations that its kernels take before others.
        gluon: write a kernel in Gluon beside the Triton kernels of each plan that suits it.

    Raises:
        CompileError: names that cannot stand together in one Python module.
    """
    attentions = [plan.operation for plan in plans]
    decomposed = any(plan.declared is not None for plan in plans)
    schemes = scheme_names(layers)
    further = (*(GLUON_ROOTS if gluon else ()), *(DECOMPOSED_ROOTS if decomposed else ()))
    runtime = read_runtime((*ROOTS, *further, *layer_roots(layers), *(SCHEME_ROOTS if schemes else ())))
    own = {plan.layer: layer_names(plan) for plan in layers}
    taken = runtime.names if standalone else layer_imports(runtime) if layers else ()
    check_names(attentions, taken)
    check_layer_names(own, attentions, taken)
    span = attentions[0].span
    shown = source or (span.source if span is not None else SourceFile("<pattern>", ""))
    seed = f"{metadata.version('attnc')} {'standalone' if standalone else 'module'}\n{shown.text}"
    views = tuple((attention_view(plan, seed), launch_views(plan, gluon=gluon), gradient_views(plan)) for plan in plans)
    by_name = {attention.name: attention for attention, _, _ in views}
    written = tuple(layer_view(plan, by_name, schemes) for plan in layers)
    exports = tuple(name for attention in attentions for name in public_names(attention.name))
    exports += tuple(layer.class_name for layer in written)
    statements = ("use_remembered_tiles()",) if not standalone else ()
    lines = (*statements, *tuned_lines(tuned))
    draft = ModuleView(
        _pattern_comments(shown), _title(shown), (), exports, "", lines, views, written, scheme_views(schemes)
    )
    body = _environment().get_template("module.py.jinja").render(module=draft)
    text = runtime.text if standalone else ""
    used, defined = _names(body)
    check_builtins(attentions, used | _names_of_runtime(text), own)
    imports = _imports(used - defined, runtime, standalone)
    view = replace(draft, imports=imports, runtime=text)
    return _environment().get_template("module.py.jinja").render(module=view)


def render_kernel(plan: Plan) -> str:
    """Write the Triton kernels and the launchers of one attention as they stand in its module."""
    template = _environment().get_template("launcher.py.jinja")
    texts = [template.render(launch=launch) for launch in launch_views(plan)]
    template = _environment().get_template("gradient_launcher.py.jinja")
    texts += [template.render(gradients=gradients) for gradients in gradient_views(plan)]
    return "\n\n\n".join(text.strip("\n") for text in texts) + "\n"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_directory()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _title(source: SourceFile) -> str:
    return f"Attention compiled by attnc {metadata.version('attnc')} from {printable(source.name)}."


def _pattern_comments(source: SourceFile) -> tuple[str, ...]:
    """Return the pattern as comments; characters that could end a comment or confuse a reader are escaped."""
    lines = []
    for line in source.text.replace("\r\n", "\n").rstrip("\n").split("\n"):
        shown = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
        lines.append(f"#     {shown.expandtabs(4)}".rstrip())
    return (f"# {printable(source.name)}", "#", *lines)


def _names(body: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a text reads or assigns anywhere, and those that it defines for the module."""
    try:
        tree = ast.parse(body)
    except SyntaxError as error:
        raise InternalError(f"generated code is not Python: {error}") from error
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defined = [name for node in tree.body for name in _defined(node)]
    repeated = sorted({name for name in defined if defined.count(name) > 1})
    if repeated:
        raise InternalError(f"generated code defines {', '.join(repeated)} twice")
    return frozenset(names), frozenset(defined)


@cache
def _names_of_runtime(text: str) -> frozenset[str]:
    """Return the names that the runtime's text reads or assigns; it is long, and one for all standalone modules."""
    return _names(text)[0]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _imports(used: frozenset[str], runtime: RuntimeSource, standalone: bool) -> tuple[str, ...]:
    """Return import lines in the usual three groups."""
    wanted = {line for name, line in _FOREIGN.items() if name in used}
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    if standalone:
        wanted |= set(runtime.imports)
    else:
        groups[2].extend(_runtime_imports(used, {**runtime.owners, **_NOT_STANDALONE}))
    group = groups[0]
    for line in _merge_imports(wanted):
        if line.startswith(("import ", "from ")):  # otherwise it goes on with the import before
            group = groups[0 if line.split()[1].split(".")[0] in _STANDARD else 1]
        group.append(line)
    lines: list[str] = []
    for group in groups:
        if group and lines:
            lines.append("")
        lines.extend(group)
    return tuple(lines)


def _runtime_imports(used: frozenset[str], owners: Mapping[str, str]) -> list[str]:
    by_module: dict[str, list[str]] = {}
    for name in sorted(used & owners.keys()):
        by_module.setdefault(owners[name], []).append(name)
    return [line for module in sorted(by_module) for line in import_line(module, by_module[module])]


def _merge_imports(lines: set[str]) -> list[str]:
    plain = sorted(line for line in lines if line.startswith("import "))
    by_module: dict[str, set[str]] = {}
    for line in lines:
        if line.startswith("from "):
            module, _, names = line.removeprefix("from ").partition(" import ")
            by_module.setdefault(module, set()).update(names.split(", "))
    merged = [line for module in sorted(by_module) for line in import_line(module, sorted(by_module[module]))]
    return [*plain, *merged]
