"""Orders of rows and keys as text: where a program's rows lie, and which keys a tile holds.

In plain order a tile is a stretch of positions. In other orders it is a stretch of *local* numbers, which `q_lo`,
`q_hi`, `kv_lo` and `kv_hi` are then; `q_idx`, `kv_idx` and `row_idx` are positions and rows in every order, so that
the user's expressions are the same in all of them. Numbers past the last real one stand for row `N` and key `M`: what
a kernel computes for those is ignored, but positions must stay countable whatever the period.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.coordinates import CoordinateMap, MapKind
from attnc.codegen.expr_triton import Writer
from attnc.codegen.kernel_text import Block
from attnc.ir.nodes import Binary, BinaryOp, Const, Expr, Index, IndexName, Size, SizeName
from attnc.ir.types import Type
from attnc.ir.walk import substitute

_SHIFT = Index(IndexName.SHIFT)


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """How loops count and read keys that are not in plain order.

    Attributes:
        about: comment above its first loop.
        count: number of keys.
        position: where the key with the number `kv_local` lies.
        step: number of positions from one key to the next where keys are equally far apart and so read as a matrix
            with long strides; 0 where rows are read one by one.
        first: position of the first key, where there is a `step`.
        keys, values: names of the addresses of the first key and value there.
        key_step, value_step: names of their distances from one to the next, in elements.
    """

    about: str
    count: str
    position: str
    step: int = 0
    first: str = ""
    keys: str = ""
    values: str = ""
    key_step: str = ""
    value_step: str = ""


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Which rows of a head a program computes.

    Attributes:
        about: the end of the sentence "A program computes BLOCK_M rows of one head, ..."
        classes: how many parts of a head have programs of their own, as text; empty for one.
        most: the largest number of rows of a part, as text.
        values: names of the program's part and their text, where shift is not 0.
        before: statements that compute the texts below.
        first: number of the part's first row in the order, as text; empty for 0.
        end: runs: number past its last row, as text; classes: how many rows it has.
        row: the row with the number `local_row`, as text; classes count from their own first row.
        launch: what the launcher is told.
    """

    about: str
    classes: str
    most: str
    values: tuple[tuple[str, str], ...]
    before: tuple[str, ...]
    first: str
    end: str
    row: str
    launch: str


def write_key_order(writer: Writer, order: CoordinateMap) -> KeyOrder:
    """Write the order of keys of some loops; what they share goes to the writer's block 0.

    Args:
        writer: of the kernel.
        order: not the plain one.
    """
    count = writer.root(order.end_before(Size(SizeName.KEYS)), "key_count").text
    if order.kind is not MapKind.RESIDUE:
        return KeyOrder(f"Keys in {_runs(order)}.", count, _run_position(order, "kv_local", "{} // {}", "{} % {}"))
    first = writer.root(order.residue, "first_key").text
    return KeyOrder(
        f"Keys {order.period} apart: those of this program's class.",
        count,
        f"{first} + kv_local * {order.period}",
        order.period,
        first,
        *(writer.names.fresh(name) for name in ("class_keys", "class_values", "key_step", "value_step")),
    )


def write_row_order(writer: Writer, order: CoordinateMap, *, shifted: bool, reverse: bool) -> RowOrder | None:
    """Write the order of rows of a kernel; None for the plain one.

    Args:
        writer: of the kernel, before anything else is written.
        order: of the rows.
        shifted: whether positions of rows differ from rows.
        reverse: whether rows with the most keys come last in the order.
    """
    last = ", those with the most keys first" if reverse else ""
    match order.kind:
        case MapKind.IDENTITY:
            return None
        case MapKind.RESIDUE:
            return _residue_rows(order.period, shifted=shifted, last=last)
        case MapKind.RUNS:
            return _write_runs(writer, order, shifted=shifted, last=last)


def _residue_rows(period: int, *, shifted: bool, last: str) -> RowOrder:
    """Describe residue order. A class is told by its first row, so that no class is without one."""
    # Rows of a class are as far apart as their positions, so both have the same numbers but for the first one's.
    place = f"(first_row + shift, {period})"
    return RowOrder(
        about=f"{period} apart{last}",
        classes=f"tl.minimum(N, {period})",
        most=f"tl.cdiv(N, {period})",
        values=(("residue", f"floor_mod{place}"), ("first_local", f"floor_div{place}")) if shifted else (),
        before=(),
        first="first_local" if shifted else "",
        end=f"tl.cdiv(N - first_row, {period})",
        row=f"first_row + local_row * {period}",
        launch=f"RowOrder({period})",
    )


def _write_runs(writer: Writer, order: CoordinateMap, *, shifted: bool, last: str) -> RowOrder:
    past = Binary(BinaryOp.ADD, _SHIFT, Size(SizeName.QUERIES), Type.INT)
    bounds: list[Expr] = [order.first_from(_SHIFT), order.first_from(past)]
    if not shifted:
        bounds = [substitute(bound, {_SHIFT: Const(0, Type.INT)}) for bound in bounds]
    first, end = (writer.root(bound, name).text for bound, name in zip(bounds, ("q_first", "q_end"), strict=True))
    block = writer.blocks[0]
    lines = tuple(block.lines)
    writer.blocks = [Block(written=block.written)]
    if order.length > 1:
        writer.use("floor_div")
        writer.use("floor_mod")
    position = _run_position(order, "local_row", "floor_div({}, {})", "floor_mod({}, {})")
    period, length = order.period, order.length
    most = f"N // {period}" + (f" * {length}" if length > 1 else "")
    return RowOrder(
        about=f"{_runs(order)}{last}",
        classes="",
        most=f"{most} + tl.minimum(N % {period}, {length})",
        values=(),
        before=lines,
        first="" if first == "0" else first,
        end=end,
        row=f"{position} - shift" if shifted else position,
        launch=f"RowOrder({period}, {length})",
    )


def _run_position(order: CoordinateMap, local: str, divide: str, remain: str) -> str:
    """Return where the position with the number `local` lies."""
    if order.length == 1:
        text = f"{local} * {order.period}"
        return f"{text} + {order.first}" if order.first else text
    text = f"{divide.format(local, order.length)} * {order.period}"
    if order.first:
        text += f" + {order.first}"
    return f"{text} + {remain.format(local, order.length)}"


def _runs(order: CoordinateMap) -> str:
    """Return `positions 120 .. 127 of every 128`."""
    if order.length == 1:
        return f"position {order.first} of every {order.period}"
    return f"positions {order.first} .. {order.first + order.length - 1} of every {order.period}"
