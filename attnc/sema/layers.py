"""Checking a layer (LANGUAGE.md section 9): its items, in any order, become one IR `Layer`."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.ir.evaluate import evaluate
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, IndexName
from attnc.ir.program import Attention, FeedForward, Layer, Projection, Via
from attnc.ir.types import Type
from attnc.sema import form_errors
from attnc.sema.attentions import check_attention
from attnc.sema.context import Context
from attnc.sema.declarations import ParameterValue, declare_params
from attnc.sema.forms import Slot, bind, check_expr, find_form, positive
from attnc.sema.layer_rules import check_layer_rules
from attnc.sema.restrict import Restriction, obeys
from attnc.sema.scopes import QuantityMeaning, Scope, nearest
from attnc.sema.types import type_named
from attnc.syntax import tree

_WEIGHTS: Mapping[str, tuple[Slot, ...]] = {
    "dense": (),
    "low_rank": (positive("r"),),
    "block_diagonal": (positive("blocks"),),
    "monarch": (positive("blocks"),),
    "banded": (positive("width"),),
    "masked": (Slot("condition", Type.BOOL, constant=False),),
    "conv": (positive("kernel"), positive("stride")),
    "conv2d": (positive("width"), positive("kernel"), positive("stride")),
}
_VIA: Mapping[str, tuple[Slot, ...]] = {
    "strassen": (positive("levels"),),
    "winograd": (positive("levels"),),
    "bilinear": (Slot("file", None), positive("levels")),
}
_NORMS: Mapping[str, tuple[Slot, ...]] = {"rms": (), "layer": (), "none": ()}
_FEEDFORWARDS = ("gelu", "swiglu", "none")
_PROJECTIONS = ("query", "key", "value", "output")
_USAGE = {
    "norm": "norm rms",
    "heads": "heads 16",
    "kv_heads": "kv_heads 4",
    "head_size": "head_size 64",
    **{name: f"{name} dense" for name in _PROJECTIONS},
    "rotary": "rotary theta = 10000",
    "attend": "attend NAME(...)",
    "feedforward": "feedforward gelu(hidden = ..., dense)",
}
"""How each item is written."""

_MATRIX = Restriction(
    "a masked weight",
    indices=frozenset({IndexName.QUERY, IndexName.KEY}),
    sizes=frozenset(),
    tables=frozenset(),
    may="`i` and `j`, the row and the column of the matrix, and parameters",
)


def check_layer(
    declaration: tree.Layer, context: Context, values: Mapping[str, ParameterValue], required: bool
) -> Layer | None:
    """Check a layer. Arguments are those of `check_attention`. None after a mistake."""
    before = len(context.report.found)
    context = context.within(
        Scope(context.scope, later={param.name.text: param.name.span for param in declaration.params})
    )
    params = declare_params(declaration.params, declaration.name, context, values, required)
    width = context.scope.names.get("width")
    if not isinstance(width, QuantityMeaning) or (width.expr is not None and width.expr.type is not Type.INT):
        context.report.add(form_errors.layer_without_width(declaration.name.span, declaration.name.text))
    items = _items(declaration, context)
    for needed in ("heads", "attend"):
        if needed not in items:
            context.report.add(
                form_errors.missing_item(declaration.name.span, declaration.name.text, needed, _USAGE[needed])
            )
    sizes = _sizes(items, context)
    projections = tuple((name, _projection(items.get(name), context)) for name in _PROJECTIONS)
    theta = _theta(items.get("rotary"), context)
    norm = _norm(items.get("norm"), context)
    attend = _attend(items.get("attend"), context, required)
    feedforward = _feedforward(items.get("feedforward"), context)
    if len(context.report.found) > before or attend is None:
        return None
    layer = Layer(
        name=declaration.name.text,
        params=params,
        attention=attend.name,
        norm=norm,
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        head_size=sizes["head_size"],
        projections=tuple((name, projection or Projection()) for name, projection in projections),
        theta=theta,
        attend=attend,
        feedforward=feedforward,
        span=declaration.name.span,
    )
    check_layer_rules(layer, items["heads"].value.span if "head_size" not in items else None, context)
    return layer


_Item = tree.Item | tree.Assignment


def _items(declaration: tree.Layer, context: Context) -> dict[str, _Item]:
    """Return the items by their words, each once."""
    items: dict[str, _Item] = {}
    for statement in declaration.statements:
        match statement:
            case tree.Item(word=word) | tree.Assignment(word=word):
                pass
            case tree.Rule(keyword=word) | tree.FormRule(keyword=word):
                context.report.add(form_errors.unknown_item(word.span, word.text, None))
                continue
            case _:
                keyword = statement.span.text.split(maxsplit=1)[0]
                context.report.add(form_errors.unknown_item(statement.span, keyword, None))
                continue
        if word.text not in _USAGE:
            context.report.add(form_errors.unknown_item(word.span, word.text, nearest(word.text, tuple(_USAGE))))
        elif word.text in items:
            context.report.add(form_errors.statement_repeated(word.span, word.text, items[word.text].word.span))
        elif isinstance(statement, tree.Assignment) != (word.text == "rotary"):
            context.report.add(form_errors.item_form(statement.span, _USAGE[word.text]))
        else:
            items[word.text] = statement
            if isinstance(statement, tree.Item) and statement.via is not None and word.text not in _PROJECTIONS:
                context.report.add(form_errors.via_misplaced(statement.via.span))
    return items


def _sizes(items: dict[str, _Item], context: Context) -> dict[str, Expr | None]:
    """Return `heads`, `kv_heads` (`heads` unless said) and `head_size` (`width // heads` unless said)."""
    sizes: dict[str, Expr | None] = {}
    for name in ("heads", "kv_heads", "head_size"):
        item = items.get(name)
        sizes[name] = check_expr(item.value, positive(name), context) if item is not None else None
    heads = sizes["heads"]
    if "kv_heads" not in items:
        sizes["kv_heads"] = heads
    kv_heads = sizes["kv_heads"]
    if isinstance(heads, Const) and isinstance(kv_heads, Const) and heads.value % kv_heads.value:
        context.report.add(
            form_errors.heads_not_grouped(items["kv_heads"].value.span, int(heads.value), int(kv_heads.value))
        )
    width = context.scope.names.get("width")
    if "head_size" not in items and heads is not None and isinstance(width, QuantityMeaning) and width.expr is not None:
        node = Binary(BinaryOp.FLOORDIV, width.expr, heads, Type.INT, span=heads.span)
        both = isinstance(heads, Const) and isinstance(width.expr, Const)
        sizes["head_size"] = Const(evaluate(node), Type.INT, span=heads.span) if both else node
    return sizes


def _as_form(expr: tree.Expr) -> tree.Form | None:
    """Read an expression as a form: a name with or without arguments."""
    match expr:
        case tree.Name():
            return tree.Form(expr, None, expr.span)
        case tree.Call(function=function, arguments=arguments):
            return tree.Form(function, arguments, expr.span)
        case _:
            return None


def _norm(item: _Item | None, context: Context) -> str:
    if item is None:
        return "none"
    form = _as_form(item.value)
    if form is None or form.arguments is not None:
        context.report.add(form_errors.item_form(item.span, _USAGE["norm"]))
        return "none"
    return form.name.text if find_form(form, "norm", _NORMS, context) is not None else "none"


def _projection(item: _Item | None, context: Context) -> Projection | None:
    if not isinstance(item, tree.Item):
        return None
    return _weight(item.value, item.via, item.word.text, context)


def _weight(expr: tree.Expr, via: tree.Form | None, owner: str, context: Context) -> Projection | None:
    form = _as_form(expr)
    if form is None:
        context.report.add(form_errors.item_form(expr.span, f"{owner} dense"))
        return None
    slots = find_form(form, owner, _WEIGHTS, context)
    bound = None if slots is None else bind(form.name, form.span, form.arguments or (), slots, context)
    computed = _via(via, context)
    if bound is None:
        return None
    condition = bound.expr("condition")
    if condition is not None and not obeys(condition, form.span, _MATRIX, context):
        return None
    return Projection(form.name.text, bound.items(), computed, span=form.span)


def _via(form: tree.Form | None, context: Context) -> Via | None:
    if form is None:
        return None
    slots = find_form(form, "via", _VIA, context)
    bound = None if slots is None else bind(form.name, form.span, form.arguments or (), slots, context)
    return None if bound is None else Via(form.name.text, bound.items(), span=form.span)


def _theta(item: _Item | None, context: Context) -> Expr | None:
    if not isinstance(item, tree.Assignment):
        return None
    if item.name is None or item.name.text != "theta":
        context.report.add(form_errors.item_form(item.span, _USAGE["rotary"]))
        return None
    return check_expr(item.value, Slot("theta", Type.FLOAT, least=0, above=True), context)


def _feedforward(item: _Item | None, context: Context) -> FeedForward | None:
    """`gelu(hidden = EXPR, WEIGHT)`, `swiglu(hidden = EXPR, WEIGHT)` or `none`."""
    if item is None:
        return None
    form = _as_form(item.value)
    if form is None:
        context.report.add(form_errors.item_form(item.span, _USAGE["feedforward"]))
        return None
    name = form.name.text
    if name not in _FEEDFORWARDS:
        context.report.add(
            form_errors.unknown_form(form.name.span, "feedforward", name, _FEEDFORWARDS, nearest(name, _FEEDFORWARDS))
        )
        return None
    if name == "none":
        bind(form.name, form.span, form.arguments or (), (), context)
        return None
    arguments = form.arguments or ()
    named = [argument for argument in arguments if argument.name is not None and argument.name.text == "hidden"]
    plain = [argument for argument in arguments if argument.name is None]
    if len(arguments) != 2 or len(named) != 1 or len(plain) != 1:
        context.report.add(form_errors.item_form(form.span, f"feedforward {name}(hidden = ..., dense)"))
        return None
    hidden = check_expr(named[0].value, positive("hidden"), context)
    if named[0].via is not None:
        context.report.add(form_errors.via_misplaced(named[0].via.span))
    weight = _weight(plain[0].value, plain[0].via, "feedforward", context)
    if hidden is None or weight is None:
        return None
    return FeedForward(name, hidden, weight, span=item.span)


def _attend(item: _Item | None, context: Context, required: bool) -> Attention | None:
    """Check `attend NAME(args)`: the attention, specialised to these arguments."""
    if item is None:
        return None
    form = _as_form(item.value)
    if form is None:
        context.report.add(form_errors.item_form(item.span, _USAGE["attend"]))
        return None
    meaning = context.scope.operation(form.name.text)
    if meaning is None or not isinstance(meaning.declaration, tree.Attention):
        suggestion = nearest(form.name.text, _attentions(context))
        context.report.add(form_errors.not_an_attention(form.name.span, form.name.text, suggestion))
        return None
    attention = meaning.declaration
    values = _attention_arguments(form, attention, context)
    if values is None:
        return None
    complete = required and all(isinstance(value, Const) for value in values.values())
    given = {name: value.value for name, value in values.items() if isinstance(value, Const)}
    return check_attention(attention, context.within(meaning.scope), given, complete)


def _attentions(context: Context) -> list[str]:
    found = []
    for name in context.scope.visible():
        meaning = context.scope.operation(name)
        if meaning is not None and isinstance(meaning.declaration, tree.Attention):
            found.append(name)
    return found


def _attention_arguments(form: tree.Form, attention: tree.Attention, context: Context) -> dict[str, Expr] | None:
    """Match the arguments of `attend` with the attention's parameters; each must be a constant of its type."""
    slots = []
    for param in attention.params:
        kind = type_named(param.type.text) if param.type is not None else None
        if kind is None:
            return None  # told where it is declared
        slots.append(Slot(param.name.text, kind, optional=param.default is not None))
    bound = bind(form.name, form.span, form.arguments or (), tuple(slots), context)
    return None if bound is None else bound.exprs()
