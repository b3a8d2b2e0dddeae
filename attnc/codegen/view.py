"""A plan as the text and flags that the module's template lays out: everything is decided here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from attnc.algebra.coordinates import CoordinateMap, MapKind
from attnc.algebra.data_tests import reads_pairs, whole_test
from attnc.algebra.extents import TileExtents, TileLimits
from attnc.algebra.gradients import ONE, ReadGradient, read_gradients, write_out_sums
from attnc.algebra.key_intervals import Coverage, KeyInterval
from attnc.codegen.decomposition_view import declared_feature, decomposition, has_landmarks
from attnc.codegen.expr_torch import length_text, printable, quoted
from attnc.codegen.formulas import Field, Formulas, FormulaView
from attnc.codegen.gradient_loops import slopes_of
from attnc.codegen.kernel_view import weighing_of
from attnc.codegen.launch_view import part_name, summaries_text, variant_name
from attnc.codegen.layout import Bracket, call, lay_out, sequence
from attnc.codegen.linear_scores import split_linear
from attnc.codegen.names import class_name
from attnc.codegen.period import far_form, shift_period
from attnc.diagnostics import InternalError
from attnc.ir.nodes import (
    TRUE,
    And,
    Binary,
    BinaryOp,
    Expr,
    Index,
    IndexName,
    Score,
    Size,
    SizeName,
)
from attnc.ir.program import Attention, NormalizeKind, Tensor, TensorKind
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import indices, tables, walk
from attnc.plan.kernel_plan import Form, Library, LibraryPart, Pass, Plan

HELPERS = (
    "floor",
    "floor_divide",
    "floor_modulo",
    "hyperbolic_tangent",
    "maximum",
    "minimum",
    "only",
    "splitmix",
    "truncate",
)
"""Functions of `runtime.pairs` that expressions may call."""


_REAL_KEY = Binary(BinaryOp.LT, Index(IndexName.KEY), Size(SizeName.KEYS), Type.BOOL)


@dataclass(frozen=True, slots=True)
class ArgumentView:
    """An input or learned tensor as an argument of the module's functions.

    Attributes:
        hint: its type hint.
        about: what the docstring says of it.
        in_mask: whether the mask or the alignment reads it.
    """

    name: str
    hint: str
    about: str
    learned: bool
    in_mask: bool


@dataclass(frozen=True, slots=True)
class AttentionView:
    """One attention of a module.

    Attributes:
        title: one line for docstrings.
        sizes: those of `H` and `D` that the constructor of the class takes.
        mask_sizes: those of `D` and `g` that the mask depends on, which its function takes.
        has_lse: whether the log-sum-exp is defined.
        is_checked: whether calls may ask for a check of what the caller promises of the inputs.
        is_shortened: whether the mask depends on how many keys there were.
        has_state: whether calls may carry on from a state.
        has_seed: whether calls may choose other random features.
        program: lines that build the runtime's description of it, and the operation.
    """

    name: str
    class_name: str
    title: str
    arguments: tuple[ArgumentView, ...]
    sizes: tuple[str, ...]
    mask_sizes: tuple[str, ...]
    has_lse: bool
    is_checked: bool
    is_shortened: bool
    has_state: bool
    has_seed: bool
    formulas: tuple[FormulaView, ...]
    program: str
    helpers: tuple[str, ...]
    uses_math: bool

    @property
    def representation(self) -> str:
        """Source of the string that `extra_repr` returns where the class has sizes."""
        return f'f"{", ".join(f"{size}={{self.{size}}}" for size in self.sizes)}"'

    @property
    def result(self) -> str:
        """Type hint of what calls return."""
        plain = "Tensor | tuple[Tensor, Tensor]"
        return f"{plain} | tuple[Tensor, State]" if self.has_state else plain

    @property
    def inputs(self) -> tuple[ArgumentView, ...]:
        """Arguments that the caller gives to the class's `forward`."""
        return tuple(argument for argument in self.arguments if not argument.learned)

    @property
    def learned(self) -> tuple[ArgumentView, ...]:
        """Parameters of the class."""
        return tuple(argument for argument in self.arguments if argument.learned)


def attention_view(plan: Plan, seed: str) -> AttentionView:
    """Decide how one attention is written.

    Args:
        plan: of the attention.
        seed: whatever the module's text depends on besides the plan; part of the program's key.
    """
    attention = plan.attention
    formulas = Formulas(attention.name)
    fields = _program_fields(plan, formulas)
    surroundings = decomposition(plan, formulas, lambda tensor: tensor_argument(tensor, formulas))
    written = tuple(formulas.written)
    text = "\n".join(formula.body for formula in written)
    key = hashlib.sha256("\0".join([seed, repr(plan), repr(fields), repr(surroundings), text]).encode()).hexdigest()[
        :32
    ]
    names = [("name", attention.name), ("key", key), ("identity", _identity(attention.name, fields, written))]
    program = call("Program", *((field, quoted(value)) for field, value in names), *fields)
    lines = [*lay_out(f"_{attention.name}_program = ", program)]
    if surroundings is None:
        lines.append(f"_{attention.name} = Operation(_{attention.name}_program)")
    else:
        lines.extend(lay_out(f"_{attention.name}_decomposition = ", surroundings))
        lines.append(f"_{attention.name} = Decomposed(_{attention.name}_program, _{attention.name}_decomposition)")
    declared = plan.operation
    learned_sizes = {
        node.name for tensor in declared.learned for dim in tensor.dims if dim is not None for node in walk(dim)
        if isinstance(node, Size)
    }  # fmt: skip
    return AttentionView(
        name=attention.name,
        class_name=class_name(attention.name),
        title=attention_title(attention),
        arguments=tuple(argument_view(declared, tensor) for tensor in declared.tensors if not tensor.hidden),
        sizes=tuple(name.value for name in (SizeName.HEADS, SizeName.HEAD_SIZE) if name in learned_sizes),
        mask_sizes=sizes_of_mask(attention),
        has_lse=attention.normalize.kind is NormalizeKind.SOFTMAX and not has_landmarks(declared),
        is_checked=_is_checked(attention),
        is_shortened=declared.shorten is not None,
        formulas=written,
        has_state=plan.linear is not None and plan.linear.form is Form.CHUNKED,
        has_seed=declared_feature(plan) == "favor",
        program="\n".join(lines),
        helpers=tuple(name for name in HELPERS if re.search(rf"\b{name}\(", text)),
        uses_math="math." in text,
    )


def _identity(name: str, fields: list[Field], written: tuple[FormulaView, ...]) -> str:
    """Return what tuned slabs know a program by; comments do not count."""
    lines = [line for formula in written for line in formula.body.split("\n") if not line.lstrip().startswith("#")]
    return f"{name} {hashlib.sha256(repr((fields, lines)).encode()).hexdigest()[:16]}"


def sizes_of_mask(attention: Attention) -> tuple[str, ...]:
    """Return those of `D` and `g` that the mask depends on."""
    found = sizes_read(attention, attention.mask)
    return tuple(name.value for name in (SizeName.HEAD_SIZE, SizeName.GROUP) if name in found)


def sizes_read(attention: Attention, *exprs: Expr) -> set[SizeName]:
    """Return the sizes that expressions, the alignment and the tensors that they read depend on."""
    computed = (*exprs, attention.align.shift)
    read = {name for expr in computed for name in tables(expr)}
    dims = (dim for tensor in attention.tensors if tensor.name in read for dim in tensor.dims if dim is not None)
    return {node.name for expr in (*computed, *dims) for node in walk(expr) if isinstance(node, Size)}


def _program_fields(plan: Plan, formulas: Formulas) -> list[Field]:
    attention = plan.attention
    normalize = attention.normalize
    fields: list[Field] = [
        ("tensors", sequence([tensor_argument(tensor, formulas) for tensor in attention.tensors])),
        ("normalize", quoted(normalize.kind.value)),
        ("shift", formulas.name("shift", attention.align.shift)),
    ]
    if attention.mask != TRUE:
        fields.append(("mask", formulas.name("mask", attention.mask)))
    fields.extend(_score_fields(plan, formulas))
    optional = {
        "scale": attention.scale,
        "weight": attention.weight,
        "sink": normalize.sink,
        "sigmoid_bias": normalize.bias,
        "dropped": plan.scoring.dropped,
    }
    fields.extend((name, formulas.name(name, expr)) for name, expr in optional.items() if expr is not None)
    if normalize.power is not None and normalize.power.value != 1:
        fields.append(("power", repr(float(normalize.power.value))))
    fields.extend(_pass_fields(plan, formulas))
    read = [expr for expr in (plan.scoring.score, attention.weight, normalize.bias) if expr is not None]
    floats = _float_tables(attention, read)
    if floats:
        fields.append(("pair_tables", sequence([quoted(name) for name in floats])))
    in_mask = dict.fromkeys((*tables(attention.mask), *tables(attention.align.shift)))
    if in_mask:
        fields.append(("mask_tables", sequence([quoted(name) for name in in_mask])))
    if len(plan.passes) == 1 and plan.passes[0].form is Form.LIBRARY and plan.passes[0].library is not None:
        fields.append(("library", quoted(plan.passes[0].library.value)))
    if plan.window is not None:
        fields.append(("window", f"({plan.window[0]}, {plan.window[1]})"))
    if plan.part is not None:
        fields.append(("part", _library_part(plan, plan.part)))
    reads = slopes_of(weighing_of(plan), softmax=normalize.kind is NormalizeKind.SOFTMAX).reads
    if reads:
        fields.append(("reads", sequence([_table_read(one, f"read_{n}", formulas) for n, one in enumerate(reads)])))
    for name, expr in (("scale", attention.scale), ("sink", normalize.sink)):
        reads = () if expr is None else read_gradients(write_out_sums(expr))
        if reads:
            found = [_table_read(one, f"{name}_read_{n}", formulas, slope=True) for n, one in enumerate(reads)]
            fields.append((f"{name}_reads", sequence(found)))
    fields.append(("launch", f"_{attention.name}_launch"))
    fields.append(("gradients", f"_{attention.name}_gradients"))
    return fields


def _library_part(plan: Plan, part: LibraryPart) -> Bracket:
    stem = f"_{plan.attention.name}_{part_name(plan)}"
    return call(
        "LibraryPart",
        ("number", str(part.number + 1)),
        ("rows", str(part.pairs.rows)),
        ("keys", str(part.pairs.keys)),
        ("window", str(part.pairs.window)),
        ("launch", f"{stem}_launch"),
        ("gradients", f"{stem}_gradients"),
    )


def _table_read(one: ReadGradient, name: str, formulas: Formulas, *, slope: bool = False) -> Bracket:
    element = formulas.name(name, one.read)
    fields: list[Field] = [("table", quoted(one.read.table)), ("axes", quoted(one.axes.value)), ("element", element)]
    if slope and one.slopes[0] != ONE:
        fields.append(("slope", formulas.name(f"{name}_slope", one.slopes[0])))
    return call("TableRead", *fields)


def _period_fields(condition: Expr, formulas: Formulas, suffix: str) -> list[Field]:
    """Say how a condition repeats, everywhere or at least away from fixed positions."""
    period = shift_period(condition)
    if period:
        return [("period", str(period))]
    split = far_form(condition)
    if split is None:
        return []
    far, near = split
    condition_name, near_name = formulas.name(f"far{suffix}", far), formulas.name(f"near{suffix}", near)
    written = call("Far", ("condition", condition_name), ("near", near_name), ("period", str(shift_period(far))))
    return [("far", written)]


def _score_fields(plan: Plan, formulas: Formulas) -> list[Field]:
    score = plan.scoring.score
    if score == Score():
        return []
    fields: list[Field] = [("score", formulas.name("score", score, of_score=True))]
    split = split_linear(score)
    if split is None:
        return [*fields, ("linear", "False")]
    factor, bias = split
    if factor != 1.0:
        fields.append(("factor", repr(factor)))
    if bias is not None:
        fields.append(("bias", formulas.name("bias", bias)))
        fields.append(("bias_period", str(shift_period(bias))))
    return fields


def _pass_fields(plan: Plan, formulas: Formulas) -> list[Field]:
    read = [plan.attention.align.shift]
    for sweep in (one for variant in plan.variants for one in variant.passes):
        for interval in sweep.tiles.intervals:
            read.extend((interval.start, interval.stop, *(test for _, test in tests_of(plan, sweep, interval))))
    *shorter, whole = plan.variants
    fields: list[Field] = [("passes", _passes(whole, "", formulas))]
    if shorter:
        pairs = zip(shorter, plan.limits, strict=False)
        fields.append(("short", sequence([_short(variant, limit, formulas) for variant, limit in pairs])))
    names = tuple(dict.fromkeys(name for expr in read for name in tables(expr)))
    if names:
        fields.append(("bound_tables", sequence([quoted(name) for name in names])))
    summaries = summaries_text(plan, names)
    if summaries:
        fields.append(("summaries", sequence(list(summaries))))
    return fields


def tests_of(plan: Plan, sweep: Pass, interval: KeyInterval) -> tuple[tuple[str, Expr], ...]:
    """Return what the CPU program tests of whole tiles: whether pairs may be allowed, and whether all are."""
    if interval.tile_test is None:
        return ()
    found = [("test", interval.tile_test)]
    if not sweep.layout.is_grid and reads_pairs(interval.tile_test):
        limits = TileLimits(sweep.tiles.query_tile, sweep.tiles.key_tile)
        whole = whole_test(interval.residual, TileExtents.of(plan.attention, limits, sweep.layout, summaries=True))
        found.extend([("whole", whole)] if whole is not None else [])
    return tuple(found)


def _short(plan: Plan, limit: int | None, formulas: Formulas) -> Bracket:
    """Write the passes of a variant for short sequences."""
    name = variant_name(limit)
    return call(
        "Short",
        ("limit", str(limit)),
        ("passes", _passes(plan, f"_{name}", formulas)),
        ("launch", f"_{plan.attention.name}_{name}_launch"),
        ("gradients", f"_{plan.attention.name}_{name}_gradients"),
    )


def _passes(plan: Plan, suffix: str, formulas: Formulas) -> Bracket:
    """Write the passes of a variant; names of their formulas tell them apart.

    Args:
        plan: the variant, alone.
        suffix: what the names have that no other variant's have.
        formulas: of the attention.
    """
    letters = [f"_{chr(ord('a') + number) if number < 26 else number}" for number in range(len(plan.passes))]
    suffixes = [suffix + letter for letter in letters] if len(letters) > 1 else [suffix]
    return sequence([_pass(plan, one, name, formulas) for one, name in zip(plan.passes, suffixes, strict=True)])


def _pass(plan: Plan, sweep: Pass, suffix: str, formulas: Formulas) -> Bracket:
    """Write one pass."""
    if sweep.layout.is_grid:
        return _grid_pass(plan, sweep, suffix, formulas)
    intervals = []
    for position, interval in enumerate(sweep.tiles.intervals):
        fields: list[Field] = [
            ("start", formulas.name(f"start{suffix}_{position}", interval.start)),
            ("stop", formulas.name(f"stop{suffix}_{position}", interval.stop)),
        ]
        if interval.coverage is Coverage.FULL:
            fields.append(("full", "True"))
        elif interval.residual != TRUE:
            fields.append(("residual", formulas.name(f"residual{suffix}_{position}", interval.residual)))
            fields.extend(_period_fields(interval.residual, formulas, f"{suffix}_{position}"))
        for what, test in tests_of(plan, sweep, interval):
            fields.append((what, formulas.name(f"{what}{suffix}_{position}", test)))
        intervals.append(call("Interval", *fields))
    whole: list[Field] = [("intervals", sequence(intervals)), ("query_tile", str(sweep.tiles.query_tile))]
    if any(interval.tile_test is not None for interval in sweep.tiles.intervals):
        whole.append(("key_tile", str(sweep.tiles.key_tile)))
    if sweep.mask != TRUE:
        whole.append(("mask", formulas.name(f"mask{suffix}", sweep.mask)))
        whole.extend(_period_fields(sweep.mask, formulas, suffix))
    layout = sweep.layout
    if (layout.query.kind is MapKind.RESIDUE) != (layout.key.kind is MapKind.RESIDUE):
        raise InternalError(f"a pass in {layout}, where queries and keys have no classes in common")
    orders = (("query", layout.query), ("key", layout.key))
    whole.extend((name, _order(one)) for name, one in orders if one.kind is not MapKind.IDENTITY)
    if _tells_entries_apart(plan, sweep):
        whole.append(("by_batch", "True"))
    if sweep.library is Library.CAUSAL and len(plan.passes) > 1:
        whole.append(("causal_from", str(sweep.first)))
    return call("Pass", *whole)


def _grid_pass(plan: Plan, sweep: Pass, suffix: str, formulas: Formulas) -> Bracket:
    """Write a pass whose queries lie in tiles of a grid: what is tested in boxes, and how far these reach."""
    axes = []
    for place, (axis, side) in enumerate(zip(sweep.layout.query.axes, sweep.layout.key.sides, strict=True)):
        fields: list[Field] = [
            ("stride", str(axis.stride)),
            ("extent", str(axis.extent)),
            ("tile", str(axis.tile)),
        ]
        if axis.lead:
            fields.append(("lead", str(axis.lead)))
        fields.extend(
            (name, formulas.name(f"{name}{suffix}_{place}", bound))
            for name, bound in (("low", side.low), ("high", side.high))
            if bound is not None
        )
        axes.append(call("GridAxis", *fields))
    grid: list[Field] = [("axes", sequence(axes))]
    if sweep.tiles.alike:
        grid.append(("alike", "True"))
    residuals = [interval.residual for interval in sweep.tiles.intervals if interval.residual != TRUE]
    mask = And((*residuals, _REAL_KEY)) if residuals else _REAL_KEY
    if residuals:
        grid.append(("tested", "True"))
    fields = [
        ("intervals", "()"),
        ("query_tile", str(sweep.tiles.query_tile)),
        ("mask", formulas.name(f"mask{suffix}_in_box", mask)),
        ("grid", call("QueryGrid", *grid)),
    ]
    if _tells_entries_apart(plan, sweep):
        fields.append(("by_batch", "True"))
    return call("Pass", *fields)


def _order(one: CoordinateMap) -> Bracket:
    length = 0 if one.kind is MapKind.RESIDUE else one.length
    fields: list[Field] = [("period", str(one.period))]
    if one.first:
        fields.append(("first", str(one.first)))
    if length != 1:
        fields.append(("length", str(length)))
    return call("Order", *fields)


def _tells_entries_apart(plan: Plan, sweep: Pass) -> bool:
    bounds = [bound for interval in sweep.tiles.intervals for bound in (interval.start, interval.stop)]
    read = (plan.attention.align.shift, plan.scoring.score, sweep.mask, *bounds)
    return any(IndexName.BATCH in indices(expr) for expr in read)


def _float_tables(attention: Attention, read: list[Expr]) -> tuple[str, ...]:
    names = dict.fromkeys(name for expr in read for name in tables(expr))
    return tuple(name for name in names if attention.tensor(name).type is Type.FLOAT)


def _is_checked(attention: Attention) -> bool:
    """Tell whether there is a promise to check, and no input that has the name of the argument that asks for it."""
    return any(one.sorted for one in attention.tensors) and all(one.name != "checked" for one in attention.tensors)


def tensor_argument(tensor: Tensor, formulas: Formulas) -> Bracket:
    """Return the runtime's description of a tensor."""
    fields: list[Field] = [("name", quoted(tensor.name)), ("type", quoted(tensor.type.value))]
    if tensor.dims:
        fields.append(
            ("dims", sequence(["None" if dim is None else f"lambda size: {length_text(dim)}" for dim in tensor.dims]))
        )
        fields.append(("labels", sequence([quoted("?" if dim is None else show(dim)) for dim in tensor.dims])))
        fields.append(("broadcast", sequence([str(_broadcasts(dim)) for dim in tensor.dims])))
    if tensor.sorted:
        fields.append(("sorted", "True"))
    if tensor.initial is not None:
        fields.append(("initial", formulas.name(f"initial_{tensor.name}", tensor.initial)))
    return call("TensorArgument", *fields)


def _broadcasts(dim: Expr | None) -> bool:
    return isinstance(dim, Size) and dim.name in (SizeName.BATCH, SizeName.HEADS)


def argument_view(attention: Attention, tensor: Tensor) -> ArgumentView:
    """Decide how a tensor is written as an argument."""
    python = {Type.BOOL: "bool", Type.INT: "int", Type.FLOAT: "float"}[tensor.type]
    learned = tensor.kind is TensorKind.LEARNED
    shape = ", ".join("?" if dim is None else show(dim) for dim in tensor.dims)
    about = f"{python} tensor ({shape}{',' if len(tensor.dims) == 1 else ''})" if tensor.dims else f"{python} scalar"
    notes = [
        note for note, holds in (("learned", learned), ("sorted along its last dimension", tensor.sorted)) if holds
    ]
    in_mask = tensor.name in {*tables(attention.mask), *tables(attention.align.shift)}
    hint = "Tensor" if tensor.dims or learned else f"{python} | Tensor"
    return ArgumentView(tensor.name, hint, printable(", ".join([about, *notes])), learned, in_mask)


def attention_title(attention: Attention) -> str:
    """Return what docstrings call an attention."""
    given = ", ".join(f"{name} = {show(value)}" for name, value in attention.params)
    return printable(f"`{attention.name}`" + (f" with {given}" if given else ""))
