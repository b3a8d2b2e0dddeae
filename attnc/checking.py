"""What is wrong with a pattern: names, types and proofs, and what its forms and layers cannot be.

Nothing here chooses how a pattern is computed, which takes most of the time of a compilation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from attnc.diagnostics import CompileError, Diagnostic, Severity
from attnc.ir.matrices import has_open_arguments, layer_sizes
from attnc.ir.nodes import Parameter
from attnc.ir.program import Attention, Layer, Program, expressions
from attnc.ir.sharing import in_layer, share_attentions
from attnc.ir.walk import walk
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

Parameters = Mapping[str, Any]
"""Values of parameters by name."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A pattern without mistakes.

    Attributes:
        program: reads that are proven to stay inside their tables are marked.
        warnings: in the order of the source.
    """

    program: Program
    warnings: tuple[Diagnostic, ...]


def check_source(source: SourceFile, params: Parameters | None = None, *, complete: bool = False) -> Checked:
    """Parse, check and prove one file.

    Args:
        source: the file.
        params: values of parameters.
        complete: whether every parameter must have a value; what depends on one without is not proven otherwise.

    Raises:
        CompileError: every mistake that could be found.
    """
    tree = parse_source(source)
    program = check_program(tree, params=params or {}, require_params=complete)
    return prove(share_attentions(program))


def prove(program: Program) -> Checked:
    """Hold every attention against its assertions, and mark the reads that need no test."""
    from attnc.algebra.assertions import check_assertions
    from attnc.algebra.table_proofs import mark_reads

    mistakes: list[Diagnostic] = []
    found = list(program.warnings)
    attentions = []
    for attention in program.attentions:
        if not has_open_parameters(attention):
            wrong: list[Diagnostic] = []
            with collecting(wrong):
                check_assertions(attention)
            mistakes.extend(in_layer(one, attention, program) for one in wrong)
            attention, unsure = mark_reads(attention)
            found.extend(unsure)
        attentions.append(attention)
    if mistakes:
        raise CompileError(*in_order([*mistakes, *found]))
    return Checked(replace(program, attentions=tuple(attentions)), tuple(in_order(found)))


def check_forms(program: Program) -> tuple[Diagnostic, ...]:
    """Return what is wrong with the forms of attentions and the structures of layers whose parameters have values.

    Warnings of layers are among them. These are the mistakes that planning finds beside those of `check_source`.
    """
    from attnc.plan.choose import begin_plan
    from attnc.plan.kernel_plan import Plan
    from attnc.plan.layer_plan import plan_layer
    from attnc.plan.overrides import alternatives
    from attnc.schemes import schemes_of_layer

    found: list[Diagnostic] = []
    plans: dict[str, Plan] = {}

    for attention in program.attentions:
        if not has_open_parameters(attention):
            with collecting(found):
                plan = begin_plan(attention)
                alternatives(plan.attention)
                plans[attention.name] = plan
    for layer in program.layers:
        if layer.attention in plans and not _has_open_sizes(layer):
            schemes, told = schemes_of_layer(layer)
            found.extend(told)
            if all(one.severity is not Severity.ERROR for one in told):
                with collecting(found):
                    plan_layer(layer, plans[layer.attention], schemes)
    return tuple(in_order(found))


def _has_open_sizes(layer: Layer) -> bool:
    """Tell whether a layer, or the structure of one of its projections, depends on a parameter without a value."""
    weights = [projection for _, projection in layer.projections]
    weights += [] if layer.feedforward is None else [layer.feedforward.weight]
    return layer_sizes(layer) is None or any(has_open_arguments(one) for one in weights)


def has_open_parameters(attention: Attention) -> bool:
    """Tell whether an attention depends on a parameter without a value."""
    return any(isinstance(node, Parameter) for expr in expressions(attention) for node in walk(expr))


@contextmanager
def collecting(found: list[Diagnostic]) -> Iterator[None]:
    """Add what a stage complains of to a list and go on, so that the mistakes of all attentions are told at once."""
    try:
        yield
    except CompileError as error:
        found.extend(error.diagnostics)


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Return diagnostics by their places in the source, each once."""

    def place(diagnostic: Diagnostic) -> tuple[str, int]:
        if not diagnostic.labels:
            return ("", 0)
        span = diagnostic.labels[0].span
        return (span.source.name, span.start)

    return sorted(dict.fromkeys(diagnostics), key=place)
