"""The number of allowed pairs as a formula in the length, `N = M`.

Where a mask does not look at `N` or `M`, what each position adds is linear in each residue class of a period, from
some length on (`layers.py`), so the number of pairs is a quasi-polynomial there. Two periods of layers give it, a third
confirms it, and going back from there finds the least length from which it holds. Other affine masks are counted at
lengths of one residue class, and the formula is confirmed at further ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import islpy as isl

from attnc.algebra.domains import new_translator
from attnc.algebra.index_sets import OutOfBudgetError, allowance, budget, new_context
from attnc.algebra.layers import MOST_LAYERS, Layers, Shape, guessed_shape, shape_of
from attnc.algebra.quasi_polynomials import FEW_CLASSES, Quadratic, QuasiPolynomial, at, through, write
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Expr, IndexName, Size, SizeName
from attnc.ir.program import AlignKind, Attention
from attnc.ir.walk import depends_on, tables, walk

LONGEST = 2**31
"""Beyond every length."""

LONGEST_CHECK = 5_000
"""A formula made of layers is also held against a count of all pairs, at a fresh length up to this."""

MOST_STEPS_BACK = 200
"""Counts that look for the least length of a formula that was fitted to counts."""

SET_OPERATIONS = 300_000
"""isl operations that writing the sets may take."""

COUNT_OPERATIONS = 600_000
"""isl operations that counting may take: half a second or so at worst."""

TOO_MANY_STEPS = "finding it takes too many steps"
"""The reason that says nothing of the mask: there may be a formula."""


@dataclass(frozen=True, slots=True)
class PairsFormula:
    """The allowed pairs of one head as a function of `N = M`, the mean over heads where they differ.

    Attributes:
        quasi: exact for every `N >= least`, in the residue classes that are known.
        least: from this length on; where `derived`, the formula is wrong for the length before.
        derived: whether it follows from the mask for all those lengths; otherwise it was fitted to exact counts and
            confirmed at further lengths.
        text: `(N^2 + N) / 2`; about the residue class of the length that was asked for where all would be long.
        code: the text as a Python expression in `N`; a `Fraction` of it is exact.
        where: what `q` and `s` in the text are, or empty.
        period: `N` modulo this decides which polynomial it is.
        residue: of `N`, where text and code are about one class alone.
    """

    quasi: QuasiPolynomial
    least: int
    derived: bool
    text: str
    code: str
    where: str
    period: int
    residue: int | None

    def holds_at(self, length: int) -> bool:
        """Tell whether the text is about a length."""
        return length >= self.least and (self.residue is None or length % self.period == self.residue)

    def statement(self) -> str:
        """Return the formula, what its variables are, and for which lengths it holds."""
        with_where = f"{self.text} with {self.where}" if self.where else self.text
        return f"{with_where}, {self.range_text()}"

    def range_text(self) -> str:
        """Say for which lengths the text holds: `for N >= 1028`."""
        bound = "for every N" if self.least <= 1 else f"for N >= {self.least:,}".replace(",", "")
        return bound if self.residue is None else f"{bound} with N % {self.period} == {self.residue}"


@dataclass(frozen=True, slots=True)
class NoFormula:
    """Why there is none."""

    reason: str


def pairs_formula(
    attention: Attention, length: int, heads: int = 8, *, group: int = 1, head_size: int = 64
) -> PairsFormula | NoFormula:
    """Find the number of allowed pairs as a formula in `N = M`.

    Args:
        attention: whose mask and alignment count.
        length: that the reader has in mind; it chooses the residue class where all would be long to write.
        heads: H.
        group: query heads per key head.
        head_size: D.
    """
    if tables(attention.mask) or tables(attention.align.shift):
        return NoFormula("the data of a call decides how many pairs are allowed")
    sizes = {
        SizeName.HEADS: heads,
        SizeName.GROUP: group,
        SizeName.HEAD_SIZE: head_size,
        SizeName.BATCH: 1,
    }
    context = new_context()
    try:
        with allowance(context):
            with budget(context, SET_OPERATIONS):
                sets = _sets_of_heads(attention, context, sizes)
            if sets is None:
                return NoFormula("the mask is not affine, and its pairs have no such formula")
            return _formula(sets, length)
    except OutOfBudgetError:
        return NoFormula(TOO_MANY_STEPS)


def _formula(sets: list[isl.Set], length: int) -> PairsFormula | NoFormula:
    context = sets[0].get_ctx()
    with budget(context, SET_OPERATIONS):
        shapes = [None if _involves_length(pairs) else shape_of(pairs) for pairs in sets]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        with budget(context, COUNT_OPERATIONS):
            return _by_counts(Layers(sets), guessed_shape(sets), length, derived=False)
    shape = reduce(Shape.joined, known)
    if shape.start + 4 * shape.period > LONGEST:
        return NoFormula("it would hold for no length that a call can have")
    if 3 * shape.period * len(sets) <= MOST_LAYERS:
        with contextlib.suppress(OutOfBudgetError), budget(context, COUNT_OPERATIONS):
            return _by_layers(Layers(sets), shape, length)
    with budget(context, 2 * COUNT_OPERATIONS):
        return _by_counts(Layers(sets), shape, length, derived=True)


def _by_layers(layers: Layers, shape: Shape, length: int) -> PairsFormula | NoFormula:
    """Sum three periods of layers: two give the formula of every residue class, the third confirms it."""
    period, start = shape.period, shape.start
    totals = [layers.before(shape)]
    for number in range(start, start + 3 * period):
        totals.append(totals[-1] + layers.at(number))
    forms = []
    for residue in range(period):
        first = (residue - start) % period
        lengths = range(first, first + 3 * period, period)
        forms.append(through([(start + one, totals[one]) for one in lengths]))
    quasi = QuasiPolynomial(tuple(forms))
    agrees = all(quasi.at(start + past) == total for past, total in enumerate(totals))
    if not agrees or not _agrees(layers, quasi, start + 3 * period + 1):
        return NoFormula("no formula agrees with the counts")
    least, total = start, totals[0]
    with contextlib.suppress(OutOfBudgetError):
        while least > 1 and quasi.at(least - 1) == total - layers.at(least - 1):
            least, total = least - 1, total - layers.at(least - 1)
    return _written(quasi, layers, least, length, derived=True)


def _agrees(layers: Layers, quasi: QuasiPolynomial, length: int) -> bool:
    """Hold a formula made of layers against a count of all pairs, where that is not too much work."""
    if length > LONGEST_CHECK:
        return True
    with contextlib.suppress(OutOfBudgetError), budget(layers.sets[0].get_ctx(), COUNT_OPERATIONS):
        return quasi.at(length) == layers.up_to(length)
    return True


def _by_counts(layers: Layers, shape: Shape, length: int, *, derived: bool) -> PairsFormula | NoFormula:
    """Fit the residue class of a length to counts, or few classes, and confirm them at further lengths."""
    period = shape.period
    block = period if derived else 0
    residues = range(period) if period <= FEW_CLASSES else (length % period,)
    forms: list[Quadratic | None] = [None] * period
    least = 1
    for residue in residues:
        first = shape.start + (residue - shape.start) % period
        counts = [(one, layers.up_to(one, block)) for one in range(first, first + 3 * period, period)]
        form = through(counts)
        further = [first + steps * period for steps in ((3,) if derived else (3, 4, 5 + 3 * first // period))]
        if any(at(form, one) != layers.up_to(one, block) for one in further):
            return NoFormula("no formula agrees with the counts")
        forms[residue] = form
        reached = _least_in_class(layers, form, first, period, block)
        least = max(least, reached if len(residues) == 1 else reached - period + 1)
    return _written(QuasiPolynomial(tuple(forms)), layers, least, length, derived=derived)


def _least_in_class(layers: Layers, form: Quadratic, first: int, period: int, block: int) -> int:
    """Go back length by length while the formula holds; return the last that was reached, or 1 for all."""
    least = first
    for _ in range(MOST_STEPS_BACK):
        if least - period < 1:
            return 1
        if at(form, least - period) != layers.up_to(least - period, block):
            break
        least -= period
    return least


def _written(
    quasi: QuasiPolynomial, layers: Layers, least: int, length: int, *, derived: bool
) -> PairsFormula | NoFormula:
    heads = len(layers.sets)
    mean = QuasiPolynomial(
        tuple(None if form is None else (form[0] / heads, form[1] / heads, form[2] / heads) for form in quasi.forms)
    ).reduced()
    written = write(mean, length, whole=heads == 1)
    if written is None:
        return NoFormula("no formula is known for lengths like this one")
    return PairsFormula(mean, least, derived, written.text, written.code, written.where, mean.period, written.residue)


def _sets_of_heads(attention: Attention, context: isl.Context, sizes: Mapping[SizeName, int]) -> list[isl.Set] | None:
    """Return the pairs `[r, j]` of each head that differs, with the parameter `N` alone; None where sets cannot."""
    differ = depends_on(attention.mask, IndexName.HEAD) or depends_on(attention.align.shift, IndexName.HEAD)
    found = []
    translator = new_translator(attention, context)
    truth = translator.truth(attention.mask)
    ends = attention.align.kind is AlignKind.END  # N is written `M - shift` then, and N = M
    shift = translator.constant(0) if ends else translator.number(attention.align.shift)
    if not truth.exact or shift is None:
        return None
    pairs = truth.must.intersect(shift.eq_set(translator.parameter("shift")))
    for head in range(sizes[SizeName.HEADS]) if differ else range(1):
        env = Environment({IndexName.HEAD: head, IndexName.BATCH: 0}, sizes)
        values = {"h": head, "b": 0, **{name.value: size for name, size in sizes.items()}}
        for name, expr in translator.opaques.items():
            if not _on_lengths(expr):
                values[name] = int(evaluate(expr, env))
        one = _square_only(pairs, values)
        if one is None:
            return None
        found.append(one)
    return found


def _on_lengths(expr: Expr) -> bool:
    lengths = (SizeName.QUERIES, SizeName.KEYS)
    return any((isinstance(node, Size) and node.name in lengths) for node in walk(expr)) or depends_on(
        expr, IndexName.SHIFT
    )


def _square_only(pairs: isl.Set, values: Mapping[str, int]) -> isl.Set | None:
    """Give parameters their values, let `N = M`, and count queries by their rows."""
    context = pairs.get_ctx()
    for name, value in values.items():
        position = pairs.find_dim_by_name(isl.dim_type.param, name)
        if position >= 0:
            pairs = pairs.fix_val(isl.dim_type.param, position, isl.Val.int_from_si(context, value))
            pairs = pairs.project_out(isl.dim_type.param, position, 1)
    rows = isl.Map.read_from_str(context, "[shift] -> { [i, j] -> [i - shift, j] }")
    pairs = pairs.apply(rows).intersect(isl.Set.read_from_str(context, "[N, M] -> { [i, j] : N = M and N >= 1 }"))
    for name in ("shift", "M"):
        position = pairs.find_dim_by_name(isl.dim_type.param, name)
        pairs = pairs.project_out(isl.dim_type.param, position, 1) if position >= 0 else pairs
    square = isl.Set.read_from_str(context, "[N] -> { [i, j] : N >= 1 and 0 <= i < N and 0 <= j < N }")
    pairs = pairs.gist(square).coalesce()
    for position in reversed(range(pairs.dim(isl.dim_type.param))):
        used = pairs.involves_dims(isl.dim_type.param, position, 1)
        if used and pairs.get_dim_name(isl.dim_type.param, position) != "N":
            return None
        pairs = pairs if used else pairs.project_out(isl.dim_type.param, position, 1)
    return pairs.set_dim_name(isl.dim_type.set, 0, "i").set_dim_name(isl.dim_type.set, 1, "j")


def _involves_length(pairs: isl.Set) -> bool:
    return bool(pairs.dim(isl.dim_type.param))
