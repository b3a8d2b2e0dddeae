"""The attentions of layers beside those of the file: each is there once, under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from attnc.diagnostics import Diagnostic
from attnc.ir.program import Attention, Layer, Program
from attnc.ir.show import show


def share_attentions(program: Program) -> Program:
    """Add what layers attend with to the attentions of a program, where it is not there already.

    A layer with other values of an attention's parameters has a copy, `LAYER_ATTENTION`; layers with the same values
    share it. `Layer.attention` is the name that a layer's attention has afterwards.
    """
    attentions = list(program.attentions)
    layers: list[Layer] = []
    for layer in program.layers:
        if layer.attend is None:
            layers.append(layer)
            continue
        name = _name_of(layer.attend, attentions, len(program.attentions))
        if name is None:
            name = f"{layer.name}_{layer.attend.name}"
            attentions.append(replace(layer.attend, name=name))
        layers.append(replace(layer, attention=name))
    return replace(program, attentions=tuple(attentions), layers=tuple(layers))


def _name_of(attend: Attention, attentions: list[Attention], own: int) -> str | None:
    """Return the name of an equal attention: under the same name, or as a copy, which stand behind the file's own."""
    for number, one in enumerate(attentions):
        if one == (attend if number < own else replace(attend, name=one.name)):
            return one.name
    return None


def in_layer(diagnostic: Diagnostic, attention: Attention, program: Program) -> Diagnostic:
    """Add to what is wrong with an attention which layer gives it these values, where it is a layer's copy."""
    layer = next((one for one in program.layers if one.attention == attention.name), None)
    if layer is None or layer.attend is None or layer.attend.name == attention.name:
        return diagnostic
    given = ", ".join(f"{name} = {show(value)}" for name, value in attention.params)
    return replace(diagnostic, notes=(*diagnostic.notes, f"in the layer `{layer.name}`, which attends with {given}"))
