"""A layer as text, in the language's own syntax."""

from __future__ import annotations

from attnc.ir.matrices import LayerSizes
from attnc.ir.nodes import Expr
from attnc.ir.program import Layer, Projection, Via
from attnc.ir.show import show


def show_layer(layer: Layer) -> str:
    """Print a layer as the declaration that would mean it; its own parameters are gone, but for the width."""
    width = dict(layer.params).get("width")
    others = ", ".join(f"{name} = {show(value)}" for name, value in layer.params if name != "width")
    head = f"layer {layer.name}(width: int{'' if width is None else f' = {show(width)}'}) {{"
    lines = [f"{head}  # {others}" if others else head, f"    norm {layer.norm}"]
    sizes = (("heads", layer.heads), ("kv_heads", layer.kv_heads), ("head_size", layer.head_size))
    lines += [f"    {name} {show(value)}" for name, value in sizes if value is not None]
    lines += [f"    {name} {show_projection(projection)}" for name, projection in layer.projections]
    if layer.theta is not None:
        lines.append(f"    rotary theta = {show(layer.theta)}")
    lines.append(f"    attend {_attend(layer)}")
    if layer.feedforward is None:
        lines.append("    feedforward none")
    else:
        inner = f"hidden = {show(layer.feedforward.hidden)}, {show_projection(layer.feedforward.weight)}"
        lines.append(f"    feedforward {layer.feedforward.form}({inner})")
    return "\n".join([*lines, "}"])


def show_projection(projection: Projection) -> str:
    """Print the structure of a matrix: `monarch(16) via strassen(1)`."""
    via = "" if projection.via is None else f" via {_form(projection.via.form, projection.via)}"
    return _form(projection.structure, projection) + via


def show_sizes(sizes: LayerSizes) -> str:
    """Print the numbers of a layer in words."""
    groups = f", {sizes.kv_heads} of keys and values" if sizes.kv_heads != sizes.heads else ""
    hidden = f", {sizes.hidden} features inside the feed-forward network" if sizes.hidden else ""
    return f"{sizes.width} features, {sizes.heads} heads of {sizes.head_size}{groups}{hidden}"


def _attend(layer: Layer) -> str:
    if layer.attend is None:
        return layer.attention
    given = ", ".join(f"{name} = {show(value)}" for name, value in layer.attend.params)
    return f"{layer.attend.name}({given})" if given else layer.attend.name


def _form(name: str, form: Projection | Via) -> str:
    arguments = ", ".join(_argument(value) for _, value in form.arguments)
    return f"{name}({arguments})" if arguments else name


def _argument(value: Expr | str) -> str:
    return f'"{value}"' if isinstance(value, str) else show(value)
