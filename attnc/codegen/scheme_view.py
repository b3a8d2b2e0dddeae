"""A bilinear scheme as a fused Triton kernel: which products share a loop, and the text of every sum.

A program computes one tile of every block of the result. A scheme of few products accumulates all of them in registers
in one walk along the inner dimension, which reads each tile of both factors once a step, forms the sums from those,
and adds the products up at the end. A larger scheme keeps a tile of each block of the result in registers instead, and
walks once for each product, reading what that product needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from attnc.algebra.bilinear.scheme import Row, Scheme
from attnc.codegen.scheme_text import source_lines

ONE_WALK = 8
"""The most products that one walk accumulates; two at once beside a result of nine blocks spill on sm_90."""

WIDTH = 100
"""Longest line."""

_WIDE = ".to(tl.float32)"
_FACTOR = ".to(a_ptr.dtype.element_ty)"


@dataclass(frozen=True, slots=True)
class ProductText:
    """A product: the name of its sum, and the lines of one step."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupText:
    """Products that walk the inner dimension together.

    Attributes:
        inner: blocks along the inner dimension that they read.
        lefts: row and column of the blocks of `a` that they read; likewise `rights` of `b`.
        updates: what becomes of the products afterwards.
    """

    products: tuple[ProductText, ...]
    inner: tuple[int, ...]
    lefts: tuple[tuple[int, int], ...]
    rights: tuple[tuple[int, int], ...]
    updates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OutText:
    """A tile of a block of the result."""

    name: str
    i: int
    j: int


@dataclass(frozen=True, slots=True)
class SchemeKernelView:
    """What the template lays out."""

    function: str
    comments: tuple[str, ...]
    m: int
    k: int
    n: int
    groups: tuple[GroupText, ...]
    outs: tuple[OutText, ...]


def scheme_kernel_view(scheme: Scheme, function: str) -> SchemeKernelView:
    """Write every part of the fused kernel of one level of a scheme."""
    size = scheme.rank if scheme.rank <= ONE_WALK else 1
    outs = tuple(OutText(f"c_{i}{j}", i, j) for i in range(scheme.m) for j in range(scheme.n))
    starts = range(0, scheme.rank, size)
    groups = tuple(_group(scheme, range(start, start + size), outs) for start in starts)
    return SchemeKernelView(function, source_lines(scheme), scheme.m, scheme.k, scheme.n, groups, outs)


def _group(scheme: Scheme, products: Sequence[int], outs: Sequence[OutText]) -> GroupText:
    lefts = _places((scheme.left[r] for r in products), scheme.k)
    rights = _places((scheme.right[r] for r in products), scheme.n)
    texts = tuple(_product(scheme, r) for r in products)
    updates = []
    for out, row in zip(outs, scheme.out, strict=True):
        terms = [(f"product_{r}", row[r]) for r in products if row[r]]
        if not terms:
            continue
        operator = "=" if len(products) == scheme.rank else "+="
        updates += _assignment(out.name, operator, _terms(terms))
    inner = tuple(sorted({t for _, t in lefts} | {t for t, _ in rights}))
    return GroupText(texts, inner, lefts, rights, tuple(updates))


def _places(forms: Iterable[Row], width: int) -> tuple[tuple[int, int], ...]:
    found = {place for form in forms for place, entry in enumerate(form) if entry}
    return tuple(divmod(place, width) for place in sorted(found))


def _product(scheme: Scheme, r: int) -> ProductText:
    lines = []
    operands = []
    for side, short, form, width in (
        ("left", "a", scheme.left[r], scheme.k),
        ("right", "b", scheme.right[r], scheme.n),
    ):
        named = [(f"{short}_{place // width}{place % width}", entry) for place, entry in enumerate(form) if entry]
        if len(named) == 1 and named[0][1] == 1:
            operands.append(named[0][0])
            continue
        terms = _terms([(f"{name}{_WIDE}", entry) for name, entry in named])
        lines += _assignment(f"{side}_{r}", "=", terms, _FACTOR)
        operands.append(f"{side}_{r}")
    name = f"product_{r}"
    lines.append(f"{name} = tl.dot({operands[0]}, {operands[1]}, {name}, input_precision=PRECISION)")
    return ProductText(name, tuple(lines))


def _terms(terms: Iterable[tuple[str, Fraction]]) -> list[str]:
    """Return the terms of a sum with their signs, one that is added first."""
    ordered = sorted(terms, key=lambda term: term[1] < 0)
    texts = []
    for position, (name, entry) in enumerate(ordered):
        factor = "" if abs(entry) == 1 else f"{_number(abs(entry))} * "
        sign = "-" if entry < 0 else "" if position == 0 else "+"
        texts.append(f"{sign}{' ' if position and sign else ''}{factor}{name}")
    return texts


def _number(entry: Fraction) -> str:
    return str(float(entry)) if entry.denominator == 1 else f"({entry.numerator} / {entry.denominator})"


def _assignment(name: str, operator: str, terms: list[str], conversion: str = "") -> list[str]:
    """Return `name = sum`, over several lines where it is long."""
    text = " ".join(terms)
    text = f"({text}){conversion}" if conversion else text
    line = f"{name} {operator} {text}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{name} {operator} (", *(f"    {term}" for term in terms), f"){conversion}"]
