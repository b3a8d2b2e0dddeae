"""What the template of kernels in Gluon lays out: the Triton kernel's view, divided among three partitions.

`templates/gluon_kernel.py.jinja` renders a `GluonView`, named `gluon`, to a kernel `_<name>_gluon_kernel` for sm_90 and
its parts. Intervals, residuals, scores and everything else that belongs to a pattern are those of `kernel_view`, as
text; here they get the names that Gluon has for what Triton's language does. Which patterns have no such kernel is
decided by `unsuitable_for_gluon` alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from attnc.algebra.coordinates import IDENTITY
from attnc.codegen.functions_triton import fold
from attnc.codegen.kernel_pieces import pair_work, tile_lines
from attnc.codegen.kernel_view import KernelView, kernel_view, weighing_of
from attnc.codegen.loops import Body
from attnc.codegen.reads_triton import Argument
from attnc.codegen.sweeps import Sweep, sweeps_of
from attnc.ir.nodes import TRUE, Binary, BinaryOp, Call, Expr, IndexName, Read, Score
from attnc.ir.program import NormalizeKind
from attnc.ir.walk import indices, walk
from attnc.plan.configs import TileConfig, TileRow
from attnc.plan.kernel_plan import Form, Plan

ROWS = "ROWS"
"""What kernels call the rows of one group of warps."""

GROUP_ROWS, GROUPS = 64, 2

KEYS = {
    # head size: keys of a tile by the most operations on a pair, and by the most loops, for which nothing spills
    64: ((6, 5, 128), (20, 8, 64)),
    128: ((5, 2, 128), (14, 5, 64), (20, 8, 32)),
}
CALL_WORK, KEY_WORK = 8, 4
"""Operations that a function of scores counts as, and a division or a read by keys: their steps take registers beside
those of scores and weights."""

MOST_LOOPS = 8
"""Loops over keys beyond which their bounds alone take too many registers."""

RESERVED = frozenset(
    re.findall(
        r"\w+",
        """
        gl gluon mbarrier tma mma_v2 warpgroup_mma warpgroup_mma_wait fence_async_shared load_described store_described
        load_query load_tiles start_scores start_sums free_buffer scale_rows as_weights
        query_desc key_desc value_desc out_desc query_ready key_ready key_free value_ready value_free stage turn dots
        scores sums weights few left right row_layout key_layout ROWS STAGES number never p_new out_row out_column
        empty base_2_lse q_row codes nothing d_dim k_part v_part kv_place described dtype columns whole
        """,
    )
) | frozenset(f"{name}_{number}" for name in ("begin", "end") for number in range(32))
"""Names with a meaning of their own in every kernel in Gluon."""

_SAME = frozenset(
    re.findall(
        r"\w+",
        """
        abs cdiv erf exp exp2 float32 float64 floor int1 int16 int32 int64 int8 load log log2 maximum minimum sqrt
        to_tensor uint32 uint64 where
        """,
    )
)
"""Names of Triton's language that Gluon has as well."""

_TRITON_ONLY = frozenset({"PropagateNan", "sigmoid"})
"""Names that kernels in Gluon take from Triton's language."""

_NAME = re.compile(r"\btl\.(\w+)")
_BLOCK_OF_CONSTANTS = re.compile(r"\btl\.full\(\[\w")


@dataclass(frozen=True, slots=True)
class GluonLoop:
    """One interval.

    Attributes:
        title: comment above it.
        bounds: statements that compute `begin_<number>` and `end_<number>`.
        weigh: name of the function that turns dot products of a tile into weights.
        arguments: what that takes besides the dot products, the first key, and the rows' maxima and sums.
        body: scores and masks.
    """

    number: int
    title: str
    bounds: tuple[str, ...]
    weigh: str
    arguments: tuple[str, ...]
    uses_kv_idx: bool
    uses_kv_hi: bool
    body: Body


@dataclass(frozen=True, slots=True)
class GluonView:
    """A kernel in Gluon as text and flags.

    Attributes:
        kernel: the Triton kernel's view, in Gluon's names.
        stem: what its functions' names begin with.
        identity: what tuned tiles know it by.
        prologue: those statements before all loops on which bounds depend.
        bound_uses, row_uses, repair_uses: names that bounds, the rows of a group and the second walk depend on.
        row_arguments: what the function of a group of warps takes besides what all have.
        repair_arguments: the same of the second walk; empty without one.
        parameters, unspecialized, call: as of `KernelView`.
        table: name of the table of its tiles.
        tiles: its lines.
    """

    kernel: KernelView
    stem: str
    identity: str
    prologue: tuple[str, ...]
    loops: tuple[GluonLoop, ...]
    bound_uses: frozenset[str]
    row_uses: frozenset[str]
    repair_uses: frozenset[str]
    row_arguments: tuple[str, ...]
    repair_arguments: tuple[str, ...]
    parameters: tuple[str, ...]
    unspecialized: tuple[str, ...]
    call: tuple[tuple[str, str], ...]
    table: str
    tiles: tuple[str, ...]


def unsuitable_for_gluon(plan: Plan) -> str:
    """Return why a plan has no kernel in Gluon; empty if it has one."""
    if plan.attention.normalize.kind is not NormalizeKind.SOFTMAX:
        return "its weights are not a softmax"
    if any(one.form not in (Form.SOFTMAX, Form.LIBRARY) for one in plan.passes):
        return "its cost is linear in the length"
    if plan.attention.weight is not None:
        return "its weights have factors"
    sweep, *others = sweeps_of(plan)
    orders = [order for one in sweep.passes for order in (one.layout.query, one.layout.key)]
    if others or any(order != IDENTITY for order in orders):
        return "its queries or keys are not walked in plain order"
    intervals = [interval for one in sweep.passes for interval in one.tiles.intervals]
    if not intervals:
        return "no key is ever visited"
    if len(intervals) > MOST_LOOPS:
        return f"it has {len(intervals)} loops over keys, and there are registers for the bounds of {MOST_LOOPS}"
    if any(interval.tile_test is not None and fold(interval.tile_test) != TRUE for interval in intervals):
        return "data decide which tiles of keys are visited"
    if sweep.query_tile < GROUPS * GROUP_ROWS or sweep.key_tile < GROUP_ROWS:
        return f"its mask is derived for tiles of {sweep.query_tile} queries and {sweep.key_tile} keys"
    if not any(isinstance(node, Score) for node in walk(fold(weighing_of(plan).score))):
        return "its score does not depend on queries and keys"
    unknown = _unknown(_texts(_triton_view(plan, sweep, "")))
    return f"Gluon has no `{unknown}`" if unknown else ""


def gluon_view(plan: Plan, *, variant: str, identity: str) -> GluonView:
    """Decide everything about the kernel in Gluon of a plan that `unsuitable_for_gluon` has nothing against.

    Args:
        plan: the plan.
        variant: what tells the kernels of this plan from those of other lengths.
        identity: what tuned tiles know the Triton kernel by.
    """
    sweep = sweeps_of(plan)[0]
    triton_view = _triton_view(plan, sweep, variant)
    kernel = _in_gluon(triton_view)
    stem = kernel.function.removesuffix("_kernel") + "_gluon"
    statements = _statements(kernel.prologue)
    given = [name for name, _ in kernel.call if name not in _TRITONS_OWN]
    own = [name for statement in statements for name in statement.defined]
    known = ["head", "batch", "qk_scale", *_POSITIONS, *given, *own]
    loops = tuple(
        _loop(kernel, number, f"{stem}_weigh", list(dict.fromkeys(known))) for number in range(len(kernel.loops))
    )
    bounds = [line for loop in loops for line in loop.bounds]
    needed = _slice(statements, _tokens(bounds))
    own_lines = [*kernel.prologue, kernel.scale, "SCALE_GIVEN" if kernel.scale else ""]
    careful = [*kernel.careful.lines, kernel.careful.mask] if kernel.careful is not None else []
    bound_uses = _uses(kernel, [*needed, *bounds])
    row_uses = _uses(kernel, [*own_lines, kernel.sink, "N H", *(name for loop in loops for name in loop.arguments)])
    repair_uses = _uses(kernel, [*own_lines, *careful, "N H M qk_scale", *_MEMORY]) if careful else frozenset()
    values = _arguments(kernel, bound_uses | row_uses | repair_uses)
    return GluonView(
        kernel=kernel,
        stem=stem,
        identity=f"{identity} gluon",
        prologue=needed,
        loops=loops,
        bound_uses=bound_uses,
        row_uses=row_uses,
        repair_uses=repair_uses,
        row_arguments=tuple(name for name in given if name in row_uses),
        repair_arguments=tuple(name for name in given if name in repair_uses),
        parameters=tuple(one.declaration.replace("tl.", "gl.") for one in values),
        unspecialized=tuple(one.name for one in values if not one.specialize),
        call=tuple((one.name, one.value) for one in values),
        table=f"{stem}_tiles",
        tiles=_tiles(plan, sweep),
    )


def _triton_view(plan: Plan, sweep: Sweep, variant: str) -> KernelView:
    return kernel_view(plan, sweep, variant=variant, rows=ROWS, reserved=RESERVED)


def _texts(kernel: KernelView) -> list[str]:
    """Return every line of a kernel that is written from a pattern's expressions."""
    texts = [*kernel.before_shift, kernel.shift, *kernel.prologue, kernel.scale, kernel.sink]
    for loop in kernel.loops:
        texts.extend((*loop.setup, loop.body.text))
    return texts if kernel.careful is None else [*texts, kernel.careful.text]


def _unknown(texts: Iterable[str]) -> str:
    """Return what Gluon lacks of that which these lines use of Triton's language; empty if nothing."""
    text = "\n".join(texts)
    if _BLOCK_OF_CONSTANTS.search(text):
        return "tl.full of a block without a layout"
    names = (name for name in _NAME.findall(text) if name not in (*_SAME, *_TRITON_ONLY, "full"))
    return next((f"tl.{name}" for name in names), "")


def _translated(text: str) -> str:
    """Write a line in Gluon's names."""
    return _NAME.sub(lambda found: found[0] if found[1] in _TRITON_ONLY else f"gl.{found[1]}", text)


def _in_gluon(kernel: KernelView) -> KernelView:
    """Return a view whose lines are in Gluon's names."""

    def lines(found: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(_translated, found))

    def body(found: Body) -> Body:
        return replace(found, lines=lines(found.lines), mask=_translated(found.mask), factor=_translated(found.factor))

    return replace(
        kernel,
        before_shift=lines(kernel.before_shift),
        shift=_translated(kernel.shift),
        prologue=lines(kernel.prologue),
        scale=_translated(kernel.scale),
        sink=_translated(kernel.sink),
        loops=tuple(replace(loop, setup=lines(loop.setup), body=body(loop.body)) for loop in kernel.loops),
        careful=None if kernel.careful is None else body(kernel.careful),
    )


_POSITIONS = ("row_idx", "row_lo", "q_idx", "q_lo", "q_hi", "shift", "index_type")
"""What a group of warps knows of its rows."""

_MEMORY = tuple(
    f"{name}{suffix}"
    for name, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
    for suffix in ("_ptr",)
) + tuple(f"{letter}_stride_{axis}" for letter in "qkvo" for axis in "bhn")
"""What a second walk reads and writes by."""

_ALWAYS = ("N", "H", "g", "qk_scale")

_TRITONS_OWN = frozenset(
    re.findall(
        r"\w+",
        """
        lse_ptr total_ptr part_out_ptr part_m_ptr part_l_ptr seed_ptr drop_below keep_scale DROPOUT VALUE_SIZE BLOCK_M
        BLOCK_N BLOCK_V HEAD_SIZE BLOCK_D CHUNK_N CHUNK_V PRECISION SHARES JOINED PERSISTENT DESCRIPTORS row_start
        row_end
        """,
    )
)
"""Parameters of the Triton kernel that the kernel in Gluon has no use for, or its own of the same name."""

_DESCRIBED = (
    Argument("query_desc", "described.query"),
    Argument("key_desc", "described.key"),
    Argument("value_desc", "described.value"),
    Argument("out_desc", "described.out"),
    Argument("lse_ptr", "described.lse"),
)
_CONSTANTS = (
    Argument("HEAD_SIZE", "call.head_size", constant=True),
    Argument("BLOCK_N", "described.tiles.key", constant=True),
    Argument("STAGES", "described.tiles.stages", constant=True),
)


def _arguments(kernel: KernelView, used: frozenset[str]) -> tuple[Argument, ...]:
    """Return the kernel's parameters and what the launcher passes for them, in order."""
    constants = {line.partition(":")[0] for line in kernel.parameters if ":" in line}
    found: list[Argument] = []
    for name, value in kernel.call:
        if name not in _TRITONS_OWN and (name in used or name in _ALWAYS):
            value = f"call.{value.removeprefix('step.')}" if value.startswith("step.") else value
            free = name not in kernel.unspecialized
            found.append(Argument(name, value, specialize=free, constant=name in constants))
    return (*_DESCRIBED, *found, *_CONSTANTS)


def _loop(kernel: KernelView, number: int, weigh: str, known: Sequence[str]) -> GluonLoop:
    loop = kernel.loops[number]
    names = _chosen(known, [*loop.body.lines, loop.body.mask, "qk_scale", "M" if loop.uses_kv_hi else ""])
    *setup, begin, end = loop.setup
    before = number - 1
    begin = re.sub(r"\bend\b", f"end_{before}", re.sub(r"\bbegin\b", f"begin_{number}", begin))
    end = re.sub(r"\bend\b", f"end_{number}", re.sub(r"\bbegin\b", f"begin_{number}", end))
    if begin.endswith("= 0"):
        begin = f"begin_{number} = gl.to_tensor(0)"
    return GluonLoop(
        number=number,
        title=loop.title,
        bounds=(*setup, begin, end),
        weigh=f"{weigh}_{number}",
        arguments=names,
        uses_kv_idx=loop.uses_kv_idx,
        uses_kv_hi=loop.uses_kv_hi,
        body=loop.body,
    )


def _tokens(lines: Iterable[str]) -> set[str]:
    return {name for line in lines for name in re.findall(r"[A-Za-z_]\w*", line.partition("  # ")[0])}


def _uses(kernel: KernelView, lines: Iterable[str]) -> frozenset[str]:
    """Return the names that some lines depend on, those of positions and of the shift included."""
    found = _tokens(lines)
    if kernel.shift and found & {"shift", "q_idx", "q_lo", "q_hi"}:
        found |= {"shift"} | _tokens([*kernel.before_shift, kernel.shift])
    if "q_hi" in found:
        found.add("N")
    return frozenset(found | ({"WIDE_TABLES"} if "index_type" in found else set()))


def _chosen(names: Sequence[str], lines: Iterable[str]) -> tuple[str, ...]:
    """Return the names that these lines mention, in their own order."""
    found = _tokens(lines)
    return tuple(name for name in names if name in found)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A statement, with the comments above it, and the names that it assigns and reads."""

    lines: tuple[str, ...]
    defined: tuple[str, ...]
    read: frozenset[str]


def _statements(lines: Sequence[str]) -> tuple[_Statement, ...]:
    text = [part for line in lines for part in line.split("\n")]
    found: list[_Statement] = []
    start = 0
    for node in ast.parse("\n".join(text)).body:
        assert node.end_lineno is not None
        names = [child for child in ast.walk(node) if isinstance(child, ast.Name)]
        defined = tuple(name.id for name in names if isinstance(name.ctx, ast.Store))
        found.append(_Statement(tuple(text[start : node.end_lineno]), defined, frozenset(name.id for name in names)))
        start = node.end_lineno
    return tuple(found)


def _slice(statements: Sequence[_Statement], wanted: set[str]) -> tuple[str, ...]:
    """Return the lines of those statements that some names depend on."""
    chosen: list[_Statement] = []
    for statement in reversed(statements):
        if wanted & set(statement.defined):
            chosen.append(statement)
            wanted = wanted | statement.read
    return tuple(line for statement in reversed(chosen) for line in statement.lines)


def _key_steps(expr: Expr) -> int:
    """Count divisions and reads by keys."""
    divisions = (BinaryOp.FLOORDIV, BinaryOp.MOD)
    nodes = (
        node for node in walk(expr) if isinstance(node, Read) or (isinstance(node, Binary) and node.op in divisions)
    )
    return sum(IndexName.KEY in indices(node) for node in nodes)


def _tiles(plan: Plan, sweep: Sweep) -> tuple[str, ...]:
    """Return the lines of the table of tiles: fewer keys where scores take many registers, and so more buffers."""
    score = weighing_of(plan).score
    intervals = [interval for one in sweep.passes for interval in one.tiles.intervals]
    work = pair_work(score) + max(pair_work(interval.residual) for interval in intervals)
    work += CALL_WORK * sum(isinstance(node, Call) and Score() in walk(node) for node in walk(score))
    work += KEY_WORK * (_key_steps(score) + max(_key_steps(interval.residual) for interval in intervals))
    rows = []
    for size, choices in KEYS.items():
        fitting = (keys for most, loops, keys in choices if work <= most and len(intervals) <= loops)
        keys = min(next(fitting, choices[-1][2]), 1 << (sweep.key_tile.bit_length() - 1))
        stages = min(4, 2 * (128 // size) * (128 // keys))
        rows.append(TileRow("sm_90", 2, size, (TileConfig(GROUPS * GROUP_ROWS, keys, 4, stages),)))
    return tuple(line for row in rows for line in tile_lines(row))
