"""A plan as the text and flags of a FlexAttention module: everything is decided here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnc.algebra.key_intervals import Coverage, TileSets
from attnc.codegen.expr_flex import Scope, flex_body, flex_text, host_text, laid_out
from attnc.codegen.expr_torch import comments, quoted
from attnc.codegen.formulas import Formulas, FormulaView
from attnc.codegen.layout import LINE, Bracket, call, lay_out, sequence
from attnc.codegen.period import shift_period
from attnc.codegen.tile_text import tile_body
from attnc.codegen.view import (
    ArgumentView,
    argument_view,
    attention_title,
    sizes_read,
    tensor_argument,
)
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import TRUE, Expr, Index, IndexName, Read, Score, Size, SizeName
from attnc.ir.program import AlignKind, Attention, NormalizeKind
from attnc.ir.walk import depends_on, tables, walk
from attnc.source import Span

_ARGUMENTS = {"block_mask", "block_size", "compiled"}
"""Arguments of a FlexAttention module's functions that other modules do not have."""

_LOCALS = {
    "b", "h", "i", "q_idx", "kv_idx", "score", "shift", "scale", "size", "tables", "torch", "math", "read", "floor",
    "min", "max", "abs", "int", "float", "bool", "truncate", "floor_divide", "floor_modulo", "any_of", "all_of",
    "sum_of", "hash_of", "mask_mod", "score_mod", "Tensor", "Any", "Callable", "Mapping",
}  # fmt: skip
"""Names that the functions of a pair use themselves."""


@dataclass(frozen=True, slots=True)
class ModView:
    """A `mask_mod` or `score_mod`.

    Attributes:
        plain: it is a function of a pair; otherwise a function of sizes and tensors that makes one.
        shifted: a plain one that takes the position of the first query.
        needed: names of the tensors that it reads.
        sizes: those of `D` and `g` that it depends on.
        definition: the first lines of a plain one, or of what makes one.
        bindings: assignments of sizes and tensors to variables.
        has_scale: it multiplies the score by the pattern's own scale; otherwise FlexAttention does.
        body: statements, the last one a return.
    """

    plain: bool
    shifted: bool
    needed: tuple[str, ...]
    sizes: tuple[str, ...]
    definition: tuple[str, ...]
    bindings: tuple[str, ...]
    has_scale: bool
    body: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlexView:
    """One attention of a FlexAttention module.

    Attributes:
        title: one line for docstrings.
        scale: plain Python that computes the factor on the dot product; None for the usual one.
        operation: lines that build the runtime's description.
    """

    name: str
    title: str
    arguments: tuple[ArgumentView, ...]
    mask: ModView
    score: ModView
    scale: str | None
    scale_sizes: tuple[str, ...]
    formulas: tuple[FormulaView, ...]
    operation: str


def flex_names(name: str) -> tuple[str, ...]:
    """Return what a FlexAttention module defines for an attention."""
    return name, f"{name}_mask_mod", f"{name}_score_mod", f"{name}_block_mask"


def check_expressible(attentions: Sequence[Attention]) -> None:
    """Raise CompileError, with everything that is in the way, where FlexAttention has no form for an attention."""
    problems = [problem for attention in attentions for problem in _problems(attention)]
    if problems:
        raise CompileError(*problems)


def _problems(attention: Attention) -> list[Diagnostic]:
    found: list[tuple[str, Span | None]] = []
    normalize = attention.normalize
    if normalize.kind is not NormalizeKind.SOFTMAX:
        found.append((f"`normalize {normalize.kind.value}`: its weights are those of a softmax", normalize.span))
    if normalize.sink is not None:
        found.append(("sink in the denominator of its softmax", normalize.span))
    for one in attention.deferred:
        if one.statement != "decompose" or one.form == "nystrom":
            found.append((f"`{one.statement} {one.form}`", one.span))
    if attention.weight is not None:
        found.append(("`weight` beside the softmax's", attention.weight.span))
    problems = [
        Diagnostic(
            "flex-not-expressible",
            f"FlexAttention has no {what}",
            tuple(Label(place) for place in (span or attention.span,) if place is not None),
            "compile it with `--target triton`, which has a kernel and a CPU program for it",
        )
        for what, span in found
    ]
    for tensor in attention.tensors:
        if tensor.name in _ARGUMENTS:
            labels = () if tensor.span is None else (Label(tensor.span),)
            problems.append(
                Diagnostic(
                    "unusable-name",
                    f"`{tensor.name}` cannot be the name of a tensor: functions of this target have such an argument",
                    labels,
                    "rename it",
                )
            )
    return problems


def flex_view(attention: Attention, tiles: TileSets) -> FlexView:
    """Decide how one attention is written.

    Args:
        attention: after simplification, `check_expressible`.
        tiles: the interval list of its mask in plain order.
    """
    scale = attention.scale
    host_scale = scale is not None and not any(isinstance(node, Index | Read) for node in walk(scale))
    mask = _mod(attention, "mask", attention.mask, None)
    score = _mod(attention, "score", attention.score, None if host_scale else scale)
    formulas = Formulas(attention.name)
    operation = _operation(attention, tiles, formulas, mask, score, host_scale)
    scope = Scope({}, {}, False)
    return FlexView(
        name=attention.name,
        title=attention_title(attention),
        arguments=tuple(argument_view(attention, tensor) for tensor in attention.tensors),
        mask=mask,
        score=score,
        scale=host_text(scale, scope) if scale is not None and host_scale else None,
        scale_sizes=_sizes(scale) if scale is not None and host_scale else (),
        formulas=tuple(formulas.written),
        operation="\n".join(lay_out(f"_{attention.name} = ", operation)),
    )


def _mod(attention: Attention, kind: str, expr: Expr, scale: Expr | None) -> ModView:
    computed = [expr] if scale is None else [expr, scale]
    align = attention.align
    positioned = align.kind is not AlignKind.START and any(_names_position(part) for part in computed)
    parts = [*computed, align.shift] if positioned and align.kind is AlignKind.AT else computed
    needed = tuple(dict.fromkeys(name for part in parts for name in tables(part)))
    sizes = tuple(dict.fromkeys(size for part in parts for size in _sizes(part)))
    plain = not needed and not sizes and scale is None and (not positioned or align.kind is AlignKind.END)
    if positioned and not plain and align.kind is AlignKind.END:
        sizes = tuple(dict.fromkeys((*sizes, "N", "M")))
    own = {name: _local(name, sizes) for name in needed}
    scope = Scope({tensor.name: tensor for tensor in attention.tensors}, own, positioned)
    bindings = [f"{', '.join(sizes)} = {', '.join(f'size.{size}' for size in sizes)}"] if sizes else []
    bindings += [f"{own[name]} = tables[{quoted(name)}]" for name in needed]
    position: tuple[str, ...] = ()
    if positioned:
        start = "shift" if plain else "(M - N)" if align.kind is AlignKind.END else flex_text(align.shift, scope)
        position = (f"i = q_idx + {start}",)
    factor = () if scale is None else _factor(scale, scope)
    in_scope = sizes_read(attention, *computed)
    return ModView(
        plain=plain,
        shifted=plain and positioned,
        needed=needed,
        sizes=tuple(name.value for name in (SizeName.HEAD_SIZE, SizeName.GROUP) if name in in_scope),
        definition=_definition(attention.name, kind, plain, plain and positioned),
        bindings=tuple(bindings),
        has_scale=scale is not None,
        body=laid_out(comments(expr), position, factor, flex_body(expr, scope).lines),
    )


def _definition(name: str, kind: str, plain: bool, shifted: bool) -> tuple[str, ...]:
    if plain:
        leading = ["score: Tensor"] if kind == "score" else []
        parameters = [*leading, "b: Tensor", "h: Tensor", "q_idx: Tensor", "kv_idx: Tensor"]
        function, result = f"{name}_{kind}_mod", "Tensor"
        parameters += ["*", "shift: int = 0"] if shifted else []
    else:
        parameters = ["size: Sizes", "tables: Mapping[str, Tensor]"]
        parameters += ["scale: float | None"] if kind == "score" else []
        function, result = f"_{name}_make_{kind}_mod", "Callable[..., Tensor]"
    flat = f"def {function}({', '.join(parameters)}) -> {result}:"
    if len(flat) <= LINE:
        return (flat,)
    return f"def {function}(", f"    {', '.join(parameters)}", f") -> {result}:"


def _factor(scale: Expr, scope: Scope) -> tuple[str, ...]:
    *statements, last = flex_body(scale, scope).lines
    return (
        *comments(scale),
        "if scale is None:",
        *(f"    {line}" for line in statements),
        f"    score = score * ({last.removeprefix('return ')})",
        "else:",
        "    score = score * scale",
    )


def _names_position(expr: Expr) -> bool:
    return any(isinstance(node, Index) and node.name is IndexName.QUERY for node in walk(expr))


def _sizes(expr: Expr) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node.name.value for node in walk(expr) if isinstance(node, Size)))


def _local(name: str, sizes: tuple[str, ...]) -> str:
    taken = name in _LOCALS or name in sizes or re.match(r"part_\d", name) is not None
    return f"{name}_" if taken else name


Field = tuple[str, str | Bracket]


def _operation(
    attention: Attention, tiles: TileSets, formulas: Formulas, mask: ModView, score: ModView, host_scale: bool
) -> Bracket:
    name = attention.name
    in_mask = tuple(dict.fromkeys((*tables(attention.mask), *tables(attention.align.shift))))
    bounds = [bound for one in tiles.intervals for bound in (one.start, one.stop, one.tile_test) if bound is not None]
    in_bounds = tuple(dict.fromkeys(table for bound in (*bounds, attention.align.shift) for table in tables(bound)))
    in_score = tuple(dict.fromkeys((*score.needed, *tables(attention.align.shift))))
    shift = formulas.name("shift", attention.align.shift)
    make_mask = f"_{name}_make_mask_mod"
    make_score = f"_{name}_make_score_mod"
    if mask.plain:
        make_mask = (
            f"lambda size, tables: {f'shifted_mask({name}_mask_mod, size)' if mask.shifted else f'{name}_mask_mod'}"
        )
    if score.plain:
        chosen = f"shifted_score({name}_score_mod, size)" if score.shifted else f"{name}_score_mod"
        make_score = f"lambda size, tables, scale: {chosen}"
    if isinstance(attention.score, Score) and not score.has_scale:
        make_score = "None"
    return call(
        "FlexOperation",
        ("name", quoted(name)),
        ("tensors", sequence([tensor_argument(tensor, formulas) for tensor in attention.tensors])),
        ("sets", _sets(attention, tiles, formulas, shift)),
        ("mask_mod", make_mask),
        ("score_mod", make_score),
        ("scale", f"_{name}_scale" if host_scale else "None"),
        ("masked", str(attention.mask != TRUE)),
        ("scales_in_score", str(score.has_scale)),
        ("bound_tables", sequence([quoted(table) for table in in_bounds])),
        ("mask_tables", sequence([quoted(table) for table in in_mask])),
        ("score_tables", sequence([quoted(table) for table in in_score])),
    )


def _sets(attention: Attention, tiles: TileSets, formulas: Formulas, shift: str) -> Bracket:
    ranges = []
    for number, interval in enumerate(tiles.intervals):
        fields: list[Field] = [
            ("start", formulas.name(f"start_{number}", interval.start)),
            ("stop", formulas.name(f"stop_{number}", interval.stop)),
        ]
        if interval.coverage is Coverage.FULL:
            fields.append(("full", "True"))
        elif interval.tile_test is not None:
            fields.append(("test", formulas.name(f"test_{number}", interval.tile_test)))
        ranges.append(call("KeyRange", *fields))
    body = None if tiles.exact else tile_body(attention.mask)
    if body is not None:
        formulas.written.append(FormulaView(f"_{attention.name}_may_hold", "at: Pairs", body.indented()))
    depends = (attention.mask, attention.align.shift) if _names_position(attention.mask) else (attention.mask,)
    return call(
        "BlockSets",
        ("shift", shift),
        ("ranges", sequence(ranges)),
        ("query_tile", str(tiles.query_tile)),
        ("key_tile", str(tiles.key_tile)),
        ("by_batch", str(any(depends_on(expr, IndexName.BATCH) for expr in depends))),
        ("by_head", str(any(depends_on(expr, IndexName.HEAD) for expr in depends))),
        ("may_hold", "None" if body is None else f"_{attention.name}_may_hold"),
        ("period", str(shift_period(attention.mask))),
    )
