"""A pattern in the few words that attention libraries understand: how far a query sees, documents, a cap, slopes.

What a form says is guessed from the mask's values and then proven by sets, so that a library is never asked for
something else than the pattern. Scores are only compared at points; a guess that is wrong there ends at the gate.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, replace

from attnc.algebra.comparison import compare_masks
from attnc.bench.additive import ONE, affine_score
from attnc.bench.cases import surroundings
from attnc.bench.contender import Unavailable
from attnc.checking import check_source
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Const, Expr, Index, IndexName, Read, Score, Size, SizeName
from attnc.ir.program import AlignKind, Attention, NormalizeKind
from attnc.ir.types import Type
from attnc.ir.walk import depends_on, tables, walk
from attnc.source import SourceFile

SPAN = 1 << 14
"""Positions of the sequence whose middle query's keys are looked at."""

LENGTHS = (SizeName.QUERIES, SizeName.KEYS)

POINTS = 40
"""Points at which scores are compared."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a library is told.

    Attributes:
        left, right: farthest key before and after the query; None for any. `right = 0` is causal.
        gap: distances are multiples of it.
        documents: the input whose equal values are a document, keys of others being masked; None for none.
        cap: of `softcap`; None for none.
        slopes: the tensor of ALiBi's slopes, `score - slope[h] * abs(i - j)`; None for none.
        scale: the factor on the dot product; None for the usual one.
    """

    left: int | None = None
    right: int | None = None
    gap: int = 1
    documents: str | None = None
    cap: float | None = None
    slopes: str | None = None
    scale: float | None = None

    @property
    def causal(self) -> bool:
        """Whether no query sees a later key."""
        return self.right == 0

    @property
    def windowed(self) -> bool:
        """Whether keys are too far away, or lie in gaps."""
        return self.left is not None or self.right not in (None, 0) or self.gap != 1

    def without(self, **allowed: bool) -> None:
        """Refuse what a library has no argument for.

        Args:
            allowed: `documents`, `cap`, `slopes`, `gap`, `window` and `full`: whether it has one. No is the default.

        Raises:
            Unavailable: the form has such a thing.
        """
        has = {
            "gap": self.gap != 1,
            "window": self.windowed and self.gap == 1,
            "full": self.right != 0,
            "documents": self.documents is not None,
            "cap": self.cap is not None,
            "slopes": self.slopes is not None,
        }
        for name, present in has.items():
            if present and not allowed.get(name):
                raise Unavailable(f"it has no {WORDS[name]}")


WORDS = {
    "gap": "dilation",
    "window": "windows",
    "full": "attention that is not causal",
    "documents": "documents",
    "cap": "soft cap",
    "slopes": "learned slopes",
}


@functools.lru_cache(maxsize=64)
def find_form(attention: Attention) -> Form:
    """Return the form of a pattern, for as many queries as keys.

    Raises:
        Unavailable: it has none.
    """
    if surroundings(attention):
        raise Unavailable(f"it has no `{surroundings(attention)}`")
    if attention.normalize.kind is not NormalizeKind.SOFTMAX or attention.normalize.sink is not None:
        raise Unavailable("it has no such normalisation")
    if attention.weight is not None:
        raise Unavailable("it has no factors on weights")
    if attention.align.kind is AlignKind.AT:
        raise Unavailable("it has no such alignment")
    documents, rest = _documents(attention)
    reach = _reach(replace(attention, mask=rest))
    cap, slopes = _score(replace(attention, mask=rest))
    return replace(reach, documents=documents, cap=cap, slopes=slopes, scale=_scale(attention))


def _scale(attention: Attention) -> float | None:
    if attention.scale is None:
        return None
    if not _is_free(attention.scale):
        raise Unavailable("it has no such scale")
    return float(evaluate(attention.scale, Environment()))


def _is_free(expr: Expr) -> bool:
    """Tell whether an expression needs neither positions nor sizes nor data."""
    return not any(isinstance(node, Index | Size | Read) for node in walk(expr))


def _score(attention: Attention) -> tuple[float | None, str | None]:
    """Return the cap and the slopes of a score that has nothing else, under a mask of positions."""
    score = attention.score
    if isinstance(score, Score):
        return None, None
    choose = random.Random(0)
    if not tables(score):
        for cap in {node.value for node in walk(score) if isinstance(node, Const) and node.type is Type.FLOAT}:
            if cap > 0 and _is_cap(score, float(cap), choose):
                return float(cap), None
        raise Unavailable("it has no such score")
    parts = affine_score(score)
    names = tables(score)
    if parts is None or parts.factor != ONE or len(names) != 1:
        raise Unavailable("it has no such score")
    (name,) = names
    if len(attention.tensor(name).dims) != 1 or not _is_alibi(parts.offset, name, attention.mask, choose):
        raise Unavailable("it has no such score")
    return None, name


def _is_cap(score: Expr, cap: float, choose: random.Random) -> bool:
    points = [choose.uniform(-3, 3) * cap for _ in range(POINTS)]
    return _is_free(score) and all(
        math.isclose(float(evaluate(score, Environment(score=point))), cap * math.tanh(point / cap), rel_tol=1e-6)
        for point in points
    )


def _is_alibi(offset: Expr, name: str, mask: Expr, choose: random.Random) -> bool:
    """Compare an offset with `-slope[h] * abs(i - j)` at pairs that the mask allows."""
    if depends_on(offset, IndexName.BATCH) or any(isinstance(node, Size) for node in walk(offset)):
        return False
    heads, length, found = 4, 99, 0
    slopes = [choose.uniform(0.1, 2) for _ in range(heads)]
    sizes = {SizeName.QUERIES: length, SizeName.KEYS: length, SizeName.HEADS: heads}
    for _ in range(50 * POINTS):
        query, key, head = choose.randrange(length), choose.randrange(length), choose.randrange(heads)
        indices = {IndexName.QUERY: query, IndexName.ROW: query, IndexName.KEY: key, IndexName.HEAD: head}
        if not evaluate(mask, Environment(indices, sizes)):
            continue
        value = float(evaluate(offset, Environment(indices, sizes, {name: slopes})))
        if abs(value + slopes[head] * abs(query - key)) > 1e-6 * (1 + abs(value)):
            return False
        found += 1
        if found == POINTS:
            return True
    return False


def _documents(attention: Attention) -> tuple[str | None, Expr]:
    """Return the input of a mask's `same(ids)`, None where it has none, and what else the mask says."""
    mask = attention.mask
    operands = mask.operands if isinstance(mask, And) else (mask,)
    for operand in operands:
        match operand:
            case Binary(op=BinaryOp.EQ, left=Read(table=left, index=one), right=Read(table=right, index=other)):
                places = {at.name for at in (*one, *other) if isinstance(at, Index)}
                both = places == {IndexName.BATCH, IndexName.QUERY, IndexName.KEY} and len(one) == len(other) == 2
                if left == right and both and attention.tensor(left).sorted:
                    rest = tuple(each for each in operands if each is not operand)
                    return left, rest[0] if len(rest) == 1 else And(rest) if rest else TRUE
            case _:
                continue
    return None, mask


def _reach(attention: Attention) -> Form:
    """Guess how far a query sees, and prove it."""
    mask = attention.mask
    if mask == TRUE:
        return Form()
    if not of_positions(mask):
        raise Unavailable("it has no such mask")
    distances = [key - SPAN // 2 for key in seen_keys(mask, SPAN // 2, SPAN)]
    if not distances:
        raise Unavailable("it has no such mask")
    gap = distances[1] - distances[0] if len(distances) > 1 else 1
    left = None if distances[0] - gap < -SPAN // 2 else -distances[0]
    right = None if distances[-1] + gap > SPAN // 2 - 1 else distances[-1]
    tests = [f"(i - j) % {gap} == 0"] if gap > 1 else []
    tests += [f"i - j <= {left}"] if left is not None else []
    tests += [f"j - i <= {right}"] if right is not None else []
    if not proven_equal(attention, " and ".join(tests) or "true"):
        raise Unavailable("it has no such mask")
    return Form(left, right, gap)


def of_positions(mask: Expr) -> bool:
    """Tell whether a mask needs nothing but positions and numbers of positions."""
    others = [node for node in walk(mask) if isinstance(node, Size) and node.name not in LENGTHS]
    return not (tables(mask) or depends_on(mask, IndexName.BATCH, IndexName.HEAD) or others)


def seen_keys(mask: Expr, query: int, length: int) -> list[int]:
    """Return the keys that a query sees, by a mask of positions."""
    sizes = {SizeName.QUERIES: length, SizeName.KEYS: length}
    around = {IndexName.QUERY: query, IndexName.ROW: query}
    return [key for key in range(length) if evaluate(mask, Environment({**around, IndexName.KEY: key}, sizes))]


def proven_equal(attention: Attention, mask: str) -> bool:
    """Tell whether a mask is proven to be the one that a text says, at every length."""
    text = f"attention guess {{ mask {mask} }}"
    (guess,) = check_source(SourceFile("guess.attn", text)).program.attentions
    return compare_masks(attention, guess).relation == "equal"
