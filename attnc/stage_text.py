"""Any stage of a compilation as text: what `attnc compile --emit` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

from attnc.checking import Parameters, check_source
from attnc.compiler import plan_source
from attnc.diagnostics import Diagnostic
from attnc.ir.nodes import Expr
from attnc.ir.show import show, show_attention
from attnc.ir.show_layer import show_layer, show_projection, show_sizes
from attnc.plan.kernel_plan import Pass, Plan
from attnc.plan.layer_caches import Kept
from attnc.plan.layer_plan import LayerPlan
from attnc.source import SourceFile, Span
from attnc.syntax.parse import parse_source

INDENT = "  "


def stage_text(source: SourceFile, params: Parameters, stage: str) -> tuple[str, tuple[Diagnostic, ...]]:
    """Return what a stage makes of a pattern, and the warnings on the way there.

    Args:
        source: the pattern.
        params: values of parameters.
        stage: `tree`, `ir`, `simplified`, `plan` or `triton`.

    Raises:
        CompileError: the pattern has mistakes that stages up to this one find.
    """
    if stage == "tree":
        return "\n".join(tree_lines(parse_source(source))) + "\n", ()
    if stage == "ir":
        checked = check_source(source, params)
        shown = [show_attention(attention).rstrip() for attention in checked.program.attentions]
        shown += [show_layer(layer) for layer in checked.program.layers]
        return "\n\n".join(shown) + "\n", checked.warnings
    compiled = plan_source(source, params)
    if stage == "simplified":
        texts = [simplified_text(plan) for plan in compiled.plans]
    elif stage == "plan":
        texts = [plan_text(plan) for plan in compiled.plans] + [layer_plan_text(plan) for plan in compiled.layers]
    else:
        from attnc.codegen.render import render_kernel

        texts = [render_kernel(plan) for plan in compiled.plans]
    separator = "\n\n\n" if stage == "triton" else "\n\n"
    return separator.join(text.rstrip() for text in texts) + "\n", compiled.warnings


def tree_lines(node: object, label: str = "") -> Iterator[str]:
    """Yield a syntax tree, one node a line, fields indented below it, each with its place in the source."""
    prefix = f"{label} = " if label else ""
    if not is_dataclass(node):
        yield f"{prefix}{node.value if isinstance(node, Enum) else node!r}"
        return
    inner = [(field.name, getattr(node, field.name)) for field in fields(node)]
    span = next((value for _, value in inner if isinstance(value, Span)), None)
    inner = [(name, value) for name, value in inner if not isinstance(value, Span | SourceFile)]
    place = f"  @{span.line}:{span.column}" if span is not None else ""
    if all(_is_leaf(value) for _, value in inner):
        arguments = ", ".join(f"{name}={_leaf(value)}" for name, value in inner)
        yield f"{prefix}{type(node).__name__}({arguments}){place}"
        return
    yield f"{prefix}{type(node).__name__}{place}"
    for name, value in inner:
        yield from (INDENT + line for line in _field_lines(name, value))


def _field_lines(name: str, value: object) -> Iterator[str]:
    if isinstance(value, tuple) and value:
        yield f"{name}:"
        for item in value:
            yield from (INDENT + line for line in tree_lines(item))
    elif isinstance(value, tuple):
        yield f"{name}: none"
    else:
        yield from tree_lines(value, name)


def _is_leaf(value: object) -> bool:
    return not is_dataclass(value) and not (isinstance(value, tuple) and value)


def _leaf(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else repr(value)


def simplified_text(plan: Plan) -> str:
    """Return the attention in normal form, the rules that led there, and its score as a kernel computes it."""
    lines = [show_attention(plan.attention).rstrip(), ""]
    lines += [f"# {step.rule}: {show(step.before)}  ->  {show(step.after)}" for step in plan.derivation]
    lines += [f"# {line}" for line in _scoring_lines(plan)]
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """Return a plan: its scoring, its passes, their interval lists; all of its variants where lengths differ."""
    facts = ", ".join(f"{name} {_truth(getattr(plan.facts, name))}" for name in _fact_names(plan))
    lines = [f"plan of {plan.attention.name}", f"{INDENT}proven: {facts}"]
    lines += [f"{INDENT}{line}" for line in _scoring_lines(plan)]
    for words, variant in zip(plan.ranges, plan.variants, strict=True):
        inner = [line for number, one in enumerate(variant.passes, start=1) for line in _pass_lines(number, one)]
        if plan.short:
            inner = [f"{words}:", *(INDENT + line for line in inner)]
        lines += [INDENT + line for line in inner]
    return "\n".join(lines)


def layer_plan_text(plan: LayerPlan) -> str:
    """Return the plan of a layer: its sizes, its attention, and how each projection is computed."""
    lines = [f"plan of layer {plan.name}", f"{INDENT}{show_sizes(plan.sizes)}"]
    lines.append(f"{INDENT}attends with {plan.layer.attention}")
    for one in plan.projections:
        matrix = one.matrix
        parameters = f"{'?' if one.parameters is None else one.parameters} parameters"
        direction = "" if one.direction is None else f", kernels {one.direction.value}"
        size = f"{matrix.rows} x {matrix.columns}, {parameters}"
        lines.append(
            f"{INDENT}{matrix.name}: {show_projection(matrix.projection)}, {size}: {one.product.value}{direction}"
        )
    for latent in plan.latents:
        how = "absorbed or expanded, by lengths" if latent.is_choice else f"expanded: {latent.expanded_because}"
        lines.append(f"{INDENT}latents of {latent.name}, rank {latent.rank}: {how}")
    kept = plan.cache.refused_because or f"{plan.cache.numbers} numbers of a token"
    lines.append(f"{INDENT}cache: {plan.cache.kept.value}{'' if plan.cache.kept is Kept.SUMS else f', {kept}'}")
    return "\n".join(lines)


def _fact_names(plan: Plan) -> Iterator[str]:
    return (field.name for field in fields(plan.facts))


def _truth(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "undecided"}[value]


def _scoring_lines(plan: Plan) -> Iterator[str]:
    scoring = plan.scoring
    yield f"score: {show(scoring.score)}"
    if scoring.score_log2 is not None:
        yield f"score in base 2, s being scale * log2(e) * dot: {show(scoring.score_log2)}"
    if scoring.dropped is not None:
        yield f"left out, the same for every key; added to the log-sum-exp: {show(scoring.dropped)}"


def _pass_lines(number: int, one: Pass) -> Iterator[str]:
    library = f", library call {one.library.value}" if one.library is not None else ""
    yield f"pass {number}: {one.form.value}{library}"
    yield f"{INDENT}layout {one.layout}"
    exact = "exactly the touched ones" if one.tiles.exact else "a superset of the touched ones"
    yield f"{INDENT}tiles of at most {one.tiles.query_tile} x {one.tiles.key_tile}, {exact}"
    for note in one.tiles.notes:
        yield f"{INDENT}note: {note}"
    for interval in one.tiles.intervals:
        start = f"{'ceil' if interval.start_up else 'floor'}({_of_tiles(interval.start)})"
        stop = f"{'ceil' if interval.stop_up else 'floor'}({_of_tiles(interval.stop)})"
        label = f"  # {interval.label}" if interval.label else ""
        yield f"{INDENT}for key tiles {start} .. {stop} - 1: {interval.coverage.value}{label}"
        if interval.tile_test is not None:
            yield f"{INDENT * 2}skip unless {show(interval.tile_test)}"
        if show(interval.residual) != "true":
            yield f"{INDENT * 2}test {show(interval.residual)}"
        if interval.ragged:
            yield f"{INDENT * 2}test j < M"


def _of_tiles(bound: Expr) -> str:
    text = show(bound)
    return f"{text} / T" if text.replace("_", "").isalnum() else f"({text}) / T"
