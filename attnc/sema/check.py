"""From the syntax tree to the typed IR: names, types, and every rule that needs no proof."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from attnc.ir.program import Attention, Layer, Program
from attnc.sema import errors
from attnc.sema.attentions import check_attention
from attnc.sema.context import Context, Workshop
from attnc.sema.declarations import ParameterValue
from attnc.sema.files import open_file
from attnc.sema.layers import check_layer
from attnc.sema.report import TooManyErrors
from attnc.sema.scopes import nearest
from attnc.syntax import tree


def check_program(
    file: tree.File,
    *,
    params: Mapping[str, ParameterValue] | None = None,
    require_params: bool = True,
    attention: str | None = None,
) -> Program:
    """Check a file and everything that it uses.

    Args:
        file: its tree.
        params: values of parameters by name; they apply to every attention and layer that declares the name.
        require_params: whether a parameter without value and default is an error. Where it is not, its uses become
            `ir.Parameter` leaves (and a quantifier's count that depends on it becomes 1), which no later stage accepts.
        attention: keep this attention only; the others are still checked, and need no parameters.

    Returns:
        The program. Warnings are in `Program.warnings`.

    Raises:
        CompileError: all mistakes of the file at once, in the order of the source, warnings among them.
    """
    workshop = Workshop()
    report = workshop.report
    given = params or {}
    attentions: list[Attention] = []
    layers: list[Layer] = []

    def operation(declaration: tree.Attention | tree.Layer, context: Context) -> None:
        if isinstance(declaration, tree.Layer):
            layer = check_layer(declaration, context, given, require_params and attention is None)
            layers.extend([layer] if layer is not None and attention is None else [])
            return
        chosen = attention is None or declaration.name.text == attention
        checked = check_attention(declaration, context, given if chosen else {}, require_params and chosen)
        attentions.extend([checked] if chosen else [])

    with contextlib.suppress(TooManyErrors):
        _check_choice(file, given, attention, workshop)
        open_file(file, workshop, operation)
    report.raise_errors()
    return Program(file.source, tuple(attentions), tuple(layers), report.sorted())


def _check_choice(
    file: tree.File, params: Mapping[str, ParameterValue], attention: str | None, workshop: Workshop
) -> None:
    """Refuse an attention that is not there, and values for parameters that nothing declares."""
    operations = [d for d in file.declarations if isinstance(d, tree.Attention | tree.Layer)]
    if attention is not None:
        names = tuple(d.name.text for d in operations if isinstance(d, tree.Attention))
        if attention not in names:
            workshop.report.add(errors.unknown_attention(attention, names, nearest(attention, names)))
            return
        operations = [d for d in operations if d.name.text == attention]
    known = tuple(dict.fromkeys(param.name.text for d in operations for param in d.params))
    for name in params:
        if name not in known:
            workshop.report.add(errors.unknown_parameter(name, known, nearest(name, known)))
