"""Checking statements that take one of several named forms: `normalize`, `align`, and those of sections 7, 8 and 10."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, IndexName, Size, SizeName
from attnc.ir.program import ORIGINAL_KEYS, Align, AlignKind, Deferred, Normalize, NormalizeKind
from attnc.ir.types import Type
from attnc.sema import errors, expression_errors, form_errors
from attnc.sema.construct import is_constant
from attnc.sema.context import Context
from attnc.sema.expressions import check
from attnc.sema.operators import widen
from attnc.sema.restrict import PER_QUERY, Restriction, obeys
from attnc.sema.scopes import nearest
from attnc.source import Span
from attnc.syntax import tree


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument of a form.

    Attributes:
        type: what it must be; None: a string.
        constant: whether it must be a compile-time constant.
        least: the least value of a constant; it must be above that if `above`.
        default: the value if it is left out; None: it must be given, unless `optional`.
    """

    name: str
    type: Type | None
    constant: bool = True
    least: int | None = None
    above: bool = False
    default: int | None = None
    optional: bool = False


def positive(name: str) -> Slot:
    """A constant int of at least 1."""
    return Slot(name, Type.INT, least=1)


_SEED = Slot("seed", Type.INT, default=0)

NORMALIZE: Mapping[str, tuple[Slot, ...]] = {
    "softmax": (Slot("sink", Type.FLOAT, constant=False, optional=True),),
    "sigmoid": (Slot("bias", Type.FLOAT, constant=False, optional=True),),
    "relu": (Slot("power", Type.FLOAT, least=0, above=True, default=1),),
    "rows": (),
    "none": (),
}
ALIGN: Mapping[str, tuple[Slot, ...]] = {
    "end": (),
    "start": (),
    "at": (Slot("position", Type.INT, constant=False),),
}
DEFERRED: Mapping[str, Mapping[str, tuple[Slot, ...]]] = {
    "prepare": {
        "unit": (),
        "rms": (),
        "rotary": (Slot("theta", Type.FLOAT, least=0, above=True, default=10000),),
    },
    "feature": {
        "identity": (),
        "relu": (),
        "elu1": (),
        "exp": (),
        "square": (),
        "favor": (positive("features"), _SEED),
        "cosformer": (),
    },
    "keys": {
        "mean_pool": (positive("window"), positive("stride")),
        "conv": (positive("kernel"), positive("stride")),
        "conv2d": (positive("width"), positive("kernel"), positive("stride")),
        "project": (positive("rank"), positive("length")),
    },
    "decompose": {
        "auto": (),
        "none": (),
        "split": (Slot("condition", Type.BOOL, constant=False),),
        "permute": (),
        "chunk": (positive("size"),),
        "nystrom": (positive("landmarks"),),
    },
}
PERMUTATIONS: Mapping[str, tuple[Slot, ...]] = {
    "residue": (positive("d"),),
    "tile": (positive("width"), positive("th"), positive("tw")),
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Arguments by the names of their slots; those that are left out and have no default are absent."""

    values: dict[str, Expr | str]

    def expr(self, name: str) -> Expr | None:
        """Return an argument that is an expression."""
        value = self.values.get(name)
        return None if isinstance(value, str) else value

    def exprs(self) -> dict[str, Expr]:
        """Return all arguments that are expressions."""
        return {name: value for name, value in self.values.items() if not isinstance(value, str)}

    def items(self) -> tuple[tuple[str, Expr | str], ...]:
        """Return names and arguments in the order of the slots."""
        return tuple(self.values.items())


def find_form(
    form: tree.Form, keyword: str, forms: Mapping[str, tuple[Slot, ...]], context: Context
) -> tuple[Slot, ...] | None:
    """Return the slots of a form by its name."""
    name = form.name.text
    if name in forms:
        return forms[name]
    if (keyword, name) == ("keys", "mlp"):
        context.report.add(expression_errors.reserved_for_later(form.name.span, "`keys mlp`"))
    else:
        context.report.add(
            form_errors.unknown_form(form.name.span, keyword, name, tuple(forms), nearest(name, tuple(forms)))
        )
    return None


def bind(
    name: tree.Name, span: Span, arguments: tuple[tree.Argument, ...], slots: tuple[Slot, ...], context: Context
) -> Bound | None:
    """Match arguments with slots, as Python does, and check each. None after a mistake."""
    usage = f"{name.text}({', '.join(slot.name for slot in slots)})" if slots else name.text
    places: dict[str, tree.Argument] = {}
    right = True
    for position, argument in enumerate(arguments):
        if argument.via is not None:
            context.report.add(form_errors.via_misplaced(argument.via.span))
            right = False
        if argument.name is not None:
            slot_name = argument.name.text
            if slot_name not in {slot.name for slot in slots}:
                context.report.add(form_errors.unknown_argument(argument.name.span, name.text, slot_name, usage))
                right = False
                continue
        elif position < len(slots):
            slot_name = slots[position].name
        else:
            context.report.add(form_errors.too_many_arguments(argument.span, name.text, len(slots), usage))
            right = False
            continue
        if slot_name in places:
            context.report.add(form_errors.argument_repeated(argument.span, slot_name))
            right = False
            continue
        places[slot_name] = argument
    bound: dict[str, Expr | str] = {}
    for slot in slots:
        if slot.name in places:
            written = places[slot.name].value
            value = (check_expr if slot.type is not None else _check_text)(written, slot, context)
            if value is None:
                right = False
            else:
                bound[slot.name] = value
        elif slot.default is not None:
            kind = Type.FLOAT if slot.type is Type.FLOAT else Type.INT
            bound[slot.name] = Const(float(slot.default) if kind is Type.FLOAT else slot.default, kind, span=span)
        elif not slot.optional:
            context.report.add(form_errors.missing_argument(span, name.text, slot.name, usage))
            right = False
    return Bound(bound) if right else None


def _check_text(expr: tree.Expr, slot: Slot, context: Context) -> str | None:
    if isinstance(expr, tree.Text):
        return expr.value
    context.report.add(form_errors.not_a_string(expr.span, slot.name))
    return None


def check_expr(expr: tree.Expr, slot: Slot, context: Context) -> Expr | None:
    """Check one argument of a form that is not a string."""
    assert slot.type is not None
    value = check(expr, context)
    if value is None:
        return None
    if value.type is not slot.type and (value.type, slot.type) != (Type.INT, Type.FLOAT):
        context.report.add(form_errors.wrong_form_argument(expr.span, slot.name, slot.type, value.type))
        return None
    if slot.constant and not is_constant(value):
        context.report.add(errors.not_constant(expr.span, f"`{slot.name}`"))
        return None
    if isinstance(value, Const) and slot.least is not None:
        fits = value.value > slot.least if slot.above else value.value >= slot.least
        if not fits:
            context.report.add(form_errors.argument_out_of_range(expr.span, slot.name, slot.least, slot.above))
            return None
    return widen(value, slot.type, context, expr.span)


def check_normalize(statement: tree.FormRule, context: Context) -> Normalize | None:
    """Check `normalize`."""
    form = statement.form
    slots = find_form(form, "normalize", NORMALIZE, context)
    bound = None if slots is None else bind(form.name, form.span, form.arguments or (), slots, context)
    if bound is None:
        return None
    sink = bound.expr("sink")
    if sink is not None and not obeys(sink, form.span, replace(PER_QUERY, where="a sink"), context):
        return None
    bias, power = bound.expr("bias"), bound.expr("power")
    kind = NormalizeKind(form.name.text)
    if kind is NormalizeKind.SIGMOID and bias is None:
        bias = Const(0.0, Type.FLOAT, span=form.span)
    if kind is NormalizeKind.RELU and not isinstance(power, Const):
        power = Const(1.0, Type.FLOAT, span=form.span)  # only `check` without values of parameters comes here
    return Normalize(kind, sink, bias, power if isinstance(power, Const) else None, span=statement.span)


def check_align(statement: tree.FormRule, inputs: frozenset[str], context: Context) -> Align | None:
    """Check `align`. `inputs` are those declared so far."""
    form = statement.form
    slots = find_form(form, "align", ALIGN, context)
    bound = None if slots is None else bind(form.name, form.span, form.arguments or (), slots, context)
    if bound is None:
        return None
    match AlignKind(form.name.text):
        case AlignKind.END:
            keys, queries = Size(SizeName.KEYS, span=form.span), Size(SizeName.QUERIES, span=form.span)
            shift: Expr = Binary(BinaryOp.SUB, keys, queries, Type.INT, span=form.span)
        case AlignKind.START:
            shift = Const(0, Type.INT, span=form.span)
        case AlignKind.AT:
            shift = bound.exprs()["position"]
            restriction = Restriction(
                "`align at`",
                indices=frozenset({IndexName.BATCH, IndexName.HEAD}),
                sizes=frozenset(SizeName),
                tables=inputs | {ORIGINAL_KEYS},
                may="`b`, `h`, sizes and inputs: one value serves all pairs of a head",
            )
            if not obeys(shift, form.span, restriction, context):
                return None
    return Align(AlignKind(form.name.text), shift, span=statement.span)


def check_deferred(statement: tree.FormRule, context: Context) -> list[Deferred]:
    """Check a statement that no later stage understands yet."""
    keyword, form = statement.keyword.text, statement.form
    slots = find_form(form, keyword, DEFERRED[keyword], context)
    if slots is None:
        return []
    if (keyword, form.name.text) == ("decompose", "permute"):
        return _permutation(statement, context)
    bound = bind(form.name, form.span, form.arguments or (), slots, context)
    if bound is None or (keyword, form.name.text) == ("decompose", "auto"):
        return []
    return [Deferred(keyword, form.name.text, bound.items(), span=statement.span)]


def _permutation(statement: tree.FormRule, context: Context) -> list[Deferred]:
    """`permute(residue(d))` or `permute(tile(width, th, tw))`: a form within a form."""
    form = statement.form
    arguments = form.arguments or ()
    inner = arguments[0].value if len(arguments) == 1 and arguments[0].name is None else None
    if not isinstance(inner, tree.Call):
        context.report.add(form_errors.permutation_form(form.span))
        return []
    call = tree.Form(inner.function, inner.arguments, inner.span)
    slots = find_form(call, "permute", PERMUTATIONS, context)
    bound = None if slots is None else bind(call.name, call.span, call.arguments or (), slots, context)
    if bound is None:
        return []
    order: tuple[str, Expr | str] = ("order", call.name.text)
    return [Deferred("decompose", "permute", (order, *bound.items()), span=statement.span)]
