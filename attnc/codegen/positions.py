"""Orders of rows and keys as text: where a program's rows lie, and which keys a tile holds.

In plain order a tile is a stretch of positions. In other orders it is a stretch of *local* numbers, which `q_lo`,
`q_hi`, `kv_lo` and `kv_hi` are then; `q_idx`, `kv_idx` and `row_idx` are positions and rows in every order, so that
the user's expressions are the same in all of them. Numbers past the last real one stand for row `N` and key `M`: what
a kernel computes for those is ignored, but positions must stay countable whatever the period.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.coordinates import LOCAL_QUERY, CoordinateMap, MapKind, Reach
from attnc.algebra.int_exprs import minus, product
from attnc.codegen.expr_triton import Writer
from attnc.codegen.kernel_text import Block
from attnc.diagnostics import InternalError
from attnc.ir.nodes import TRUE, Binary, BinaryOp, Const, Index, IndexName, Size, SizeName
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
        before: statements of each tile that compute parts of it.
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
    before: tuple[str, ...] = ()


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
        points: statements that compute the two texts below from `local_row`.
        row: the row with the number `local_row`, as text; classes count from their own first row.
        is_row: whether it is one, as text.
        whole: whether `end` is a multiple of every tile, so that no tile has fewer numbers than another.
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
    is_row: str
    launch: str
    points: tuple[str, ...] = ()
    whole: bool = False


def write_key_order(writer: Writer, order: CoordinateMap) -> KeyOrder:
    """Write the order of keys of some loops; what they share goes to the writer's block 0.

    Args:
        writer: of the kernel.
        order: not the plain one.
    """
    if order.kind is MapKind.BOX:
        return _write_box(writer, order)
    count = writer.root(order.end_before(Size(SizeName.KEYS)), "key_count").text
    if order.kind is not MapKind.RESIDUE:
        return KeyOrder(f"Keys in {_runs(order)}.", count, _run_position(order, "kv_local", "{} // {}", "{} % {}"))
    first = writer.root(order.residue, "first_key").text
    keys, values, key_step, value_step = (
        writer.names.fresh(name) for name in ("class_keys", "class_values", "key_step", "value_step")
    )
    return KeyOrder(
        f"Keys {order.period} apart: those of this program's class.",
        count,
        f"{first} + kv_local * {order.period}",
        order.period,
        first,
        keys,
        values,
        key_step,
        value_step,
    )


def _write_box(writer: Writer, order: CoordinateMap) -> KeyOrder:
    """Write the box of keys around a tile of a grid: where it begins and how wide it is along each axis."""
    boxes = order.boxes
    lows, widths = [], []
    for number, extent in enumerate(boxes.extents):
        writer.write_named(extent.query_low, f"tile_{number}_first")
        writer.write_named(extent.query_high, f"tile_{number}_last")
        lows.append(writer.write_named(extent.low, f"box_{number}").text)
        widths.append(writer.write_named(extent.width, f"width_{number}").text)
    inner = boxes.extents[-1].width
    across = [widths[-1]]
    for number in range(len(widths) - 2, 0, -1):
        inner = product(boxes.extents[number].width, inner)
        across.insert(0, writer.write_named(inner, f"across_{number}").text)
    lines = []
    for number, axis in enumerate(boxes.grid.axes):
        step = f"kv_local // {across[number]}" if number < len(across) else "kv_local"
        if number:
            step += f" % {widths[number]}"
        place = f"{step} + {lows[number]}" if lows[number] != "0" else step
        place = f"({place}) * {axis.stride}" if axis.stride > 1 else place
        lines.append(f"kv_place {'+=' if number else '='} {place}")
    tile = " x ".join(str(axis.tile) for axis in boxes.grid.axes)
    return KeyOrder(
        f"Keys in the box around this program's tile of {tile} points, row by row.",
        writer.write_named(boxes.count, "key_count").text,
        "kv_place",
        before=tuple(lines),
    )


def write_row_order(
    writer: Writer, order: CoordinateMap, *, shifted: bool, reverse: bool, size: SizeName = SizeName.QUERIES
) -> RowOrder | None:
    """Write the order of rows of a kernel; None for the plain one.

    Args:
        writer: of the kernel, before anything else is written.
        order: of the rows.
        shifted: whether positions of rows differ from rows.
        reverse: whether rows with the most keys come last in the order.
        size: how many rows there are; as many as keys, where rows are those.
    """
    last = ", those with the most keys first" if reverse else ""
    match order.kind:
        case MapKind.IDENTITY:
            return None
        case MapKind.RESIDUE:
            return _residue_rows(order.period, shifted=shifted, last=last, size=size.value)
        case MapKind.RUNS:
            return _write_runs(writer, order, shifted=shifted, last=last, size=size)
        case MapKind.GRID:
            return _write_grid(writer, order, shifted=shifted, last=last, size=size)
        case MapKind.BOX:
            raise InternalError("queries do not lie in a box")


def _residue_rows(period: int, *, shifted: bool, last: str, size: str) -> RowOrder:
    """Describe residue order. A class is told by its first row, so that no class is without one."""
    # Rows of a class are as far apart as their positions, so both have the same numbers but for the first one's.
    place = f"(first_row + shift, {period})"
    return RowOrder(
        about=f"{period} apart{last}",
        classes=f"tl.minimum({size}, {period})",
        most=f"tl.cdiv({size}, {period})",
        values=(("residue", f"floor_mod{place}"), ("first_local", f"floor_div{place}")) if shifted else (),
        before=(),
        first="first_local" if shifted else "",
        end=f"tl.cdiv({size} - first_row, {period})",
        row=f"first_row + local_row * {period}",
        is_row="local_row < row_count",
        launch=f"RowOrder({period})",
    )


def _write_runs(writer: Writer, order: CoordinateMap, *, shifted: bool, last: str, size: SizeName) -> RowOrder:
    first, end, lines = _write_ends(writer, order, shifted=shifted, size=size)
    if order.length > 1:
        writer.use("floor_div")
        writer.use("floor_mod")
    position = _run_position(order, "local_row", "floor_div({}, {})", "floor_mod({}, {})")
    period, length = order.period, order.length
    most = f"{size.value} // {period}" + (f" * {length}" if length > 1 else "")
    return RowOrder(
        about=f"{_runs(order)}{last}",
        classes="",
        most=f"{most} + tl.minimum({size.value} % {period}, {length})",
        values=(),
        before=lines,
        first="" if first == "0" else first,
        end=end,
        row=f"{position} - shift" if shifted else position,
        is_row=f"local_row < {end}",
        launch=f"RowOrder({period}, {length})",
    )


def _write_ends(
    writer: Writer, order: CoordinateMap, *, shifted: bool, size: SizeName
) -> tuple[str, str, tuple[str, ...]]:
    """Write the number of the first row and that past the last one; return both and the statements before them."""
    past = Binary(BinaryOp.ADD, _SHIFT, Size(size), Type.INT)
    bounds = [order.first_from(_SHIFT), order.end_before(past)]
    if not shifted:
        bounds = [substitute(bound, {_SHIFT: Const(0, Type.INT)}) for bound in bounds]
    first, end = (writer.root(bound, name).text for bound, name in zip(bounds, ("q_first", "q_end"), strict=True))
    return first, end, _take_lines(writer)


def _take_lines(writer: Writer) -> tuple[str, ...]:
    """Take the statements that were written so far; what they compute stays known."""
    block = writer.blocks[0]
    writer.blocks = [Block(written=block.written)]
    return tuple(block.lines)


def _write_grid(writer: Writer, order: CoordinateMap, *, shifted: bool, last: str, size: SizeName) -> RowOrder:
    """Write which points of a grid a program's rows are; a point that is no row stands for row `N`."""
    grid, axis = order.grid, order.axes[0]
    first, end, before = _write_ends(writer, order, shifted=shifted, size=size)
    place = writer.root(grid.position(LOCAL_QUERY), "place").text
    real = "" if grid.is_real(LOCAL_QUERY) == TRUE else writer.root(grid.is_real(LOCAL_QUERY), "in_grid").text
    if shifted:
        writer.emit(f"{place} = {place} - shift", 0)
    writer.used[size.value] = None
    before_first = shifted or axis.lead > 0  # points of the first tile may lie before the first position
    tests = [*([f"({place} >= 0)"] if before_first else []), f"({place} < {size.value})", *([real] if real else [])]
    tile = " x ".join(str(one.tile) for one in order.axes)
    count = size.value
    steps = f"({count} + {axis.stride - 2}) // {axis.stride}" if axis.stride > 2 else count
    return RowOrder(
        about=f"a part of a tile of {tile} points of a grid{last}",
        classes="",
        most=f"(({steps} + {axis.tile - 1}) // {axis.tile} + 1) * {grid.across * grid.rows}",
        values=(),
        before=before,
        first="" if first == "0" else first,
        end=end,
        row=place,
        is_row=" & ".join(tests),
        launch=f"GridRows({axis.stride}, {axis.tile}, {grid.rows}, {grid.across})",
        points=_take_lines(writer),
        whole=True,
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


def write_query_order(writer: Writer, order: CoordinateMap, reach: Reach, *, shifted: bool) -> KeyOrder:
    """Write the order of queries that loops of a transposed attention go over, counted from the first one.

    Args:
        writer: of the kernel.
        order: not the plain one.
        reach: of the queries' positions.
        shifted: whether positions of queries differ from rows.
    """
    if order.kind is MapKind.BOX:
        return _write_query_box(writer, order, shifted=shifted)
    first = writer.write_named(order.first_from(reach.first), "q_first")
    count = writer.root(minus(order.end_before(reach.past), order.first_from(reach.first)), "q_count").text
    if order.kind is not MapKind.RESIDUE:
        number = "q_local" if first.text == "0" else f"(q_local + {first.text})"
        divide, remain = ("{} // {}", "{} % {}")
        if shifted:
            divide, remain = f"{writer.use('floor_div')}({{}}, {{}})", f"{writer.use('floor_mod')}({{}}, {{}})"
        place = _run_position(order, number, divide, remain)
        return KeyOrder(f"Queries in {_runs(order)}.", count, f"{place} - shift" if shifted else place)
    position = order.position(order.first_from(reach.first)) if shifted else order.residue
    row = minus(position, _SHIFT) if shifted else position
    first_row = writer.root(row, "first_query").text
    queries, grads, query_step, grad_step = (
        writer.names.fresh(name) for name in ("class_queries", "class_grads", "query_step", "grad_step")
    )
    return KeyOrder(
        f"Queries {order.period} apart: those of this program's class.",
        count,
        f"{first_row} + q_local * {order.period}",
        order.period,
        first_row,
        queries,
        grads,
        query_step,
        grad_step,
    )


def _write_query_box(writer: Writer, order: CoordinateMap, *, shifted: bool) -> KeyOrder:
    """Write the box of queries around a tile of keys; queries before the first row are none."""
    box = _write_box(writer, order)
    lines = [line.replace("kv_local", "q_local").replace("kv_place", "q_place") for line in box.before]
    if shifted:
        lines.append("q_place -= shift")
    about = box.about.replace("Keys in", "Queries in")
    return KeyOrder(about, box.count, "tl.where(q_place >= 0, q_place, N)", before=tuple(lines))
