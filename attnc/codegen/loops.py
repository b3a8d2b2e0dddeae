"""Interval lists as loops over tiles of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from attnc.algebra.int_exprs import ZERO, minus
from attnc.algebra.key_intervals import Coverage, KeyInterval
from attnc.codegen.expr_triton import Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.kernel_text import PRODUCT, Block, Shape, extent, places
from attnc.codegen.positions import KeyOrder
from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Const, Expr, Index, IndexName, Score, Size, SizeName
from attnc.ir.types import Type
from attnc.ir.walk import walk

_REAL_KEY = Binary(BinaryOp.LT, Index(IndexName.KEY), Size(SizeName.KEYS), Type.BOOL)
_SAFE_BOUND = 2**31 - 1024
"""Bounds below it can be rounded up to whole tiles in 32 bits."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """How a pair's scaled dot product becomes its weight.

    Attributes:
        score: softmax: the score in base 2; otherwise the unnormalised weight itself, factor included.
        factor: softmax: what multiplies the exponential; None if nothing does.
    """

    score: Expr
    factor: Expr | None
    comment: str = ""
    factor_comment: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """What one loop does with a tile of pairs.

    Attributes:
        uses_dot: whether the score depends on the dot product at all.
        lines: statements between `s = ...` and the mask.
        mask: text of a condition that broadcasts against the tile; empty where every pair is allowed.
        factor: text of the factor; empty without one.
    """

    uses_dot: bool
    lines: tuple[str, ...]
    mask: str
    factor: str

    @property
    def text(self) -> str:
        """Everything that is written here."""
        return "\n".join((*self.lines, self.mask, self.factor))

    @property
    def is_plain(self) -> bool:
        """Whether every pair is allowed, and its score a multiple of the dot product."""
        return self.uses_dot and not self.text.strip()


class AnyBody(Protocol):
    """What a loop does with a tile, whatever that is."""

    @property
    def text(self) -> str:
        """Everything that is written there."""


BodyType = TypeVar("BodyType", bound=AnyBody)


@dataclass(frozen=True, slots=True)
class Walk:
    """How loops go over keys.

    Attributes:
        order: None for plain order.
        origin: number of the first key: tiles are counted from there.
        real: which keys there are, for tiles that may reach past the last one.
    """

    order: KeyOrder | None = None
    origin: Expr = ZERO
    real: Expr = _REAL_KEY


PLAIN_WALK = Walk()


@dataclass(frozen=True, slots=True)
class MaskTest:
    """What a loop over several intervals tests in the tiles of one of them.

    Attributes:
        where: condition of the steps that lead to those.
        lines: statements that `mask` needs.
        mask: text of a condition that broadcasts against the tile.
    """

    where: str
    lines: tuple[str, ...]
    mask: str


@dataclass(frozen=True, slots=True)
class Loop(Generic[BodyType]):
    """One interval's loop, or that of several which follow each other (`fused_loops`).

    Attributes:
        title: comment above it.
        setup: statements that compute `begin` and `end`, the tiles to visit.
        before: statements of each tile that its `tile_test` needs.
        tile_test: condition for visiting a tile; empty if all are visited.
        ragged: whether tiles may reach past the last key, so that loads are guarded.
        uses_kv_idx, uses_kv_lo, uses_kv_hi: whether the statements mention keys one by one, or the first or last key of
            the tile.
        order: of its keys; None for plain order.
        opens: whether it is the first loop in that order.
        origin: text of the number of the first key, which tiles are counted from; empty for 0.
        steps: several intervals: text of how many tiles they have together; empty for one interval.
        finds: statements of each step that compute its `tile`.
        tests: of the tiles of the intervals that need some; `body` tests none.
    """

    title: str
    setup: tuple[str, ...]
    before: tuple[str, ...]
    tile_test: str
    ragged: bool
    uses_kv_idx: bool
    uses_kv_lo: bool
    uses_kv_hi: bool
    body: BodyType
    order: KeyOrder | None = None
    opens: bool = False
    origin: str = ""
    steps: str = ""
    finds: tuple[str, ...] = ()
    tests: tuple[MaskTest, ...] = ()


def write_loop(
    writer: Writer,
    interval: KeyInterval,
    write: Callable[[Writer, Expr], BodyType],
    *,
    first: bool,
    walk: Walk = PLAIN_WALK,
) -> Loop[BodyType]:
    """Write the loop of one interval. Values that do not change in it go to the writer's block 0.

    Args:
        writer: of the kernel.
        interval: what the loop covers.
        write: writes what is done with a tile, given the condition that its pairs are tested for.
        first: whether no loop of its pass stands before it; others start where the one before ended.
        walk: how it goes over keys.
    """
    outer, order = writer.blocks[0], walk.order
    origin = "" if walk.origin == ZERO else writer.write_named(walk.origin, "first").text
    setup = write_setup(writer, interval, outer, walk.origin, first=first)
    writer.blocks = [outer, Block()]
    test = ""
    before: tuple[str, ...] = ()
    writer.margin = 2
    if interval.tile_test is not None:
        fragment = writer.write(interval.tile_test)
        test = fragment.text if fold(interval.tile_test) != TRUE else ""
        before = tuple(writer.blocks[1].lines)
        writer.blocks[1].lines = []
        writer.margin = 3 if test else 2
    # In other orders, numbers past the last key stand for key M, of which the residual says nothing.
    ragged = interval.ragged or (order is not None and interval.coverage is Coverage.PARTIAL)
    mask = And((interval.residual, walk.real)) if ragged else interval.residual
    body = write(writer, mask)
    writer.blocks, writer.margin = [outer], 1
    writer.names.end_loop()
    kind = "all pairs" if interval.coverage is Coverage.FULL else "some pairs"
    title = f"{interval.label}: {kind}" if interval.label else kind
    text = "\n".join((*before, test, body.text))
    position, low, last = (writer.aliases.get(name, name) for name in ("kv_idx", "kv_lo", "kv_hi"))
    return Loop(
        title=one_line(title),
        setup=setup,
        before=before,
        tile_test=test,
        ragged=interval.coverage is Coverage.PARTIAL,
        uses_kv_idx=position in text or (order is not None and not order.step),
        uses_kv_lo=low in text,
        uses_kv_hi=last in text,
        body=body,
        order=order,
        origin=origin,
    )


def write_body(writer: Writer, mask: Expr, weighing: Weighing) -> Body:
    """Write scores, mask and factor of a tile of pairs into the writer's innermost block."""
    block = writer.blocks[1]
    score = fold(weighing.score)
    if score != Score():
        fragment = writer.write(score)
        text, whole = writer.text(fragment, Shape.PAIR), extent(Shape.PAIR, writer.aliases)
        if fragment.constant:
            text = f"tl.full({whole}, {fragment.text}, tl.float32)"
        elif fragment.shape is not Shape.PAIR:
            text = f"tl.broadcast_to({text}, {whole})"
        writer.emit(f"s = {text}", 1, weighing.comment)
    condition, factor = "", ""
    if weighing.factor is not None:
        factor = writer.text(writer.root(weighing.factor, "factor", weighing.factor_comment), Shape.PAIR)
    folded = fold(mask)
    if folded != TRUE:
        comment = places(node.span for node in walk(folded))
        condition = writer.text(writer.root(folded, "allowed", comment), Shape.PAIR)
    uses_dot = any(isinstance(node, Score) for node in walk(score))
    return Body(uses_dot, tuple(block.lines), condition, factor)


def write_setup(writer: Writer, interval: KeyInterval, outer: Block, origin: Expr, *, first: bool) -> tuple[str, ...]:
    """Round the interval to whole tiles, after those that earlier loops have visited."""
    # The statements stand just above their loop; what block 0 has already is taken from there.
    setup = Block(written=dict(outer.written))
    writer.blocks, writer.margin = [setup], 2
    done = "0" if first else "end"
    start = _tile_text(writer, minus(interval.start, origin), up=interval.start_up)
    stop = _tile_text(writer, minus(interval.stop, origin), up=interval.stop_up)
    begin = done if start == "0" else f"tl.maximum({done}, {start})"
    lines = [*setup.lines, f"begin = {begin}", f"end = tl.maximum(begin, {stop})"]
    return tuple(lines)


def _tile_text(writer: Writer, bound: Expr, *, up: bool) -> str:
    """Return the number of the tile at a bound. Negative ones may come out as any number up to 0."""
    folded = fold(bound)
    if isinstance(folded, Const) and folded.value <= 0:
        return "0"
    fragment = writer.write(folded)
    found = writer.range_of(folded)
    if fragment.bits != 32 or found.high >= _SAFE_BOUND:
        text = f"{writer.use('clamp_position')}({writer.named(fragment, 'bound').text})"
    else:
        text = fragment.text if up else writer.text(fragment, Shape.SCALAR, PRODUCT)
    block = writer.aliases.get("BLOCK_N", "BLOCK_N")
    return f"tl.cdiv({text}, {block})" if up else f"{text} // {block}"


def one_line(text: str) -> str:
    """Return text that can stand in a comment."""
    return "".join(character if character.isprintable() else " " for character in text)
