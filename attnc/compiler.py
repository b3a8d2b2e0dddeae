"""The stages in order, one call each: what happens to a pattern between its text and a running module.

    text --parse_source--> tree --check_program--> IR --prove--> IR --plan_attention--> plan --render_module--> text

Every stage is a plain function; this page is the only place that knows their order. What the user did wrong is a
`CompileError` whose text is the rendered diagnostics.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attnc.checking import (
    Checked,
    Parameters,
    check_forms,
    check_source,
    collecting,
    has_open_parameters,
    in_order,
    prove,
)
from attnc.diagnostics import CompileError, Diagnostic, Label, Severity
from attnc.files import read_pattern, require_writable, write_text
from attnc.ir.program import Program
from attnc.ir.sharing import share_attentions
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source
from attnc.syntax.tree import Attention as AttentionTree
from attnc.syntax.tree import Layer as LayerTree

if TYPE_CHECKING:
    from attnc.comparison import Compared
    from attnc.plan.configs import TunedConfig
    from attnc.plan.kernel_plan import Plan
    from attnc.plan.layer_plan import LayerPlan


class PatternWarning(UserWarning):
    """What the compiler warns of when it is called from Python."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A pattern that can run.

    Attributes:
        plans: one for each attention, in the order of the source; those that only layers have come behind them.
        layers: one for each layer, in the order of the source.
    """

    source: SourceFile
    plans: tuple[Plan, ...]
    warnings: tuple[Diagnostic, ...]
    layers: tuple[LayerPlan, ...] = ()


def plan_source(source: SourceFile, params: Parameters | None = None) -> Compiled:
    """Take one file as far as its plans.

    Raises:
        CompileError: every mistake that could be found, or a declaration that has no code yet.
    """
    return _plan(source, check_source(source, params, complete=True))


def _plan(source: SourceFile, checked: Checked) -> Compiled:
    from attnc.plan.choose import plan_attention
    from attnc.plan.layer_plan import plan_layer
    from attnc.schemes import schemes_of_layer

    program = checked.program
    mistakes: list[Diagnostic] = []
    plans: list[Plan] = []
    for attention in program.attentions:
        with collecting(mistakes):
            plans.append(plan_attention(attention))
    by_name = {plan.attention.name: plan for plan in plans}
    layers: list[LayerPlan] = []
    warned = list(checked.warnings)
    for layer in (one for one in program.layers if one.attention in by_name):
        schemes, told = schemes_of_layer(layer)
        warned += (one for one in told if one.severity is Severity.WARNING)
        wrong = [one for one in told if one.severity is Severity.ERROR]
        mistakes += wrong
        if not wrong:
            with collecting(mistakes):
                layers.append(plan_layer(layer, by_name[layer.attention], schemes))
    if mistakes:
        raise CompileError(*in_order(mistakes))
    if not plans:
        raise CompileError(
            Diagnostic(
                "nothing-to-compile",
                f"`{source.name}` declares no attention",
                help="a file of definitions is for `use`; compile the file that uses it",
            )
        )
    return Compiled(source, tuple(plans), tuple(in_order(warned)), tuple(layers))


def declared_parameters(source: SourceFile) -> tuple[str, ...]:
    """Return the names of the parameters of all attentions and layers of a file.

    Raises:
        CompileError: it cannot be parsed.
    """
    declarations = (one for one in parse_source(source).declarations if isinstance(one, AttentionTree | LayerTree))
    return tuple(dict.fromkeys(param.name.text for one in declarations for param in one.params))


TARGETS = ("triton", "flex")
"""What a module runs: Triton kernels and their CPU program, or PyTorch's FlexAttention."""


TEMPLATES = ("tl", "gluon")
"""Which templates write kernels: Triton's language alone, or Gluon beside it."""


def render(
    compiled: Compiled,
    *,
    standalone: bool = False,
    target: str = "triton",
    tuned: Sequence[TunedConfig] = (),
    template: str = "tl",
) -> str:
    """Return the text of the module; `tuned` are configurations that its kernels take before others.

    Raises:
        CompileError: names that cannot stand together, or what FlexAttention or the template has no form for.
    """
    if template == "gluon":
        _require_gluon(compiled, target)
    if target == "flex":
        _require_no_layers(compiled)
        from attnc.algebra.tiles import derive_tiles
        from attnc.codegen.render_flex import render_flex_module

        pairs = [(plan.operation, derive_tiles(plan.attention)) for plan in compiled.plans]
        return render_flex_module(pairs, source=compiled.source, standalone=standalone)
    from attnc.codegen.render import render_module
    from attnc.runtime.load import BUILDING

    with BUILDING:
        return render_module(
            compiled.plans,
            compiled.layers,
            source=compiled.source,
            standalone=standalone,
            tuned=tuned,
            gluon=template == "gluon",
        )


def _require_no_layers(compiled: Compiled) -> None:
    """Raise CompileError for layers in a file that is compiled to FlexAttention's functions."""
    mistakes = [
        Diagnostic(
            "no-flex-layer",
            f"the layer `{plan.name}` calls a compiled attention, and FlexAttention's functions are none",
            labels=(Label(plan.layer.span, "this layer"),) if plan.layer.span is not None else (),
            help="compile it without `--target flex`, or compile its attention alone",
        )
        for plan in compiled.layers
    ]
    if mistakes:
        raise CompileError(*in_order(mistakes))


def _require_gluon(compiled: Compiled, target: str) -> None:
    """Raise CompileError unless every attention of a file has a kernel in Gluon."""
    from attnc.codegen.gluon_view import unsuitable_for_gluon

    pairs = (
        (plan, "FlexAttention has no templates" if target == "flex" else unsuitable_for_gluon(plan))
        for plan in compiled.plans
    )
    mistakes = [
        Diagnostic(
            "no-gluon-kernel",
            f"`{plan.attention.name}` has no kernel in Gluon: {reason}",
            labels=(Label(plan.attention.span, "this attention"),) if plan.attention.span is not None else (),
            help="compile it without `--template gluon`: its Triton kernels run on every target",
        )
        for plan, reason in pairs
        if reason
    ]
    if mistakes:
        raise CompileError(*in_order(mistakes))


def check(file: str | Path, params: Parameters | None = None) -> tuple[Diagnostic, ...]:
    """Check a pattern file and return the warnings.

    Raises:
        CompileError: it has mistakes; its text is what `attnc check` prints.
    """
    return check_whole(read_pattern(file), params)


def check_whole(source: SourceFile, params: Parameters | None = None) -> tuple[Diagnostic, ...]:
    """Look for everything that is wrong with a file short of choosing how to compute it; return the warnings.

    What depends on a parameter without a value is looked at as far as that goes.

    Raises:
        CompileError: it has mistakes.
    """
    checked = check_source(source, params)
    found = in_order([*checked.warnings, *check_forms(checked.program)])
    if any(one.severity is Severity.ERROR for one in found):
        raise CompileError(*found)
    return tuple(found)


def compile(
    file: str | Path,
    out: str | Path | None = None,
    params: Parameters | None = None,
    *,
    standalone: bool = False,
    target: str = "triton",
    template: str = "tl",
) -> Path:
    """Compile a pattern file to a Python module and return the module's path.

    Args:
        file: the pattern.
        out: where to write; NAME.py in the current folder unless said.
        params: values of parameters.
        standalone: write a module that needs torch and triton alone, and not this package.
        target: `triton`, or `flex` for PyTorch's FlexAttention: its `mask_mod`, `score_mod` and block mask.
        template: `tl`, or `gluon` for a kernel in Gluon for sm_90 beside the others, which calls take where asked to.

    Raises:
        ValueError: the target or the template is not known.
        CompileError: the pattern has mistakes, or the module cannot be written; nothing is written then.
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected {' or '.join(map(repr, TARGETS))}")
    if template not in TEMPLATES:
        raise ValueError(f"template is {template!r}, expected {' or '.join(map(repr, TEMPLATES))}")
    path = Path(out) if out is not None else default_output(file, ".py")
    require_writable(path, file)
    compiled = plan_source(read_pattern(file), params)
    _warn(compiled.warnings)
    write_text(path, render(compiled, standalone=standalone, target=target, template=template))
    return path


def load(file: str | Path, /, **params: Any) -> ModuleType:
    """Compile a pattern file, or take it from the cache, and import the module.

    Args:
        file: the pattern.
        params: values of parameters.

    Raises:
        CompileError: the pattern has mistakes.
    """
    return _import(read_pattern(file), params)


def loads(text: str, /, **params: Any) -> ModuleType:
    """Do as `load` does for a pattern given as text. Files that it `use`s are looked for in the current folder.

    Raises:
        CompileError: the pattern has mistakes.
    """
    if not isinstance(text, str):
        raise TypeError(f"the pattern is a {type(text).__name__}, expected a str")
    return _import(SourceFile("<string>", text, Path.cwd() / "<string>"), params)


def explain(
    file: str | Path,
    params: Parameters | None = None,
    *,
    length: int = 8192,
    heads: int = 8,
    head_size: int = 64,
) -> list[dict[str, Any]]:
    """Return what `attnc explain --json` prints: one dictionary for each attention, then one for each layer.

    Args:
        file: the pattern.
        params: values of parameters.
        length: queries and keys.
        heads: query heads; layers have their own.
        head_size: size of a head of query, key and value; layers have their own.

    Raises:
        CompileError: the pattern has mistakes.
    """
    from attnc.explanation import explain_plan
    from attnc.explanation_layers import explain_layer

    compiled = plan_source(read_pattern(file), params)
    _warn(compiled.warnings)
    attentions = [explain_plan(plan, length=length, heads=heads, head_size=head_size) for plan in compiled.plans]
    layers = [explain_layer(plan, length=length) for plan in compiled.layers]
    return [one.as_json() for one in attentions] + [one.as_json() for one in layers]


def compare_sources(
    left: tuple[SourceFile, str | None],
    right: tuple[SourceFile, str | None],
    params: Parameters | None = None,
    *,
    left_params: Parameters | None = None,
    right_params: Parameters | None = None,
) -> tuple[tuple[Compared, ...], tuple[Diagnostic, ...]]:
    """Decide how the masks of two files' attentions relate, and return the warnings besides.

    Args:
        left: a file, and the attention in it where the file has several.
        right: another, or the same.
        params: values of parameters, for each side that declares the name.
        left_params: values for the left side alone; they go before those of `params`.
        right_params: the same for the right side.

    Raises:
        CompileError: a pattern has mistakes, or it is not clear which attentions are meant.
    """
    from attnc.algebra.comparison import compare_masks
    from attnc.comparison import Choice, Compared, distributed, match, require_same_keys

    sides = [Choice(source, parse_source(source), name) for source, name in (left, right)]
    results: list[Compared] = []
    found: list[Diagnostic] = []
    for names in match(*sides):
        values = distributed(sides, names, params or {}, (left_params or {}, right_params or {}))
        chosen = []
        for side, name, given in zip(sides, names, values, strict=True):
            checked = prove(check_program(side.file, params=given, attention=name))
            found.extend(checked.warnings)
            chosen.append(checked.program.attentions[0])
        require_same_keys(sides[0], chosen)
        files = (sides[0].source.name, sides[1].source.name)
        results.append(Compared(chosen[0], chosen[1], files, compare_masks(*chosen)))
    return tuple(results), tuple(dict.fromkeys(found))


def compare(
    left: str | Path,
    right: str | Path,
    params: Parameters | None = None,
    *,
    left_params: Parameters | None = None,
    right_params: Parameters | None = None,
) -> list[dict[str, Any]]:
    """Return what `attnc compare --json` prints: one dictionary for each pair of attentions.

    Args:
        left: a pattern file, or `FILE:ATTENTION`.
        right: another.
        params: values of parameters, for each side that declares the name.
        left_params: values for the left side alone.
        right_params: values for the right side alone.

    Raises:
        CompileError: a pattern has mistakes, or it is not clear which attentions are meant.
    """
    from attnc.comparison import split_choice

    (first, first_name), (second, second_name) = split_choice(str(left)), split_choice(str(right))
    source = read_pattern(first)
    other = source if first == second else read_pattern(second)  # standard input can be read once
    compared, found = compare_sources(
        (source, first_name), (other, second_name), params, left_params=left_params, right_params=right_params
    )
    _warn(found)
    return [one.as_json() for one in compared]


def import_compiled(compiled: Compiled, template: str = "tl") -> ModuleType:
    """Render a compiled pattern with a template and import it, through the cache."""
    from attnc.runtime.load import cache_key, cached_module

    text = render(compiled, template=template)
    return cached_module(cache_key("text", text), lambda: text, stem=Path(compiled.source.name).stem)


def default_output(file: str | Path, suffix: str) -> Path:
    """Return where a result goes unless the user says so: beside where the user stands, named after the pattern."""
    name = "pattern" if str(file) == "-" else Path(file).stem
    return Path((name or "pattern") + suffix)


def _import(source: SourceFile, params: Parameters) -> ModuleType:
    """Import the module of a pattern; the stages behind the checker run only where the cache does not have it."""
    from attnc.runtime.load import cache_key, cached_module

    program = share_attentions(check_program(parse_source(source), params=params))
    schemes, told = _schemes(program)
    losing = (one for one in told if one.severity is Severity.WARNING)
    _warn(in_order([*program.warnings, *_unsure_reads(program), *losing]))
    key = cache_key(_fingerprint(), source.name, source.text, program.attentions, program.layers, schemes)
    return cached_module(key, lambda: render(_plan(source, prove(program))), stem=Path(source.name).stem)


def _schemes(program: Program) -> tuple[list[Any], list[Diagnostic]]:
    """Return the schemes of all layers, which files decide beside the pattern, and what is to be said of them."""
    if not any(layer.vias for layer in program.layers):
        return [], []
    from attnc.schemes import schemes_of_layer

    found = [schemes_of_layer(layer) for layer in program.layers]
    return [schemes for schemes, _ in found], [one for _, told in found for one in told]


def _unsure_reads(program: Program) -> Iterable[Diagnostic]:
    """Warn of reads that may leave their table, whether or not the cache has the module."""
    for attention in program.attentions:
        if any(tensor.dims for tensor in attention.tensors) and not has_open_parameters(attention):
            from attnc.algebra.table_proofs import mark_reads

            yield from mark_reads(attention)[1]


@cache
def _fingerprint() -> str:
    """Identify this compiler: its version, and size and date of its files, which change while it is worked on."""
    from attnc import __version__
    from attnc.resources import templates_directory

    package = Path(__file__).parent
    files = sorted((*package.rglob("*.py"), *package.rglob("*.attn"), *templates_directory().glob("*")))
    states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return f"{__version__} {hashlib.sha256(repr(states).encode()).hexdigest()}"


def _warn(diagnostics: Iterable[Diagnostic]) -> None:
    from attnc.runtime.load import outside_level

    for diagnostic in diagnostics:
        assert diagnostic.severity is Severity.WARNING
        warnings.warn(f"\n{diagnostic}", PatternWarning, stacklevel=outside_level())
