"""`attnc.from_flex`: the text of the pattern that a `mask_mod` and a `score_mod` mean."""

from __future__ import annotations

import inspect
import keyword
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from attnc.diagnostics import CompileError, Diagnostic
from attnc.flex.captures import captured_tensors
from attnc.flex.declare import Known, Wrapping, declare, nodes
from attnc.flex.errors import NotTraceableError, as_compile_error
from attnc.flex.forms import conjunction, constant, convert, opposite
from attnc.flex.numbers import Variable, changed, name_numbers, variables
from attnc.flex.sharing import intern, score_lines, share
from attnc.flex.trace import Tables, Traced, scalar_expression, trace
from attnc.ir.nodes import (
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Const,
    Expr,
    Function,
    Quantifier,
    Score,
    SizeName,
    Where,
)
from attnc.ir.program import Tensor as Declaration
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import children, with_children

Mod = Callable[..., Any]

_WORDS = """
use def attention layer input learned let mask score scale weight normalize feature prepare keys decompose align assert
sorted and or not if else true false inf pi query key value return_lse precision device dropout_p seed state
return_state rows self where clamp int float bool softcap any all sum first last s t b h i j r d B H N M D K g
"""
_RESERVED = frozenset(_WORDS.split()) | {function.value for function in Function}
"""Names that no input or attention may have, and names that the text means something else by."""


class FlexPattern(str):
    """The text of a pattern, with what its traced functions had captured.

    Attributes:
        inputs: the captured tensors by the name of the input that they became. They are what the compiled function
            takes: `attnc.loads(text).traced(query, key, value, **text.inputs)`.
    """

    inputs: dict[str, Tensor]

    __slots__ = ("inputs",)

    def __new__(cls, text: str, inputs: Mapping[str, Tensor]) -> FlexPattern:
        """Make one."""
        pattern = super().__new__(cls, text)
        pattern.inputs = dict(inputs)
        return pattern


def from_flex(
    mask_mod: Mod | BlockMask | None = None,
    score_mod: Mod | None = None,
    *,
    name: str = "traced",
    B: int | None = None,  # noqa: N803
    H: int | None = None,  # noqa: N803
    N: int | None = None,  # noqa: N803
    M: int | None = None,  # noqa: N803
) -> FlexPattern:
    """Return a pattern that means what FlexAttention's functions mean.

    The functions are called with positions and a score that hold no value but remember what is done with them. Python
    numbers that they close over become constants; one in a closure that stands as it is, or negated, wherever it
    matters becomes a parameter of its name. Captured tensors become inputs, named after the variable or attribute that
    holds them; those that require a gradient too (inputs of floats receive gradients). What is computed
    from captured tensors alone is computed now. Query rows count from the first key on, as FlexAttention's do: `align
    start`. A score that is minus infinity under a condition becomes a mask.

    Lengths of the inputs' dimensions follow from how they are indexed: by `b`, `h`, `q_idx` or `kv_idx`, they are `B`,
    `H`, `N` or `M`; by both positions, `max(N, M)`; by `q_idx // c`, `(N + c - 1) // c`; anything else keeps the length
    that the captured tensor has. Where the sizes of the call are given, a dimension of another length keeps its own.
    An index that may be negative counts from the end, as in torch.

    Integers are taken not to overflow 32 bits (narrower ones wrap around), and floats are computed in float32 at least
    whatever they are cast to.

    Args:
        mask_mod: `(b, h, q_idx, kv_idx) -> bool`, or a `BlockMask`, whose lengths are then known; None: every pair.
        score_mod: `(score, b, h, q_idx, kv_idx) -> score`; None: the score as it is.
        name: of the attention.
        B: batch size of the calls that the captured tensors are for, if it is known.
        H: query heads of these calls.
        N: queries of these calls.
        M: keys of these calls.

    Returns:
        A string with the attribute `inputs`.

    Raises:
        CompileError: what a function does has no form in the language; the message says what, where and why.
    """
    lengths = {
        size: length for size, length in zip((SizeName.BATCH, SizeName.HEADS, SizeName.QUERIES, SizeName.KEYS),
        (B, H, N, M), strict=True) if length is not None
    }  # fmt: skip
    if isinstance(mask_mod, BlockMask):
        lengths = {**dict(zip((SizeName.QUERIES, SizeName.KEYS), mask_mod.seq_lengths, strict=True)), **lengths}
        mask_mod = mask_mod.mask_mod
    _check_name(name)
    naming = _Naming({name})
    tables = Tables(captured_tensors(mask_mod, score_mod), naming.take)
    functions = (mask_mod, score_mod)
    traced = _traced(functions, tables)

    def again(variable: Variable, number: int | float) -> tuple[Expr, Expr]:
        others = tuple(changed(function, variable.cell, number) for function in functions)
        met = Tables(tables.known, _Naming({name}).take)
        other = _traced(others, met)
        if not all(one.equal(two) for one, two in zip(tables.used.values(), met.used.values(), strict=True)):
            raise ValueError("a table was computed from the number")
        return other

    (mask, score), numbers = name_numbers(traced, variables(*functions), again, naming.take_number)
    score, hidden = _without_infinity(score)
    try:
        text = _write(name, conjunction(mask, *hidden), score, tables, naming, Known(lengths, numbers), functions)
    except NotTraceableError as error:
        raise as_compile_error(error, _call_it(score_mod or mask_mod, "pattern of")) from None
    return FlexPattern(text, tables.used)


def _traced(functions: tuple[Mod | None, Mod | None], tables: Tables) -> tuple[Expr, Expr]:
    mask_mod, score_mod = functions
    mask = TRUE if mask_mod is None else _traced_mask(mask_mod, tables)
    return mask, Score() if score_mod is None else _traced_score(score_mod, tables)


def _traced_mask(function: Mod, tables: Tables) -> Expr:
    what = _call_it(function, "mask_mod")
    _check_arguments(function, 4, what, "mask_mod(b, h, q_idx, kv_idx)")
    try:
        expr, dtype = scalar_expression(trace(function, tables))
        if dtype is not torch.bool:
            raise NotTraceableError(
                "flex-not-a-mask",
                f"it returns {str(dtype).removeprefix('torch.')}, and a mask is a bool",
                "compare it, for example `!= 0`; a function of the score is a score_mod",
            )
    except CompileError:
        raise
    except Exception as error:
        raise as_compile_error(error, what) from error
    return expr


def _traced_score(function: Mod, tables: Tables) -> Expr:
    what = _call_it(function, "score_mod")
    _check_arguments(function, 5, what, "score_mod(score, b, h, q_idx, kv_idx)")
    try:
        expr, _ = scalar_expression(trace(function, tables, Traced(Score(), (), torch.float32)))
    except CompileError:
        raise
    except Exception as error:
        raise as_compile_error(error, what) from error
    return convert(expr, Type.FLOAT)


def _check_arguments(function: Mod, wanted: int, what: str, form: str) -> None:
    if not callable(function):
        raise CompileError(
            Diagnostic("flex-not-a-function", f"{what} is not a function but {type(function).__name__}", (), form)
        )
    try:
        inspect.signature(function).bind(*range(wanted))
    except TypeError:
        raise CompileError(
            Diagnostic(
                "flex-wrong-arguments",
                f"{what} does not take {wanted} arguments",
                (),
                f"FlexAttention calls it as {form}; were mask_mod and score_mod mixed up?",
            )
        ) from None
    except ValueError:  # a builtin without a signature
        return


def _call_it(function: Mod | None, kind: str) -> str:
    own = getattr(function, "__name__", None) or type(function).__name__
    return f"the {kind} `{own}`"


def _check_name(name: str) -> None:
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name in _RESERVED:
        raise CompileError(
            Diagnostic("flex-unusable-name", f"{name!r} cannot be the name of an attention", (), "choose another name")
        )


@dataclass(slots=True)
class _Naming:
    """Hands out names that the text may declare, each once."""

    taken: set[str] = field(default_factory=set)

    def take(self, hint: str) -> str:
        """Return a name for a tensor, as close to `hint` as possible."""
        return self._free(hint, "table")

    def take_number(self, hint: str) -> str:
        """Return a name for a number."""
        return self._free(hint, "value")

    def _free(self, hint: str, kind: str) -> str:
        plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in hint).strip("_")
        plain = f"{kind}_{plain}" if not plain or plain[0].isdigit() else plain
        if plain in _RESERVED or keyword.iskeyword(plain):
            plain += f"_{kind}"
        name, number = plain, 1
        while name in self.taken:
            number += 1
            name = f"{plain}_{number}"
        self.taken.add(name)
        return name


def _without_infinity(score: Expr) -> tuple[Expr, list[Expr]]:
    """Turn conditions under which the score is minus infinity into masks: the weight is 0 either way."""
    masks: list[Expr] = []
    while True:
        match score:
            case Where(condition=condition, then=then, otherwise=Const(value=value)) if value == -math.inf:
                kept, left = condition, then
            case Where(condition=condition, then=Const(value=value), otherwise=otherwise) if value == -math.inf:
                kept, left = opposite(condition), otherwise
            case Binary(op=BinaryOp.ADD, left=first, right=Where(condition=condition, then=Const(value=zero),
                        otherwise=Const(value=value))) if value == -math.inf and zero == 0:  # fmt: skip
                kept, left = condition, first
            case _:
                return score, masks
        if any(isinstance(node, Score) for node in nodes(kept)):
            return score, masks
        masks.append(kept)
        score = left


def _write(
    name: str,
    mask: Expr,
    score: Expr,
    tables: Tables,
    naming: _Naming,
    known: Known,
    functions: tuple[Mod | None, Mod | None],
) -> str:
    declarations = declare(tables.used, (mask, score), known)
    wrapping = Wrapping({one.name: one for one in declarations}, tables.used, known.numbers)
    parts: dict[object, Expr] = {}
    bound = _Bounds(naming)
    mask, score = (intern(bound.rename(wrapping.rewrite(expr)), parts) for expr in (mask, score))
    masks = list(mask.operands) if isinstance(mask, And) else [] if mask == TRUE else [mask]
    scores = [] if isinstance(score, Score) else score_lines(score)
    lets, written = share([*masks, *scores], naming.take)
    lines = [f"# {_title(functions)}", f"attention {name}{_parameters(known)} {{"]
    lines += [f"    {_input(one, tables)}" for one in declarations]
    lines.append("    align start")
    lines += [f"    let {part} = {show(expr)}" for part, expr in lets]
    lines += [f"    mask {show(expr)}" for expr in written[: len(masks)]]
    lines += [f"    score {show(expr)}" for expr in written[len(masks) :]]
    return "\n".join([*lines, "}", ""])


def _parameters(known: Known) -> str:
    constants = {name: constant(value) for name, value in known.numbers.items()}
    given = [f"{name}: {value.type.value} = {show(value)}" for name, value in constants.items()]
    return f"({', '.join(given)})" if given else ""


def _title(functions: tuple[Mod | None, Mod | None]) -> str:
    names = [
        _call_it(function, kind).replace("\n", " ")
        for function, kind in zip(functions, ("mask_mod", "score_mod"), strict=True)
        if function is not None
    ]
    return f"Traced from {' and '.join(names)} of FlexAttention." if names else "Attention without a mask."


def _input(declaration: Declaration, tables: Tables) -> str:
    dims = ", ".join("?" if dim is None else show(dim) for dim in declaration.dims)
    tensor = tables.used[declaration.name]
    shape = f" of shape {tuple(tensor.shape)}" if declaration.dims else ""
    dtype = str(tensor.dtype).removeprefix("torch.")
    hint = tables.hint(tensor)
    known = any(tensor is found for _, found in tables.known)
    origin = f"the captured `{hint}`" if known else f"computed from `{hint}`" if hint else "a captured tensor"
    text = f"input {declaration.name}: {declaration.type.value}" + (f"[{dims}]" if dims else "")
    return f"{text}  # {origin}: {dtype}{shape}"


@dataclass(slots=True)
class _Bounds:
    """Gives the variables of quantifiers names in the order of their appearance."""

    naming: _Naming
    names: dict[str, str] = field(default_factory=dict)

    def rename(self, expr: Expr) -> Expr:
        done: dict[int, Expr] = {}

        def go(node: Expr) -> Expr:
            found = done.get(id(node))
            if found is not None:
                return found
            if isinstance(node, Quantifier) and node.variable not in self.names:
                self.names[node.variable] = self.naming.take("n")
            found = with_children(node, tuple(go(child) for child in children(node)))
            if isinstance(found, Quantifier):
                found = Quantifier(found.kind, self.names[found.variable], found.count, found.body, found.type)
            elif isinstance(found, Bound) and found.name in self.names:
                found = Bound(self.names[found.name])
            done[id(node)] = found
            return found

        return go(expr)
