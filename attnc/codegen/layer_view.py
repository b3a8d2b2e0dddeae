"""The plan of a layer as the text and flags that the module's template lays out: everything is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attnc.algebra.bilinear.scheme import Scheme
from attnc.codegen.expr_torch import printable, torch_body
from attnc.codegen.formulas import FormulaView
from attnc.codegen.layer_keys import (
    CacheView,
    SideView,
    cache_view,
    chain_lines,
    chain_names,
    scale_argument,
    side_view,
)
from attnc.codegen.layer_schemes import product_text
from attnc.codegen.layout import Bracket, lay_out
from attnc.codegen.names import class_name
from attnc.codegen.runtime_source import PACKAGE, RuntimeSource
from attnc.codegen.view import ArgumentView, AttentionView
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.matrices import Matrix
from attnc.ir.program import AlignKind
from attnc.ir.show import show
from attnc.plan.convolutions import Direction
from attnc.plan.layer_caches import Kept
from attnc.plan.layer_plan import LayerPlan, ProjectionPlan

_FACTORS, _SPARSE, _CONVOLUTIONS = "structures.factors", "structures.sparse", "structures.convolutions"

_CLASSES = {
    "dense": ("DenseProjection", _FACTORS),
    "low_rank": ("LowRankProjection", _FACTORS),
    "block_diagonal": ("BlockDiagonalProjection", _FACTORS),
    "monarch": ("MonarchProjection", _FACTORS),
    "banded": ("BandedProjection", _SPARSE),
    "masked": ("MaskedProjection", _SPARSE),
    "conv": ("ConvProjection", _CONVOLUTIONS),
    "conv2d": ("GridConvProjection", _CONVOLUTIONS),
}
"""Class of each structure, and the module of the runtime that has it."""

_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "low_rank": ("rank",),
    "block_diagonal": ("count",),
    "monarch": ("count",),
    "banded": ("width",),
    "masked": (),
    "conv": ("kernel", "stride"),
    "conv2d": ("width", "kernel", "stride"),
}
"""Numbers that the classes take."""

_ARGUMENTS = {"rank": "r", "count": "blocks"}
"""What the language calls them, where it has another word."""

_NORMS = {"rms": ("nn.RMSNorm", "eps=1e-6"), "layer": ("nn.LayerNorm", "bias=False")}
_PLACE = (("device", "device"), ("dtype", "dtype"))

LAYER_NAMES = frozenset({"functional", "Mapping"})
"""What modules with layers import besides what others do and the runtime has."""

OWN_ARGUMENTS = frozenset({"x", "context", "cache", "return_cache"})
"""Arguments of `forward` that no input can have the name of."""


@dataclass(frozen=True, slots=True)
class RotaryView:
    """Rotary positions of queries and keys.

    Attributes:
        first: position of the first query, as Python; None where `align at` decides it.
        first_key: that of the first key of `source`.
        step: positions from one key to the next.
    """

    theta: str
    first: str | None
    first_key: str
    step: int


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of a module.

    Attributes:
        title: one line for docstrings.
        about: what it computes, as lines of its docstring.
        modules: lines that make its parts.
        has_norm: whether anything is normalised.
        activation: of the feed-forward network: `gelu`, `swiglu`, or empty where there is none.
        attention: name of the attention that it attends with.
        inputs: of the attention, arguments of `forward`.
        learned: names of the attention's learned tensors.
        formulas: conditions of masked matrices.
        constants: lines that define what chooses between orders of products.
        key, value: how they are made, and in which orders they are multiplied with.
        scale: what follows the arguments of the attention, where that must be told its scale.
        cache: what is kept of the tokens so far.
    """

    name: str
    class_name: str
    title: str
    about: tuple[str, ...]
    width: int
    heads: int
    kv_heads: int
    modules: tuple[str, ...]
    has_norm: bool
    activation: str
    attention: str
    inputs: tuple[ArgumentView, ...]
    learned: tuple[str, ...]
    rotary: RotaryView | None
    formulas: tuple[FormulaView, ...]
    constants: tuple[str, ...]
    key: SideView
    value: SideView
    scale: str
    cache: CacheView

    @property
    def call(self) -> str:
        """What follows query, key and value where the attention is called."""
        return "".join(f", {one.name}={one.name}" for one in self.inputs) + self.scale


def layer_view(
    plan: LayerPlan, attentions: Mapping[str, AttentionView], schemes: Mapping[Scheme, str] | None = None
) -> LayerView:
    """Decide how one layer is written.

    Args:
        plan: of the layer.
        attentions: of the module, by name.
        schemes: stems of the names of bilinear schemes.

    Raises:
        CompileError: an input of the attention has the name of another argument.
    """
    attention = attentions[plan.layer.attention]
    _require_free_names(plan, attention)
    feedforward = plan.layer.feedforward
    return LayerView(
        name=plan.name,
        class_name=class_name(plan.name),
        title=layer_title(plan),
        about=_about(plan),
        width=plan.sizes.width,
        heads=plan.sizes.heads,
        kv_heads=plan.sizes.kv_heads,
        modules=tuple(_modules(plan, attention, schemes or {})),
        has_norm=plan.layer.norm != "none",
        activation="" if feedforward is None else feedforward.form,
        attention=attention.name,
        inputs=attention.inputs,
        learned=tuple(one.name for one in attention.learned),
        rotary=_rotary(plan),
        formulas=tuple(_formulas(plan)),
        constants=chain_lines(plan),
        key=side_view(plan, "key"),
        value=side_view(plan, "value"),
        scale=scale_argument(plan),
        cache=cache_view(plan),
    )


def layer_roots(plans: Iterable[LayerPlan]) -> tuple[str, ...]:
    """Return the modules of the runtime that layers need."""
    found: set[str] = set()
    for plan in plans:
        found |= {_CLASSES[one.matrix.projection.structure][1] for one in plan.projections}
        found |= {"structures.layer_parts", "structures.caches"}
        found |= {"structures.latents"} if chain_names(plan) else set()
        found |= {"structures.recurrences", "linear"} if plan.cache.kept is Kept.SUMS else set()
    return tuple(sorted(found))


def layer_imports(runtime: RuntimeSource) -> frozenset[str]:
    """Return what modules with layers import besides what others do."""
    folder = f"{PACKAGE}.structures."
    return LAYER_NAMES | {name for name, module in runtime.owners.items() if module.startswith(folder)}


def layer_names(plan: LayerPlan) -> tuple[str, ...]:
    """Return what a module defines for a layer, the class first."""
    return class_name(plan.name), *(formula.name for formula in _formulas(plan)), *chain_names(plan)


def layer_title(plan: LayerPlan) -> str:
    """Return what docstrings call a layer."""
    given = ", ".join(f"{name} = {show(value)}" for name, value in plan.layer.params)
    return printable(f"`{plan.name}` with {given}")


def _about(plan: LayerPlan) -> tuple[str, ...]:
    sizes, rotated = plan.sizes, plan.theta is not None
    query, key = ("rotary(query(n))", "rotary(key(n))") if rotated else ("query(n)", "key(n)")
    normed = "norm(x)" if plan.layer.norm != "none" else "x"
    lines = [f"    y = x + output(attend({query}, {key}, value(n))), n = {normed}"]
    if plan.layer.feedforward is not None:
        inner = "norm(y)" if plan.layer.norm != "none" else "y"
        lines.append(f"    y + feedforward({inner})")
    groups = f", {sizes.kv_heads} of keys and values" if sizes.kv_heads != sizes.heads else ""
    return (
        *lines,
        "",
        f"It has {sizes.heads} heads of {sizes.head_size} features{groups}. Where a context is given, it takes the",
        "place of x for keys and values, normalised like x.",
    )


def _modules(plan: LayerPlan, attention: AttentionView, schemes: Mapping[Scheme, str]) -> list[str]:
    """Return the lines that make the parts of a layer, in the order in which it uses them."""
    norm, width = _NORMS.get(plan.layer.norm), str(plan.sizes.width)
    made = {one.matrix.name: _projection(plan, one, schemes) for one in plan.projections}
    sizes = {"H": plan.sizes.heads, "D": plan.sizes.head_size}
    heads = tuple((size, str(sizes[size])) for size in attention.sizes)
    attend = Bracket(f"{attention.class_name}(", (*heads, *_PLACE))
    parts: list[tuple[str, Bracket]] = []
    if norm is not None:
        parts.append(("attention_norm", Bracket(f"{norm[0]}(", (("", width), ("", norm[1]), *_PLACE))))
    parts += [(name, made.pop(name)) for name in ("query", "key", "value")]
    parts.append(("attend", attend))
    parts.append(("output", made.pop("output")))
    if norm is not None and made:
        parts.append(("feedforward_norm", Bracket(f"{norm[0]}(", (("", width), ("", norm[1]), *_PLACE))))
    parts += made.items()
    return [line for name, value in parts for line in lay_out(f"self.{name} = ", value, depth=2)]


def _projection(plan: LayerPlan, one: ProjectionPlan, schemes: Mapping[Scheme, str]) -> Bracket:
    matrix, structure = one.matrix, one.matrix.projection.structure
    numbers = {name: matrix.number(_ARGUMENTS.get(name, name)) for name in _NUMBERS[structure]}
    fields = [("", str(matrix.columns)), ("", str(matrix.rows))]
    fields += [("", _formula_name(plan, matrix))] * (structure == "masked")
    fields += [(name, str(number)) for name, number in numbers.items() if (name, number) != ("stride", 1)]
    fields += [("causal", "True")] * (one.direction is Direction.CAUSAL)
    if one.scheme is not None:
        fields.append(("product", product_text(one.scheme, schemes)))
    return Bracket(f"{_CLASSES[structure][0]}(", (*fields, *_PLACE))


def _formula_name(plan: LayerPlan, matrix: Matrix) -> str:
    name = matrix.name if matrix.name in ("query", "key", "value", "output") else "feedforward"
    return f"_{plan.name}_{name}_allowed"


def _formulas(plan: LayerPlan) -> list[FormulaView]:
    masked = [one.matrix for one in plan.projections if one.matrix.projection.structure == "masked"]
    exprs = {_formula_name(plan, matrix): matrix.expr("condition") for matrix in masked}
    return [FormulaView(name, "at: Pairs", torch_body(expr).indented()) for name, expr in exprs.items()]


def _rotary(plan: LayerPlan) -> RotaryView | None:
    if plan.theta is None:
        return None
    align, kept = plan.attention.operation.align.kind, plan.cache.kept
    first = {AlignKind.END: "source.shape[1] - x.shape[1]", AlignKind.START: "0"}.get(align)
    if kept is Kept.KEYS:
        first = "key.shape[2] - x.shape[1]"
    elif kept is Kept.SUMS:
        first = "before + source.shape[1] - x.shape[1]"
    step = plan.projection("key").matrix.stride
    return RotaryView(repr(plan.theta), first, "before" if kept is Kept.SUMS else "0", step)


def _require_free_names(plan: LayerPlan, attention: AttentionView) -> None:
    taken = [one.name for one in attention.inputs if one.name in OWN_ARGUMENTS]
    span = plan.layer.span
    if taken:
        raise CompileError(
            *(
                Diagnostic(
                    "unusable-name",
                    f"the layer `{plan.name}` cannot attend with `{attention.name}`: its input `{name}` has the "
                    "name of an argument of every layer",
                    () if span is None else (Label(span),),
                    help="rename the input",
                )
                for name in taken
            )
        )
