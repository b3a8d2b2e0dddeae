"""How the masks of two attentions relate, over every size, head, pair and input: one inside the other, equal, disjoint.

Inclusion is decided on integer sets: `left` lies inside `right` if no pair is in `left` and not in `right`. Pairs are
matched by batch entry, head, row of the query tensor and key; where both masks count positions alike, that is by
`i` and `j`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import islpy as isl

from attnc.algebra.affine import Translator
from attnc.algebra.counterexamples import least_point
from attnc.algebra.domains import proof_domain, whole_domain
from attnc.algebra.index_sets import attempt, new_context
from attnc.algebra.simplify import simplify_attention, simplify_expression
from attnc.algebra.stand_ins import StandIns
from attnc.algebra.truths import Truth
from attnc.algebra.witnesses import Cells, Claim, Sides, Situation, Witness, confirm, search
from attnc.ir.arithmetic import Value
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import Binary, BinaryOp, Cast, Expr, Index, IndexName, Read, SizeName
from attnc.ir.program import AlignKind, Attention, Tensor
from attnc.ir.types import Type
from attnc.ir.walk import children, tables, transform

COMPARE_OPERATIONS = 1_000_000
"""isl operations that one question of a comparison may take."""

MOST_PIECES = 200
"""Pieces that a mask may have: more than where kernels are derived, since it is looked at once."""

ONLY_LEFT: Claim = (True, False)
ONLY_RIGHT: Claim = (False, True)
BOTH: Claim = (True, True)
CLAIMS = (ONLY_LEFT, ONLY_RIGHT, BOTH)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether there is a pair of one kind: there is none (proven), there is this one, or it is not known why not."""

    none: bool | None
    witness: Witness | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two masks relate.

    Attributes:
        only_left: pairs that the left mask alone allows.
        only_right: pairs that the right mask alone allows.
        both: pairs that both allow.
        by_row: whether pairs are matched by row, because the alignments differ or read data.
        not_longer: whether the answer is for `N <= M` (one side aligns at the end).
        shared: tables that both masks read, taken to be the same ones.
        apart: names that the two declare differently, so that the tables have nothing to do with each other.
        reasons: why something is undecided.
    """

    only_left: Finding
    only_right: Finding
    both: Finding
    by_row: bool
    not_longer: bool
    shared: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def relation(self) -> str:
        """`equal`, `inside` (left in right), `contains`, `disjoint`, `overlapping` or `undecided`."""
        inside, contains, disjoint = self.only_left.none, self.only_right.none, self.both.none
        if inside and contains:
            return "equal"
        if inside and contains is False:
            return "inside"
        if contains and inside is False:
            return "contains"
        if disjoint:
            return "disjoint"
        return "overlapping" if inside is contains is disjoint is False else "undecided"


def compare_masks(left: Attention, right: Attention) -> Comparison:
    """Decide what can be decided; exact for affine masks within the operation budget.

    Over all `B, H, g, D, N, M >= 1`, with `N <= M` if either side aligns at the end, and over all inputs, those that
    both sides declare alike being the same.
    """
    sides, apart = _on_common_tables(simplify_attention(left)[0], simplify_attention(right)[0])
    question = _Question(sides)
    findings = question.findings()
    reasons = question.reasons() if any(one.none is None for one in findings.values()) else ()
    return Comparison(
        findings[ONLY_LEFT],
        findings[ONLY_RIGHT],
        findings[BOTH],
        question.by_row,
        question.ends,
        _shared(sides),
        apart,
        reasons,
    )


class _Question:
    """Both masks in one space, with stand-ins for what sets cannot express."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        kinds = {sides.left.align.kind, sides.right.align.kind}
        self.ends = AlignKind.END in kinds
        self.by_row = len(kinds) > 1 or AlignKind.AT in kinds
        kind = AlignKind.START if self.by_row else sides.left.align.kind
        self.translator = Translator(new_context(), kind, most_pieces=MOST_PIECES)
        self.stand_ins = StandIns(self.translator, sides.tensors)
        self.truths: tuple[Truth, Truth] | None = None
        self.domain: isl.Set | None = None
        self.exhausted = False

    def findings(self) -> dict[Claim, Finding]:
        """Answer each claim by sets, and what they leave open by trying."""
        masks = self._masks()
        written = self._attempt(lambda: tuple(self.stand_ins.replace_in(mask) for mask in masks)) or masks
        self.truths = self._attempt(lambda: (self.translator.truth(written[0]), self.translator.truth(written[1])))
        self.domain = self._attempt(self._whole)
        alike = (ONLY_LEFT, ONLY_RIGHT) if written[0] == written[1] else ()
        found = {claim: Finding(True) if claim in alike else self._finding(claim) for claim in CLAIMS}
        missing = frozenset(claim for claim, finding in found.items() if finding.none is None)
        if missing:
            found |= {claim: Finding(False, witness) for claim, witness in search(self.sides, missing).items()}
        return found

    def reasons(self) -> tuple[str, ...]:
        """Say why something is undecided."""
        pieces = any(reason.startswith("too many pieces") for reason in self.translator.reasons)
        steps = "the proof takes too many steps" if self.exhausted or pieces else ""
        values = (
            "it depends on numbers that are not affine, such as products of sizes" if self.translator.opaques else ""
        )
        found = [*self.stand_ins.reasons(), *([steps] if steps else [])]
        return tuple(dict.fromkeys(found)) or (values,)

    def _masks(self) -> tuple[Expr, Expr]:
        left, right = self.sides.left, self.sides.right
        if not self.by_row:
            return left.mask, right.mask
        return _in_rows(left), _in_rows(right)

    def _whole(self) -> isl.Set:
        t = self.translator
        if not self.by_row:
            return proof_domain(t, self.sides.left.align.shift)
        domain = whole_domain(t)
        if not self.ends:
            return domain
        return domain.intersect(t.size(SizeName.QUERIES).le_set(t.size(SizeName.KEYS)))

    def _finding(self, claim: Claim) -> Finding:
        if self.truths is None or self.domain is None:
            return Finding(None)
        if self._attempt(lambda: self._impossible(claim)):
            return Finding(True)
        possible = self._attempt(lambda: self._possible(claim))
        if possible is None:
            return Finding(None)
        found = self._refuted(claim, possible)
        if found.none is not None or not self.stand_ins.known:
            return found
        tied = self._attempt(lambda: self._tied(possible))
        if tied is None:
            return Finding(None)
        return Finding(True) if self._attempt(lambda: bool(tied.is_empty())) else self._refuted(claim, tied)

    def _impossible(self, claim: Claim) -> bool:
        """Tell whether one mask has nothing outside of the other, or nothing in it, without making the difference."""
        assert self.truths is not None
        assert self.domain is not None
        left, right = self.truths
        if claim == ONLY_LEFT:
            return bool(left.may.intersect(self.domain).is_subset(right.must))
        if claim == ONLY_RIGHT:
            return bool(right.may.intersect(self.domain).is_subset(left.must))
        return bool(left.may.intersect(self.domain).is_disjoint(right.may))

    def _possible(self, claim: Claim) -> isl.Set:
        """Return pairs for which the claim may be so."""
        assert self.truths is not None
        assert self.domain is not None
        points = self.domain
        for truth, wanted in zip(self.truths, claim, strict=True):
            points = points.intersect(truth.may if wanted else truth.must.complement())
        return points.coalesce()

    def _tied(self, points: isl.Set) -> isl.Set:
        """Take away what contradicts a fact about stand-ins."""
        for tie in self.stand_ins.ties():
            if points.is_empty():
                break
            points = points.intersect(tie).coalesce()
        return points

    def _refuted(self, claim: Claim, possible: isl.Set) -> Finding:
        """Take the least pair for which the claim may be so, and see whether it is."""
        point = self._attempt(
            lambda: least_point(self.translator, possible, has_key=True, also=("b", "H", "B", "g", "D"))
        )
        if point is None:
            return Finding(None)
        situation = self._situation(point)
        if situation.sizes[SizeName.HEADS] % situation.sizes[SizeName.GROUP]:
            return Finding(None)  # no call has such heads
        witness = confirm(self.sides, claim, situation, self._cells(point, situation), least=True)
        return Finding(None if witness is None else False, witness)

    def _situation(self, point: dict[str, int]) -> Situation:
        sizes = {name: max(1, point.get(name.value, 1)) for name in SizeName}
        shift = sizes[SizeName.KEYS] - sizes[SizeName.QUERIES] if self.translator.align is AlignKind.END else 0
        return Situation(sizes, point["b"], point["h"], point["i"] - shift, point["j"])

    def _cells(self, point: dict[str, int], situation: Situation) -> Cells:
        """Return the elements that stand-ins stand for, and scalar inputs, with their values at the point."""
        values: dict[str, Value] = {}
        for name, expr in self.translator.opaques.items():
            scalar = expr.operand if isinstance(expr, Cast) else expr
            if isinstance(scalar, Read) and not scalar.index:
                values[scalar.table] = bool(point[name]) if scalar.type is Type.BOOL else point[name]
        shift = point["i"] - situation.row
        indices = {
            IndexName.BATCH: situation.batch,
            IndexName.HEAD: situation.head,
            IndexName.QUERY: point["i"],
            IndexName.ROW: situation.row,
            IndexName.SHIFT: shift,
            IndexName.KEY: situation.key,
        }
        stands = {scalar.table for scalar in self.stand_ins.known.values()}
        cells: dict[str, dict[tuple[int, ...], Value]] = {
            name: {(): value} for name, value in values.items() if name not in stands
        }
        known = {name: values.get(name, 0) for name in {*values, *stands}}
        env = Environment(indices, situation.sizes, {**dict.fromkeys(self.sides.tensors, 0), **known})
        for node, scalar in self.stand_ins.known.items():
            if isinstance(node, Read) and node.index and scalar.table in values:
                index = tuple(int(evaluate(at, env)) for at in children(node))
                cells.setdefault(node.table, {})[index] = values[scalar.table]
        return cells

    def _attempt(self, question: Callable[[], T]) -> T | None:
        answer = attempt(self.translator.context, question, COMPARE_OPERATIONS)
        self.exhausted |= answer is None
        return answer


def _in_rows(attention: Attention) -> Expr:
    """Write a mask over the row of the query: under `START`, `i` is the row."""
    row = Index(IndexName.QUERY)
    position = Binary(BinaryOp.ADD, row, attention.align.shift, Type.INT)

    def moved(node: Expr) -> Expr:
        match node:
            case Index(name=IndexName.ROW):
                return row
            case Index(name=IndexName.QUERY):
                return position
            case _:
                return node

    return simplify_expression(transform(attention.mask, moved))[0]


def _on_common_tables(left: Attention, right: Attention) -> tuple[Sides, tuple[str, ...]]:
    """Let a name mean one table where both declare it alike, and tell the tables apart where they do not."""
    tensors = {tensor.name: tensor for tensor in left.tensors}
    others = {tensor.name: tensor for tensor in right.tensors}
    apart = tuple(name for name in tensors.keys() & others.keys() if not _alike(tensors[name], others[name]))
    merged = {name: one for name, one in others.items() if name not in apart}
    for name, one in tensors.items():
        merged[name] = replace(one, sorted=one.sorted or (name in merged and merged[name].sorted))
    merged |= {f"{name}'": others[name] for name in apart}

    def renamed(node: Expr) -> Expr:
        return replace(node, table=f"{node.table}'") if isinstance(node, Read) and node.table in apart else node

    right = replace(
        right,
        mask=transform(right.mask, renamed),
        align=replace(right.align, shift=transform(right.align.shift, renamed)),
    )
    sides = Sides(left, right, merged)
    read = {*_read_by(left), *_read_by(right)}
    return replace(sides, tensors={name: merged[name] for name in merged if name in read}), tuple(sorted(apart))


def _alike(left: Tensor, right: Tensor) -> bool:
    """Tell whether one tensor can be given for both; what is promised of its order does not matter."""
    return left.type is right.type and left.dims == right.dims


def _read_by(attention: Attention) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*tables(attention.mask), *tables(attention.align.shift))))


def _shared(sides: Sides) -> tuple[str, ...]:
    return tuple(name for name in _read_by(sides.left) if name in _read_by(sides.right))
