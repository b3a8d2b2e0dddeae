"""What the kernel's template lays out: everything is decided here, as text and flags.

`templates/kernel.py.jinja` renders a `KernelView`, named `kernel`, to a jitted kernel `_<name>_kernel`, the tables of
its tiles and inputs, and a launcher

    _<name>_launch(query, key, value, out, lse, inputs, scale, precision)

which writes `out` and, unless it is None, `lse`: of the scores that the kernel computes, so that `Scoring.dropped` is
for the caller to add. The module around it must have in scope: `triton` and `tl` (take both
from `attnc.runtime.kernel_math`, which has stand-ins where Triton is not installed), the functions of
`attnc.runtime.kernel_math` and `attnc.runtime.kernel_loads` named in `math_functions`, and `Tiles`, `start_launch`,
`finish_launch`, `read_tables` of `attnc.runtime.launch`, and `launchable` of `attnc.runtime.kernel_launch`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from attnc.algebra.coordinates import IDENTITY, CoordinateMap, MapKind
from attnc.algebra.summaries import summary_tensor
from attnc.codegen.default_tiles import forward_traits, key_limit
from attnc.codegen.expr_triton import Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.fused_loops import fuse
from attnc.codegen.kernel_pieces import (
    InputView,
    base_2,
    dropout_arguments,
    header_of,
    input_view,
    is_unshifted,
    state_tensors,
    tile_lines,
    write_scale,
    write_shift,
)
from attnc.codegen.kernel_text import MATH_FUNCTIONS, Block, Names, Shape, place, places
from attnc.codegen.loops import Body, Loop, Walk, Weighing, write_body, write_loop
from attnc.codegen.positions import KeyOrder, RowOrder, write_key_order, write_row_order
from attnc.codegen.reads_triton import Argument, Tables
from attnc.codegen.sweeps import Sweep, sweeps_of
from attnc.diagnostics import InternalError
from attnc.ir.nodes import (
    TRUE,
    And,
    Binary,
    BinaryOp,
    Call,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Score,
    Size,
    SizeName,
    Where,
)
from attnc.ir.program import Attention, NormalizeKind
from attnc.ir.types import Type
from attnc.ir.walk import walk
from attnc.plan.configs import Traits, tile_rows
from attnc.plan.fusing import may_fuse
from attnc.plan.kernel_plan import Plan, Trend
from attnc.plan.row_state import state_of

_REAL_KEY = Binary(BinaryOp.LT, Index(IndexName.KEY), Size(SizeName.KEYS), Type.BOOL)


@dataclass(frozen=True, slots=True)
class KernelView:
    """A kernel as text and flags.

    Attributes:
        function: its name.
        table: name of the table of its tiles.
        identity: what tuned tiles know it by: the attention's name and a digest of what it computes.
        header: comment lines: the statements of the pattern.
        normalize: `softmax`, `rows` or `sum` (weights that are not divided by their sum).
        kept: what is kept of each row, see `state_of`.
        before_shift: statements that compute an `align at`.
        shift: text of `i - r`; empty if it is 0 and `q_idx` is the row itself.
        clamped: whether positions are clamped because `shift` is the caller's.
        prologue: statements before all loops.
        fused: the same as fewer loops, for configurations that ask for it; empty where there cannot be fewer.
        scale: text of the pattern's own scale, base 2 under softmax; empty where the launcher computes it.
        scale_is_row: whether it differs between query rows.
        sink: text per row or program; empty without one.
        careful: body of the second walk that masked pairs with a NaN or infinite value ask for; None if no pair is
            masked.
        reverse: whether the last query tiles start first, having the most work.
        uneven: whether it is known which rows have the most work, so that heads take turns at starting those.
        rows: the order of rows; None for plain order.
        most_keys: about how many keys a program visits at most, as text; empty where longer sequences have more.
        long_rows: how many of the first rows have many more keys than the others, as text over `call`; empty for none.
        resumed: name of the rows that kernels before this one have summed for; empty if there are none.
        keeps: whether sums are left for another kernel, where the last one writes the result.
        careful_order: of the keys of the second walk; None for plain order.
        used: fixed names that the text mentions.
        math_functions: of `runtime.kernel_math` and `runtime.kernel_loads`, sorted.
        parameters: of the kernel, as they are declared.
        unspecialized: parameters that Triton must not compile for particular values of.
        call: name and value of each argument in the launcher.
        traits: what decides on those.
        tiles: lines of the table of default tiles.
    """

    function: str
    table: str
    identity: str
    header: tuple[str, ...]
    normalize: str
    kept: str
    before_shift: tuple[str, ...]
    shift: str
    clamped: bool
    prologue: tuple[str, ...]
    loops: tuple[Loop[Body], ...]
    fused: tuple[Loop[Body], ...]
    scale: str
    scale_is_row: bool
    sink: str
    careful: Body | None
    reverse: bool
    uneven: bool
    rows: RowOrder | None
    most_keys: str
    long_rows: str
    resumed: str
    keeps: bool
    careful_order: KeyOrder | None
    used: frozenset[str]
    math_functions: tuple[str, ...]
    parameters: tuple[str, ...]
    unspecialized: tuple[str, ...]
    call: tuple[tuple[str, str], ...]
    inputs: tuple[InputView, ...]
    traits: Traits
    tiles: tuple[str, ...]

    @property
    def shared(self) -> bool:
        """Whether programs may take turns at the keys of the same rows."""
        return bool(self.loops)

    @property
    def scales_late(self) -> bool:
        """Whether maxima are taken of dot products, where every pair is allowed, and scaled afterwards.

        A pair takes a multiplication less: its factor and its row's maximum are one multiply-add. The factor must not
        be negative, as `start_launch` sees to; that of the pattern itself may be.
        """
        return self.normalize == "softmax" and not self.scale

    @property
    def dealt(self) -> bool:
        """Whether a program may get several tiles of rows."""
        return True

    @property
    def of_pairs(self) -> bool:
        """Whether it is launched for a strip of rows at a time, as kernels of gradients may be."""
        return False


def kernel_view(
    plan: Plan,
    sweep: Sweep | None = None,
    *,
    variant: str = "",
    rows: str = "BLOCK_M",
    reserved: frozenset[str] = frozenset(),
) -> KernelView:
    """Decide everything about one of the Triton kernels of a plan.

    Args:
        plan: whose passes the kernel runs.
        sweep: the kernel; the last one unless said.
        variant: what tells the kernels of this plan from those of other lengths.
        rows: what expressions call the number of rows that they have values of.
        reserved: names that another template than Triton's has besides.
    """
    sweep = sweeps_of(plan)[-1] if sweep is None else sweep
    attention = plan.attention
    softmax = attention.normalize.kind is NormalizeKind.SOFTMAX
    names = Names(reserved)
    summaries = (summary_tensor(attention, name) for name in plan.summaries)
    tables = Tables(names, (*attention.tensors, *summaries))
    own_names = {"BLOCK_M": rows} if rows != "BLOCK_M" else {}
    writer = Writer(names, tables, aliases_of(attention, sweep) | own_names)
    before_shift, shift, clamped = write_shift(writer, attention)
    reverse = sweep.trend is Trend.RISING
    row_order = write_row_order(writer, sweep.query, shifted=bool(shift), reverse=reverse)
    writer.base = 0 if own_names else 1 if row_order is None else 2  # a loop over tiles, a branch for their rows
    weighing = weighing_of(plan)
    orders: dict[CoordinateMap, KeyOrder] = {}
    fuses = not own_names and may_fuse(attention, sweep.passes)
    loops, fused = _write_loops(writer, sweep, weighing, orders, fuses=fuses)
    scale, scale_shape = write_scale(writer, attention, softmax=softmax)
    resumed = _write_resumed(writer, sweep)
    sink = _write_row(writer, base_2(attention.normalize.sink), "sink") if softmax and sweep.resumed != TRUE else ""
    careful_order = _only_order(orders, sweep)
    careful = _write_careful(writer, sweep, weighing)
    used = _close(writer, loops, careful, row_order, careful_order, (resumed, sink))
    traits = forward_traits(sweep, weighing, loops)
    defaults = tile_rows(sweep.query_tile, key_limit(sweep), traits)
    long_rows = "" if row_order is not None or not loops else _long_rows(plan)
    flags = {"careful": careful is not None, "ranged": bool(long_rows), "fused": bool(fused)}
    values = _parameters(attention, used, tables, sweep, **flags)
    stem = "_".join(part for part in (attention.name, variant, sweep.label) if part)
    return KernelView(
        function=f"_{stem}_kernel",
        table=f"_{stem}_tiles",
        identity="",
        header=header_of(attention),
        normalize={NormalizeKind.SOFTMAX: "softmax", NormalizeKind.ROWS: "rows"}.get(attention.normalize.kind, "sum"),
        kept=state_of(attention),
        before_shift=before_shift,
        shift=shift,
        clamped=clamped,
        prologue=tuple(writer.blocks[0].lines),
        loops=loops,
        fused=fused,
        scale=scale,
        scale_is_row=scale_shape is Shape.ROW,
        sink=sink,
        careful=careful,
        reverse=reverse,
        uneven=sweep.trend in (Trend.RISING, Trend.FALLING) and bool(loops),
        rows=row_order,
        most_keys=str(sweep.most_keys) if loops and sweep.most_keys is not None else "",
        long_rows=long_rows,
        resumed=resumed,
        keeps=not sweep.is_last,
        careful_order=careful_order if careful is not None else None,
        used=used,
        math_functions=tuple(sorted(used & MATH_FUNCTIONS)),
        parameters=tuple(value.declaration for value in values),
        unspecialized=tuple(value.name for value in values if not value.specialize),
        call=tuple((value.name, value.value) for value in values),
        inputs=tuple(input_view(table) for table in tables.all),
        traits=traits,
        tiles=tuple(line for row in defaults for line in tile_lines(row)),
    )


def _only_order(orders: Mapping[CoordinateMap, KeyOrder], sweep: Sweep) -> KeyOrder | None:
    """Return the order in which all passes of a kernel walk their keys; None where they differ, or for plain order."""
    walked = {one.layout.key for one in sweep.passes}
    return orders.get(walked.pop()) if len(walked) == 1 else None


def _write_loops(
    writer: Writer, sweep: Sweep, weighing: Weighing, orders: dict[CoordinateMap, KeyOrder], *, fuses: bool
) -> tuple[tuple[Loop[Body], ...], tuple[Loop[Body], ...]]:
    """Write the loops of each pass in turn, and the orders of their keys; and the loops again, fused where they may."""
    loops: list[Loop[Body]] = []
    fused: list[Loop[Body]] = []

    def body(writer: Writer, mask: Expr) -> Body:
        return write_body(writer, mask, weighing)

    for one in sweep.passes:
        key = one.layout.key
        opens = key != IDENTITY and key not in orders and bool(one.tiles.intervals)
        if opens:
            orders[key] = write_key_order(writer, key)
        walk, own = Walk(orders.get(key)), []
        for position, interval in enumerate(one.tiles.intervals):
            loop = write_loop(writer, interval, body, first=position == 0, walk=walk)
            own.append(replace(loop, opens=opens and position == 0))
        loops += own
        if fuses:
            fused += fuse(writer, own, one.tiles.intervals, body, walk) if key == IDENTITY else own
    return tuple(loops), tuple(fused)


def _write_resumed(writer: Writer, sweep: Sweep) -> str:
    """Write which rows begin with the sums of earlier kernels."""
    if not sweep.before:
        return ""
    real = Binary(BinaryOp.LT, Index(IndexName.ROW), Size(SizeName.QUERIES), Type.BOOL)
    return writer.root(And((sweep.resumed, real)), "resumed").text


def _long_rows(plan: Plan) -> str:
    """Write how many rows are long, where that is known before the call's data are: rows are positions less a shift."""
    shift = plan.attention.align.shift
    if not plan.long_rows:
        return ""
    if is_unshifted(plan.attention):
        return str(plan.long_rows)
    if shift == Binary(BinaryOp.SUB, Size(SizeName.KEYS), Size(SizeName.QUERIES), Type.INT):
        return f"{plan.long_rows} + call.N - call.M"
    return str(plan.long_rows - shift.value) if isinstance(shift, Const) else ""


def kept_sums(attention: Attention) -> str:
    """Return what a row has besides its output while it is summed: `m` and `l`, `l` alone, or nothing."""
    return {NormalizeKind.SOFTMAX: "ml", NormalizeKind.ROWS: "l"}.get(attention.normalize.kind, "")


def weighing_of(plan: Plan) -> Weighing:
    """Return how scores become weights, as expressions over the scaled dot product."""
    attention, scoring = plan.attention, plan.scoring
    normalize = attention.normalize
    score_places = places(node.span for node in walk(scoring.score) if not isinstance(node, Score))
    weight = attention.weight
    weight_places = places(node.span for node in walk(weight)) if weight is not None else ""
    if normalize.kind is NormalizeKind.SOFTMAX:
        if scoring.score_log2 is None:
            raise InternalError("softmax without a score in base 2")
        return Weighing(scoring.score_log2, weight, score_places, weight_places)
    score = scoring.score
    zero = Const(0.0, Type.FLOAT)
    match normalize.kind:
        case NormalizeKind.SIGMOID:
            biased = score if normalize.bias is None else Binary(BinaryOp.ADD, score, normalize.bias, Type.FLOAT)
            score = Call(Function.SIGMOID, (biased,), Type.FLOAT)
        case NormalizeKind.RELU:
            # Not `max(x, 0)`: a NaN must reach its row.
            positive = Where(Binary(BinaryOp.LE, score, zero, Type.BOOL), zero, score, Type.FLOAT)
            power = normalize.power or Const(1.0, Type.FLOAT)
            score = Binary(BinaryOp.POW, positive, power, Type.FLOAT)
        case NormalizeKind.ROWS | NormalizeKind.NONE:
            pass
    if weight is not None:
        score = Binary(BinaryOp.MUL, weight, score, Type.FLOAT)
    parts = [score_places, weight_places, place(normalize.span)]
    return Weighing(score, None, ", ".join(dict.fromkeys(part for part in parts if part)))


def aliases_of(attention: Attention, sweep: Sweep) -> dict[str, str]:
    """Where positions are rows, `q_idx` is both, and bounds of a tile are rows too; so is a class its first row."""
    if not is_unshifted(attention):
        return {}
    same = {"row_idx": "q_idx", "shift": "0"}
    match sweep.query.kind:
        case MapKind.IDENTITY:
            return same | {"row_lo": "q_lo"}
        case MapKind.RESIDUE:
            return same | {"q_lo": "row_lo", "residue": "first_row"}
        case MapKind.RUNS | MapKind.GRID:
            return same
        case MapKind.BOX:
            raise InternalError("queries do not lie in a box")


def _write_row(writer: Writer, expr: Expr | None, stem: str) -> str:
    if expr is None:
        return ""
    return writer.root(expr, f"row_{stem}", places(node.span for node in walk(expr))).text


def _write_careful(writer: Writer, sweep: Sweep, weighing: Weighing) -> Body | None:
    """Write the loop body for the whole mask; needed where some loop tests more than the end of the keys."""
    if all(fold(interval.residual) == TRUE for one in sweep.passes for interval in one.tiles.intervals):
        return None
    writer.blocks, writer.margin = [writer.blocks[0], Block()], 4
    writer.aliases["BLOCK_N"] = "CHUNK_N"
    body = write_body(writer, And((sweep.mask, _REAL_KEY)), weighing)
    del writer.aliases["BLOCK_N"]
    writer.blocks, writer.margin = writer.blocks[:1], 1
    return body


def _close(
    writer: Writer,
    loops: tuple[Loop[Body], ...],
    careful: Body | None,
    rows: RowOrder | None,
    careful_order: KeyOrder | None,
    texts: tuple[str, ...],
) -> frozenset[str]:
    """Return all fixed names that the kernel mentions, those of the template's own statements included.

    `texts` are written before all loops, besides the writer's statements there.
    """
    used = {*writer.used, "N", "H", "B", "take_turn", "count_deals", "dealt_tile"}
    if loops:
        used |= {"M", "g", "value", "draw_rows", "keeps_pair", "shift"}
    if len(loops) > 1:
        used.add("floor_mod")
    if careful is not None:
        used |= {"is_spoiled", "finite_part", "nonfinite_code", "nonfinite_sum"}
    if any(loop.order is None for loop in loops):
        used |= {"values", "tile_source", "read_tile"}
    if any(loop.order is None and loop.body.uses_dot for loop in loops):
        used.add("keys")
    if any(loop.body.uses_dot for loop in loops) or (careful is not None and careful.uses_dot):
        used.add("dot")
    if rows is None or any(loop.order is not None and loop.order.step for loop in loops):
        used.add("load_tile")
    orders = (rows, careful_order, *(loop.order for loop in loops))
    if any(order is not None for order in orders) or (careful is not None and careful.uses_dot):
        used.add("gather_tile")
    if rows is not None and rows.classes and used & {"residue", "q_lo", "q_hi"}:
        used |= {"floor_div", "floor_mod", "shift"} | ({"first_local"} if used & {"q_lo", "q_hi"} else set())
    if any(body.factor for body in (*(loop.body for loop in loops), *([careful] if careful else []))):
        used.add("weighted_exp2")
    if "kv_hi" in used:
        used.add("kv_lo")
    if used & {"q_hi", "q_lo", "q_idx"}:
        used.add("shift")
    if not loops and "shift" not in used and not _names("M", (*texts, *writer.blocks[0].lines)):
        used -= {"M"}  # it stands in a shift that only finishing rows does not ask for
    return frozenset(used)


def _names(name: str, texts: tuple[str, ...]) -> bool:
    """Tell whether texts mention a name."""
    return any(re.search(rf"\b{name}\b", text) for text in texts)


def _parameters(
    attention: Attention,
    used: frozenset[str],
    tables: Tables,
    sweep: Sweep,
    *,
    careful: bool,
    ranged: bool,
    fused: bool,
) -> tuple[Argument, ...]:
    """Return the kernel's parameters and what the launcher passes for them, in order."""
    dot, call = "dot" in used, "step" if "value" in used else "call"
    tensors = {"query": "q", "key": "k"} if dot else {}
    if "value" in used:
        tensors["value"] = "v"
    if sweep.is_last:
        tensors["out"] = "o"
    values = [Argument(f"{tensor}_ptr", f"{call}.{tensor}") for tensor in tensors]
    if sweep.is_last:
        values.extend(Argument(f"{one}_ptr", f"{call}.{one}") for one in state_tensors(state_of(attention)))
    if sweep.before or not sweep.is_last:
        values.append(Argument("kept_out_ptr", f"{call}.kept_out"))
        values.extend(Argument(f"kept_{one}_ptr", f"{call}.kept_{one}") for one in kept_sums(attention))
    if "value" in used:
        values.append(Argument("part_out_ptr", f"{call}.part_out"))
        values.extend(Argument(f"part_{one}_ptr", f"{call}.part_{one}") for one in kept_sums(attention))
    values.extend(argument for table in tables.all for argument in table.arguments.values())
    for tensor, letter in tensors.items():
        for axis, suffix in enumerate("bhn"):
            values.append(Argument(f"{letter}_stride_{suffix}", f"{call}.{tensor}.stride({axis})"))
    values.extend(Argument(size, f"{call}.{size}", specialize=False) for size in "NMHgBD" if size in used)
    values.append(Argument("turn", f"{call}.turn", specialize=False))
    if ranged:
        values.extend(Argument(name, f"{call}.{name}", specialize=False) for name in ("row_start", "row_end"))
    constants = [("VALUE_SIZE", "value_size"), ("BLOCK_M", "tiles.query")]
    if "value" in used:
        constants.append(("BLOCK_N", "tiles.key"))
    constants.append(("BLOCK_V", "block_v"))
    if dot:
        values.append(Argument("qk_scale", f"{call}.qk_scale", specialize=False))
        constants.extend([("HEAD_SIZE", "head_size"), ("BLOCK_D", "block_d")])
    if dot and attention.scale is not None:
        constants.append(("SCALE_GIVEN", "scale_given"))
    if careful:
        constants.extend([("CHUNK_N", "chunk_n"), ("CHUNK_V", "chunk_v")])
    if "value" in used:
        constants.extend([("PRECISION", "precision"), ("SHARES", "shares"), ("JOINED", "joined")])
        values.extend(dropout_arguments(call))
    constants.append(("PERSISTENT", "persistent"))
    if fused:
        constants.append(("FUSED", "fused"))
    if "values" in used:
        constants.append(("DESCRIPTORS", "tiles.descriptors"))
    if "index_type" in used:
        constants.append(("WIDE_TABLES", "wide_tables"))
    values.extend(Argument(name, f"{call}.{source}", constant=True) for name, source in constants)
    return tuple(values)
