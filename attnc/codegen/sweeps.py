"""Which passes of a plan share a kernel, and how the kernels of one call hand their sums on.

Passes with the same order of queries become one kernel: a program walks the keys of each in turn and keeps one running
maximum and sum, so that nothing has to be merged. Kernels with different orders of queries run one after the other;
all but the last one leave their sums unnormalised in float32, and a later one starts from what it finds there, as if
it had summed those keys itself. The last one sees every row and writes the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.coordinates import IDENTITY, CoordinateMap, MapKind
from attnc.codegen.int_ranges import POSITION_LIMIT
from attnc.diagnostics import InternalError
from attnc.ir.nodes import FALSE, TRUE, And, Binary, BinaryOp, Const, Expr, Index, IndexName, Or
from attnc.ir.types import Type
from attnc.plan.kernel_plan import Form, Pass, Plan, Trend
from attnc.plan.row_lengths import trend_together

_LAST = {MapKind.RUNS: 0, MapKind.RESIDUE: 1, MapKind.GRID: 1, MapKind.IDENTITY: 2}
"""Some rows first, all rows in plain order last."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one kernel computes.

    Attributes:
        query: the order of its rows.
        passes: whose keys a program walks, one after the other.
        label: what tells the kernel from others of the same call; empty for the one in plain order.
        before: orders of rows of what has run before it.
        is_last: whether it writes the result, and does not leave sums for another kernel.
    """

    query: CoordinateMap
    passes: tuple[Pass, ...]
    label: str = ""
    before: tuple[CoordinateMap, ...] = ()
    is_last: bool = True

    @property
    def mask(self) -> Expr:
        """The pairs that it computes."""
        masks = tuple(one.mask for one in self.passes)
        if not masks:
            return FALSE
        return masks[0] if len(masks) == 1 else Or(masks)

    @property
    def resumed(self) -> Expr:
        """Which of its rows are summed for before it: a bool over the position of the query."""
        if any(_covers_all(one) for one in self.before):
            return TRUE
        tests = tuple(_is_inside(one) for one in self.before)
        if not tests:
            return FALSE
        return tests[0] if len(tests) == 1 else Or(tests)

    @property
    def most_keys(self) -> int | None:
        """About how many keys a program visits at most, where no longer sequence has more."""
        counts = [one.most_keys for one in self.passes if one.most_keys is not None]
        return sum(counts) if len(counts) == len(self.passes) else None

    @property
    def trend(self) -> Trend:
        """How the number of keys changes along its rows."""
        return trend_together(one.trend for one in self.passes)

    @property
    def query_tile(self) -> int:
        """Most rows for which the residuals hold."""
        return min((one.tiles.query_tile for one in self.passes), default=POSITION_LIMIT)

    @property
    def key_tile(self) -> int:
        """Most keys for which the residuals hold."""
        return min((one.tiles.key_tile for one in self.passes), default=POSITION_LIMIT)


def sweeps_of(plan: Plan) -> tuple[Sweep, ...]:
    """Return the kernels of a plan in the order in which they run; the last one computes every row."""
    groups: dict[CoordinateMap, list[Pass]] = {}
    for one in plan.passes:
        _require_supported(one)
        groups.setdefault(one.layout.query, []).append(one)
    orders = sorted(groups, key=lambda order: _LAST[order.kind])
    if not orders or not _covers_all(orders[-1]):
        orders.append(IDENTITY)
        groups[IDENTITY] = []
    labels = _labels(orders)
    first = (IDENTITY,) if plan.resumed else ()
    return tuple(
        Sweep(order, tuple(groups[order]), label, (*first, *orders[:number]), number == len(orders) - 1)
        for number, (order, label) in enumerate(zip(orders, labels, strict=True))
    )


def _require_supported(one: Pass) -> None:
    if one.form not in (Form.SOFTMAX, Form.LIBRARY):
        raise InternalError("Triton kernels run quadratic passes")
    query, key = one.layout.query, one.layout.key
    if max(query.period, key.period) >= POSITION_LIMIT:
        raise InternalError("a layout repeats after more positions than a kernel can count")
    if query.kind is MapKind.RESIDUE and query.first:
        raise InternalError("classes of queries are numbered by what their positions leave over")
    if key.kind is MapKind.RESIDUE and query.kind is not MapKind.RESIDUE:
        raise InternalError("keys in classes need queries in classes")
    if key.kind is MapKind.BOX and key.axes != query.axes:
        raise InternalError("boxes lie around tiles of queries")


def _covers_all(order: CoordinateMap) -> bool:
    return order.kind is not MapKind.RUNS


def _is_inside(order: CoordinateMap) -> Expr:
    over = Binary(BinaryOp.MOD, Index(IndexName.QUERY), _int(order.period), Type.INT)
    below = Binary(BinaryOp.LT, over, _int(order.first + order.length), Type.BOOL)
    return And((Binary(BinaryOp.GE, over, _int(order.first), Type.BOOL), below)) if order.first else below


def _labels(orders: list[CoordinateMap]) -> list[str]:
    """Name kernels after their rows: `residue_128`, `grid_128`, `rows`, `rows_2`, and nothing for plain order."""
    stems: list[str] = []
    found: list[str] = []
    for order in orders:
        match order.kind:
            case MapKind.IDENTITY:
                stem = ""
            case MapKind.RESIDUE:
                stem = f"residue_{order.period}"
            case MapKind.GRID:
                stem = f"grid_{order.axes[0].stride}"
            case MapKind.RUNS:
                stem = "rows"
            case MapKind.BOX:
                raise InternalError("queries do not lie in a box")
        stems.append(stem)
        count = stems.count(stem)
        found.append(stem if count == 1 else f"{stem}_{count}")
    return found


def _int(value: int) -> Expr:
    return Const(value, Type.INT)


def positions_apart(sweep: Sweep) -> int:
    """Return how far apart positions of rows and of keys are that follow each other in all passes; 0 if they vary."""
    orders = [order for one in sweep.passes for order in (one.layout.query, one.layout.key)]
    if any(order.kind not in (MapKind.IDENTITY, MapKind.RESIDUE) for order in orders):
        return 0
    steps = {order.period for order in orders}
    return steps.pop() if len(steps) == 1 else 0
