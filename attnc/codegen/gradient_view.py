"""What the templates of gradient kernels lay out.

There are two kinds, and a third one for tables. One computes gradients of queries: its programs have rows of the query
tensor and walk keys, as those of the output do. The other computes gradients of keys and values: its programs have rows
of those, and walk queries, in the terms of the transposed attention (`plan.transposed`). Its scores are transposed as
well: a tile of `K Q^T`, whose transposed weights multiply output gradients and queries without being turned around.

Kernels of one kind that have different orders of rows run one after the other, and add to what is there. Weights are
computed again from what the forward pass has kept of each row; nothing is quadratic in the length, and nothing is added
up in an order that is not fixed. Tables that are read for each pair have kernels that leave what pairs contribute, a
strip of rows at a time (`runtime.gradient_strips`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnc.algebra.coordinates import IDENTITY, KEY_REACH, CoordinateMap, MapKind, query_reach
from attnc.algebra.gradients import Axes
from attnc.algebra.int_exprs import ZERO
from attnc.algebra.summaries import summary_tensor
from attnc.codegen.default_tiles import gradient_traits
from attnc.codegen.expr_triton import Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.gradient_loops import GradientBody, Slopes, slopes_of, write_gradient_body
from attnc.codegen.gradient_parameters import Kind, ReadSum, gradient_parameters, used_names
from attnc.codegen.kernel_pieces import (
    InputView,
    header_of,
    identity_of,
    input_view,
    is_unshifted,
    tile_lines,
    write_scale,
    write_shift,
)
from attnc.codegen.kernel_text import GRADIENT_NAMES, MATH_FUNCTIONS, Block, Names, Shape
from attnc.codegen.kernel_view import aliases_of, weighing_of
from attnc.codegen.launch_view import part_name, summaries_text, variant_name
from attnc.codegen.loops import Loop, Walk, write_loop
from attnc.codegen.positions import KeyOrder, RowOrder, write_key_order, write_query_order, write_row_order
from attnc.codegen.reads_triton import Tables
from attnc.codegen.sweeps import Sweep, positions_apart, sweeps_of
from attnc.ir.nodes import TRUE, And, Binary, BinaryOp, Expr, Index, IndexName, SizeName
from attnc.ir.program import Attention, NormalizeKind
from attnc.ir.types import Type
from attnc.plan.configs import Traits, gradient_tile_rows
from attnc.plan.kernel_plan import Plan, Trend
from attnc.plan.row_state import state_of
from attnc.plan.transposed import transposed_plan

ROW_AXES = (Axes.HEAD, Axes.ROW)
KEY_AXES = (Axes.ROW,)
"""In the terms of the transposed attention, whose rows are keys."""


_AXES = {Kind.QUERIES: ROW_AXES, Kind.KEYS: KEY_AXES, Kind.PAIRS: (Axes.DIAGONAL, Axes.PAIR)}

_TURNED = {
    "q_idx": "kv_idx",
    "kv_idx": "q_idx",
    "q_lo": "kv_lo",
    "kv_lo": "q_lo",
    "q_hi": "kv_hi",
    "kv_hi": "q_hi",
    "BLOCK_M": "BLOCK_N",
    "BLOCK_N": "BLOCK_M",
}
"""What a kernel of keys calls coordinates of the transposed attention."""


@dataclass(frozen=True, slots=True)
class GradientKernel:
    """A kernel of gradients as text and flags.

    Attributes:
        of_keys: whether its rows are keys; otherwise they are queries.
        of_pairs: whether it leaves what each pair contributes to gradients of tables, and computes no other ones.
        passes, extra, apart: see `runtime.gradient_strips.pair_strips`.
        state: what the forward pass has kept of each query: `lse`; `peak` and the total; the `total` alone; or nothing.
        scale: text of the pattern's own scale; empty where the launcher computes it.
        scale_axis: `[:, None]` or `[None, :]` where it differs between queries.
        adds: whether gradients of some rows are there already.
        reads: sums for gradients of tables.
        careful: body of the second walk that a NaN or infinity of a masked pair asks for; None if no pair is masked.
        careful_order: of what that walk goes over; None for plain order.
        others: as those of `KernelView`.
    """

    function: str
    table: str
    identity: str
    header: tuple[str, ...]
    of_keys: bool
    of_pairs: bool
    passes: int
    extra: int
    apart: int
    state: str
    before_shift: tuple[str, ...]
    shift: str
    clamped: bool
    prologue: tuple[str, ...]
    loops: tuple[Loop[GradientBody], ...]
    scale: str
    scale_axis: str
    reverse: bool
    uneven: bool
    rows: RowOrder | None
    adds: bool
    reads: tuple[ReadSum, ...]
    careful: GradientBody | None
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
        """Whether programs take turns at the pairs of the same rows: here none do."""
        return False

    @property
    def dealt(self) -> bool:
        """Whether a program may get several tiles of rows: here each has one."""
        return False

    @property
    def read_numbers(self) -> tuple[int, ...]:
        """Numbers of the reads that it sums up."""
        return tuple(one.number for one in self.reads)

    def sum_of(self, number: int) -> ReadSum:
        """Return the sum for a read."""
        return next(one for one in self.reads if one.number == number)


def _kernels(kind: Kind, own: Plan, plan: Plan, summaries: tuple[str, ...], variant: str) -> tuple[GradientKernel, ...]:
    """Decide about the kernels of one kind.

    Args:
        kind: of the kernels.
        own: of the attention, or of the transposed one for keys.
        plan: of the attention, for some lengths, alone.
        summaries: that are made before the kernels.
        variant: what tells the kernels of this plan from those of other lengths.
    """
    sweeps = [sweep for sweep in sweeps_of(own) if sweep.passes]
    complete = len(sweeps) == 1 and sweeps[0].query.kind is not MapKind.RUNS
    return tuple(_kernel(kind, own, plan, summaries, sweep, variant, adds=not complete) for sweep in sweeps)


def _kernel(
    kind: Kind, own: Plan, plan: Plan, summaries: tuple[str, ...], sweep: Sweep, variant: str, *, adds: bool
) -> GradientKernel:
    """Decide about one kernel; `adds` says that others compute some of the same gradients."""
    attention, of_keys = own.attention, kind is Kind.KEYS
    softmax = attention.normalize.kind is NormalizeKind.SOFTMAX
    weighing = weighing_of(own)
    slopes = slopes_of(weighing, softmax=softmax)
    names = Names(GRADIENT_NAMES)
    tables = Tables(names, (*attention.tensors, *(summary_tensor(attention, name) for name in summaries)))
    writer = Writer(names, tables, _aliases(own, plan, sweep), transposed=of_keys)
    before_shift, shift, clamped = write_shift(writer, plan.attention)
    reverse = sweep.trend is Trend.RISING
    size = SizeName.KEYS if of_keys else SizeName.QUERIES
    rows = write_row_order(writer, sweep.query, shifted=bool(shift) and not of_keys, reverse=reverse, size=size)
    writer.base = 1 if of_keys else 0
    orders: dict[CoordinateMap, KeyOrder] = {}
    loops = _write_loops(writer, own, sweep, slopes, orders, _AXES[kind], shifted=bool(shift))
    layouts = {one.layout.key for one in sweep.passes}
    careful_order = orders.get(layouts.pop()) if len(layouts) == 1 else None
    careful = None if kind is Kind.PAIRS else _write_careful(writer, own, sweep, slopes)
    reads = _read_sums(names, slopes, _AXES[kind])
    scale, scale_axis, scale_lines = _write_scale(writer, attention, loops, softmax=softmax)
    if scale_lines:
        walks_rows = of_keys and any("q_idx" in line for line in scale_lines)
        loops = tuple(
            replace(loop, body=replace(loop.body, scale_lines=scale_lines), uses_kv_idx=loop.uses_kv_idx or walks_rows)
            for loop in loops
        )
        walked = tuple(line.replace("BLOCK_M", "CHUNK_N") for line in scale_lines) if of_keys else scale_lines
        careful = None if careful is None else replace(careful, scale_lines=walked)
    prologue = tuple(writer.blocks[0].lines)
    used = used_names(writer, loops, rows, of_keys=of_keys, careful=careful is not None)
    traits = gradient_traits(sweep, weighing, loops, of_keys=of_keys, adds=adds, shifted=bool(shift))
    tiles = gradient_tile_rows(sweep.query_tile, sweep.key_tile, traits, of_keys=of_keys)
    stem = "_".join(part for part in (attention.name, variant, kind.value, sweep.label) if part)
    state = state_of(attention)
    values = gradient_parameters(kind, attention, used, tables, reads, state, careful=careful is not None)
    return GradientKernel(
        function=f"_{stem}_gradient_kernel",
        table=f"_{stem}_gradient_tiles",
        identity="",
        header=header_of(plan.attention),
        of_keys=of_keys,
        of_pairs=kind is Kind.PAIRS,
        passes=len(sweep.passes),
        extra=sum(2 * one.layout.key.axes[0].stride for one in sweep.passes if one.layout.key.kind is MapKind.BOX),
        apart=positions_apart(sweep),
        state=state,
        before_shift=before_shift,
        shift=shift,
        clamped=clamped,
        prologue=prologue,
        loops=loops,
        scale=scale,
        scale_axis=scale_axis,
        reverse=reverse,
        uneven=sweep.trend in (Trend.RISING, Trend.FALLING),
        rows=rows,
        adds=adds,
        reads=reads,
        careful=careful,
        careful_order=careful_order if careful is not None else None,
        used=used,
        math_functions=tuple(sorted(used & MATH_FUNCTIONS)),
        parameters=tuple(value.declaration for value in values),
        unspecialized=tuple(value.name for value in values if not value.specialize),
        call=tuple((value.name, value.value) for value in values),
        inputs=tuple(input_view(table) for table in tables.all),
        traits=traits,
        tiles=tuple(line for row in tiles for line in tile_lines(row)),
    )


def _aliases(own: Plan, plan: Plan, sweep: Sweep) -> dict[str, str]:
    if not own.attention.transposed:
        return aliases_of(plan.attention, sweep)
    found = dict(_TURNED) | ({"shift": "0"} if is_unshifted(plan.attention) else {})
    match sweep.query.kind:
        case MapKind.IDENTITY:
            found["row_lo"] = "kv_lo"
        case MapKind.RESIDUE:
            found |= {"q_lo": "row_lo", "residue": "first_row"}
        case _:
            pass
    return found


def _write_loops(
    writer: Writer,
    own: Plan,
    sweep: Sweep,
    slopes: Slopes,
    orders: dict[CoordinateMap, KeyOrder],
    wanted: tuple[Axes, ...],
    *,
    shifted: bool,
) -> tuple[Loop[GradientBody], ...]:
    """Write the loops of each pass in turn, and the orders of what they walk."""
    loops: list[Loop[GradientBody]] = []

    def body(writer: Writer, mask: Expr) -> GradientBody:
        return write_gradient_body(writer, mask, slopes, wanted)

    for one in sweep.passes:
        key = one.layout.key
        opens = key != IDENTITY and key not in orders and bool(one.tiles.intervals)
        if opens:
            orders[key] = _write_order(writer, own, key, shifted=shifted)
        for position, interval in enumerate(one.tiles.intervals):
            walk = _walk(own, key, orders.get(key))
            loop = write_loop(writer, interval, body, first=position == 0, walk=walk)
            uses_keys = loop.uses_kv_idx or wanted == _AXES[Kind.PAIRS]
            loops.append(replace(loop, opens=opens and position == 0, uses_kv_idx=uses_keys))
    return tuple(loops)


def _write_order(writer: Writer, own: Plan, key: CoordinateMap, *, shifted: bool) -> KeyOrder:
    if not own.attention.transposed:
        return write_key_order(writer, key)
    return write_query_order(writer, key, query_reach(own.attention.align.kind), shifted=shifted)


def _walk(own: Plan, key: CoordinateMap, order: KeyOrder | None) -> Walk:
    attention = own.attention
    if not attention.transposed:
        return Walk(order)
    reach = query_reach(attention.align.kind)
    origin = ZERO if key.kind is MapKind.BOX or reach.first == KEY_REACH.first else key.first_from(reach.first)
    real = Binary(BinaryOp.LT, Index(IndexName.KEY), reach.past, Type.BOOL)
    return Walk(order, origin, real)


def _write_careful(writer: Writer, own: Plan, sweep: Sweep, slopes: Slopes) -> GradientBody | None:
    """Write the body of a walk over everything, for the whole mask; needed where some loop tests more than the end."""
    if all(fold(interval.residual) == TRUE for one in sweep.passes for interval in one.tiles.intervals):
        return None
    writer.blocks, writer.margin = [writer.blocks[0], Block()], 4
    usual = writer.aliases.get("BLOCK_N")
    writer.aliases["BLOCK_N"] = "CHUNK_N"
    real = _walk(own, IDENTITY, None).real
    body = write_gradient_body(writer, And((sweep.mask, real)), slopes, ())
    if usual is None:
        del writer.aliases["BLOCK_N"]
    else:
        writer.aliases["BLOCK_N"] = usual
    writer.blocks, writer.margin = writer.blocks[:1], 1
    return body


def _read_sums(names: Names, slopes: Slopes, axes: tuple[Axes, ...]) -> tuple[ReadSum, ...]:
    found = []
    for number, one in enumerate(slopes.reads):
        if one.axes in axes:
            stem = f"d_{one.read.table}"
            found.append(ReadSum(number, names.fresh(stem), names.fresh(f"{stem}_ptr")))
    return tuple(found)


def _write_scale(
    writer: Writer, attention: Attention, loops: tuple[Loop[GradientBody], ...], *, softmax: bool
) -> tuple[str, str, tuple[str, ...]]:
    """Write the pattern's own scale; return its text, its axis, and lines of each tile that it needs."""
    if attention.scale is None or not any(loop.body.uses_dot for loop in loops):
        return "", "", ()
    outer = writer.blocks[0]
    writer.blocks, writer.margin = [outer, Block()], 2
    text, shape = write_scale(writer, attention, softmax=softmax)
    lines = tuple(writer.blocks[1].lines)
    writer.blocks, writer.margin = [outer], 1
    axis = {Shape.ROW: "[:, None]", Shape.KEY: "[None, :]"}.get(shape, "")
    return text, axis, lines


@dataclass(frozen=True, slots=True)
class GradientsView:
    """The kernels of the gradients of a plan for some lengths, and their launcher.

    Attributes:
        name: what names begin with, after an underscore.
        limit: as that of a `LaunchView`.
        kernels: those of queries first.
        written: those of them that no launcher before it runs.
        state: see `GradientKernel`.
        base_2: whether scores are in base 2.
        own_scale: whether the pattern has a scale of its own.
        resumed: whether it is of what is left where a library computes a part.
        summaries: as those of a `LaunchView`.
        tables: names and lines of the tables of tiles, without those that an earlier launcher has.
    """

    name: str
    limit: int | None
    kernels: tuple[GradientKernel, ...]
    written: tuple[GradientKernel, ...]
    state: str
    base_2: bool
    own_scale: bool
    resumed: bool
    inputs: tuple[InputView, ...]
    summaries: tuple[str, ...]
    tables: tuple[tuple[str, tuple[str, ...]], ...]

    def add(self, *, of_keys: bool) -> bool:
        """Tell whether gradients of queries, or of keys, begin with 0."""
        own = [kernel for kernel in self.kernels if kernel.of_keys is of_keys and not kernel.of_pairs]
        return not own or any(kernel.adds for kernel in own)


def gradient_views(plan: Plan) -> tuple[GradientsView, ...]:
    """Decide everything about the kernels of gradients of a plan: those for any length first, then for short ones."""
    known: dict[GradientKernel, GradientKernel] = {}
    tables: dict[tuple[str, ...], str] = {}
    lengths = zip(plan.variants, plan.limits, strict=True)
    turned = [(variant, transposed_plan(variant), limit) for variant, limit in lengths][::-1]
    views = [
        _gradients_view((variant, own), variant_name(limit), limit, known, tables) for variant, own, limit in turned
    ]
    others = plan.beside_part, turned[0][1].beside_part
    if others[0] is not None and others[1] is not None:
        views.append(_gradients_view((others[0], others[1]), part_name(plan), None, known, tables))
    return tuple(views)


def _gradients_view(
    plans: tuple[Plan, Plan],
    variant: str,
    limit: int | None,
    known: dict[GradientKernel, GradientKernel],
    known_tables: dict[tuple[str, ...], str],
) -> GradientsView:
    plan, turned = plans
    summaries = tuple(dict.fromkeys((*plan.summaries, *turned.summaries)))
    views = tuple(
        view
        for kind, own in ((Kind.QUERIES, plan), (Kind.KEYS, turned), (Kind.PAIRS, plan))
        for view in _kernels(kind, own, plan, summaries, variant)
        if view.reads or kind is not Kind.PAIRS
    )
    views = tuple(replace(view, identity=identity_of(view, plan.attention.name)) for view in views)
    nameless = [replace(view, function="", table="") for view in views]
    written = tuple(view for view, same in zip(views, nameless, strict=True) if same not in known)
    known |= {same: view for view, same in zip(views, nameless, strict=True) if same not in known}
    kernels = tuple(known[same] for same in nameless)
    tables = {kernel.tiles: kernel.table for kernel in reversed(kernels) if kernel.tiles not in known_tables}
    known_tables |= tables
    kernels = tuple(replace(kernel, table=known_tables[kernel.tiles]) for kernel in kernels)
    attention = plan.attention
    inputs = tuple(
        replace(versions[0], used=any(one.used for one in versions))
        for versions in zip(*(kernel.inputs for kernel in kernels), strict=True)
    )
    return GradientsView(
        name="_".join(part for part in (attention.name, variant) if part),
        limit=limit,
        kernels=kernels,
        written=written,
        state=state_of(attention),
        base_2=attention.normalize.kind is NormalizeKind.SOFTMAX,
        own_scale=attention.scale is not None,
        resumed=plan.resumed,
        inputs=inputs,
        summaries=summaries_text(plan, summaries),
        tables=tuple((name, lines) for lines, name in reversed(tables.items())),
    )
