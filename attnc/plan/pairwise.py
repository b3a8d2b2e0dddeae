"""The attention that is left when queries, keys and values are prepared, mapped to features and shortened."""

from __future__ import annotations

from dataclasses import replace

from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import Const, Expr, IndexName, Read, Score, Size, SizeName
from attnc.ir.program import Attention, Deferred, NormalizeKind, Tensor, TensorKind, expressions, map_expressions
from attnc.ir.shortening import implied_names
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, indices, substitute, tables, walk

_ONE = Const(1.0, Type.FLOAT)
MOST_ELEMENTS = 1 << 30
"""Numbers of a learned projection of keys."""

_LIMITS = (
    (("prepare", "rotary"), "theta", 1e-6, 1e30),
    (("feature", "favor"), "features", 1, 1 << 16),
    (("keys", "conv"), "kernel", 1, 1 << 16),
    (("keys", "conv2d"), "kernel", 1, 1 << 12),
    (("decompose", "chunk"), "size", 1, 1 << 16),
)
"""Statement, argument, its least and its greatest value."""

_HEAD_SIZE = Size(SizeName.HEAD_SIZE)
_RESIZING = ("favor", "cosformer")
"""Maps with more or fewer features than a head has elements."""


def pairwise_attention(attention: Attention) -> Attention:
    """Return an attention over queries and keys that are ready for their products.

    `favor` has the scale inside of its features, and other maps are scaled where the pattern says so alone
    (LANGUAGE.md section 7): the products of features are weighed as they are. Where there are other features than
    elements, `D` becomes a hidden scalar, as `K` is where keys are shortened.
    """
    feature, keys = attention.feature, attention.shorten
    kept = tuple(one for one in attention.deferred if one.statement in ("decompose", "keys") and one.form != "nystrom")
    scale = attention.scale
    if feature is not None and (scale is None or feature.form == "favor"):
        scale = _ONE
    implied = implied_names(keys) if keys is not None else frozenset()
    tensors = tuple(one for one in attention.tensors if one.name not in implied)
    found = replace(attention, deferred=kept, scale=scale, tensors=tensors)
    if feature is not None and feature.form in _RESIZING:
        found = _with_own_head_size(found)
    read = {name for expr in expressions(found) for name in tables(expr)}
    return replace(found, tensors=tuple(one for one in found.tensors if not one.hidden or one.name in read))


def is_surrounded(attention: Attention) -> bool:
    """Tell whether anything is done to queries, keys or values before pairs are weighed, or instead."""
    return any(one.statement != "decompose" or one.form == "nystrom" for one in attention.deferred)


def _with_own_head_size(attention: Attention) -> Attention:
    """Let `D` be the size of a head, and not of its features."""
    if not any(node == _HEAD_SIZE for expr in expressions(attention) for node in walk(expr)):
        return attention
    hidden = Tensor(SizeName.HEAD_SIZE.value, TensorKind.INPUT, Type.INT, hidden=True, span=attention.span)
    given: dict[Expr, Expr] = {_HEAD_SIZE: Read(hidden.name, (), Type.INT, inside=True)}
    found = map_expressions(attention, lambda expr: substitute(expr, given))
    initial = {one.name: one.initial for one in attention.tensors}  # the module's constructor is given `D`
    tensors = tuple(replace(one, initial=initial[one.name]) for one in found.tensors)
    return replace(found, tensors=(*tensors, hidden))


def check_surroundings(attention: Attention, *, everything: bool) -> None:
    """Refuse what approximations would get wrong.

    Args:
        attention: simplified, as it was declared.
        everything: whether the mask is proven to allow every pair, of any lengths.

    Raises:
        CompileError: positions that a query may not see would reach it, or an approximation has no such form.
    """
    for statement in attention.deferred:
        _check_sizes(statement)
    keys, asked = attention.shorten, attention.decompose
    if keys is not None and keys.form == "project" and not everything and depends_on(attention.mask, IndexName.QUERY):
        raise CompileError(
            _refused(
                "projected-keys-leak",
                "every projected key is made of all positions, so the mask cannot hide any from a query",
                keys,
                "remove the mask, or shorten keys by `mean_pool` or `conv`, whose keys cover a few positions each",
            )
        )
    if keys is not None and keys.form == "conv2d" and keys.number("kernel") > keys.number("width"):
        raise CompileError(
            _refused("kernel-too-wide", "no kernel of this size fits into a row of the grid", keys, "make it smaller")
        )
    if asked is not None and asked.form == "nystrom":
        _check_nystrom(attention, asked, everything)


def _check_sizes(statement: Deferred) -> None:
    """Refuse arguments with which nothing could be computed: tensors of any size, angles that are no numbers."""
    for form, name, least, most in _LIMITS:
        if (statement.statement, statement.form) == form:
            value = float(statement.number(name))
            if not least <= value <= most:
                message = f"`{name}` must lie between {least:g} and {most:g}"
                raise CompileError(_refused("argument-out-of-range", message, statement, "choose another value"))
    if statement.form == "project" and statement.number("rank") * statement.number("length") > MOST_ELEMENTS:
        message = f"a projection has at most {MOST_ELEMENTS:,} numbers"
        raise CompileError(_refused("argument-out-of-range", message, statement, "choose a smaller rank or length"))


def _check_nystrom(attention: Attention, asked: Deferred, everything: bool) -> None:
    if not everything:
        raise CompileError(
            _refused(
                "nystrom-leaks",
                "a landmark is the mean of many positions, so the mask cannot hide any from a query",
                asked,
                "remove the mask or the `nystrom`: it approximates attention to all keys",
            )
        )
    normalize = attention.normalize
    plain = normalize.kind is NormalizeKind.SOFTMAX and normalize.sink is None and attention.weight is None
    rows = attention.scale is not None and (indices(attention.scale) or tables(attention.scale))
    if not plain or attention.score != Score() or attention.feature is not None or rows:
        raise CompileError(
            _refused(
                "decompose-does-not-fit",
                "`nystrom` approximates the softmax of scaled dot products, and this attention is another",
                asked,
                "remove the `nystrom`, or the score, weight, sink or feature map beside it, or a `scale` that is not "
                "the same for all rows",
            )
        )


def _refused(code: str, message: str, statement: Deferred, help: str) -> Diagnostic:
    labels = () if statement.span is None else (Label(statement.span),)
    return Diagnostic(code, message, labels, help)
