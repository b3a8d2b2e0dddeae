"""Which attentions have a form whose cost is linear in the length, and which one.

`(phi(Q) phi(K)^T) V` is `phi(Q) (phi(K)^T V)` where every pair is allowed; under a causal mask the inner product is
carried along the sequence, chunk by chunk (Katharopoulos et al., "Transformers are RNNs", 2020; Yang et al., "Gated
Linear Attention Transformers with Hardware-Efficient Training", 2024). A factor of a pair may stand in either form if
it is a function of the query times one of the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnc.algebra.facts import Facts
from attnc.algebra.separable import Separable, grows, separate, split_score
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Index, IndexName, Size, SizeName
from attnc.ir.program import AlignKind, Attention, Deferred, NormalizeKind
from attnc.ir.show import show
from attnc.ir.types import Type
from attnc.ir.walk import tables, walk
from attnc.plan.kernel_plan import Form, LinearForm

CHUNK = 64
"""Positions that a scan takes together: its own pairs are computed, what lies before is carried."""

ONE = Const(1.0, Type.FLOAT)


def find_linear_form(attention: Attention, facts: Facts) -> LinearForm | str:
    """Return the form of an attention that is linear in its length, or why there is none.

    Args:
        attention: simplified, as it was declared.
        facts: of its mask.

    Raises:
        CompileError: a decay that grows with the distance, or a `decompose chunk` that cannot be had.
    """
    asked = attention.decompose
    found = _find(attention, facts)
    if asked is None or asked.form != "chunk":
        return found if asked is None or isinstance(found, str) else "the `decompose` statement asks for another form"
    if isinstance(found, str):
        raise CompileError(_no_chunks(asked, found))
    if found.form is not Form.CHUNKED:
        raise CompileError(_no_chunks(asked, "every pair is allowed, so that one product serves all queries"))
    return replace(found, chunk=int(asked.number("size")), asked=True)


OVERHEAD = 1.5
"""What a product of a linear form counts in products of pairs: its sums are written out and read again."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a linear form does for one head.

    Attributes:
        products: multiplications with an addition.
        inside: pairs that are formed, inside of chunks.
        states: sums of keys by values that are written and read again.
    """

    products: int
    inside: int
    states: int


def linear_work(form: LinearForm, queries: int, keys: int, features: int, value_size: int) -> Work:
    """Return the work of a linear form; `runtime.linear` decides by the same numbers."""
    inside = queries * min(form.chunk, keys)
    products = (queries + keys) * features * value_size + inside * (features + value_size) // 2
    return Work(products, inside, -(-keys // form.chunk) if form.chunk else 1)


def pair_work(form: LinearForm, queries: int, keys: int, features: int, value_size: int) -> float:
    """Return the work of the pairs of one head."""
    return queries * keys / (2 if form.form is Form.CHUNKED else 1) * (features + value_size)


def lengths_read(weights: Separable, declared: Attention) -> str:
    """Return what the factors of a linear form depend on that is of one call alone: `M`, `N`, `r`, or nothing.

    A table with an element for each key or query has the length of that call as well.
    """
    stated = (weights.query_factor, weights.key_factor, weights.query_exponent, weights.key_exponent, declared.scale)
    parts = [part for part in stated if part is not None]
    read = {name for part in parts for name in tables(part)}
    dims = [dim for one in declared.tensors if one.name in read for dim in one.dims if dim is not None]
    return read_of_one_call((*parts, *dims))


def read_of_one_call(parts: Iterable[Expr]) -> str:
    """Return what expressions read that is of one call alone, `M`, `N` or `r`; nothing where that is none of them."""
    nodes = {node for expr in parts for node in walk(expr)}
    known: tuple[Expr, ...] = (Size(SizeName.KEYS), Size(SizeName.QUERIES), Index(IndexName.ROW))
    return next((show(node) for node in known if node in nodes), "")


def _find(attention: Attention, facts: Facts) -> LinearForm | str:
    if attention.normalize.kind not in (NormalizeKind.ROWS, NormalizeKind.NONE):
        return f"`normalize {attention.normalize.kind.value}` needs the score of each pair"
    causal = facts.exactly_causal is True
    if not causal and not facts.always:
        return "the mask is neither all pairs nor exactly causal"
    if causal and attention.shorten is not None:
        return "a shortened key covers several positions, which a scan over queries does not"
    if causal and attention.align.kind is AlignKind.AT:
        return "`align at` places each sequence by itself"
    factor = split_score(attention.score)
    if factor is None:
        return "the score is more than the inner product times a factor"
    weights = separate(_product(attention.weight, factor), causal=causal)
    if weights is None:
        return "the weight is not a function of the query times a function of the key"
    if causal and weights.decay is not None and grows(weights.decay):
        raise CompileError(_growing(attention))
    return LinearForm(Form.CHUNKED if causal else Form.LINEAR, weights, CHUNK if causal else 0)


def _product(weight: Expr | None, factor: Expr) -> Expr | None:
    if factor == ONE:
        return weight
    return factor if weight is None else Binary(BinaryOp.MUL, weight, factor, Type.FLOAT)


def _growing(attention: Attention) -> Diagnostic:
    weight = attention.weight if attention.weight is not None else attention.score
    return Diagnostic(
        "decay-grows",
        f"the weight of `{attention.name}` grows with the distance of a key",
        () if weight.span is None else (Label(weight.span, "a decay above 1"),),
        "a decay lies between 0 and 1, as in `0.9 ** (i - j)` or `exp(-a * (i - j))`",
    )


def _no_chunks(asked: Deferred, reason: str) -> Diagnostic:
    return Diagnostic(
        "decompose-does-not-fit",
        f"`chunk` does not fit this attention: {reason}",
        () if asked.span is None else (Label(asked.span),),
        "remove the statement; the exact quadratic form computes any mask and any score",
    )
