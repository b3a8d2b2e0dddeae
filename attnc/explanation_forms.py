"""The ways to compute one operation, with their prices: pairs, one product for all queries, chunks, landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnc.ir.nodes import SizeName
from attnc.ir.program import Attention, Deferred, NormalizeKind
from attnc.ir.shortening import shortened_count
from attnc.plan.kernel_plan import Form, Plan
from attnc.plan.linear import OVERHEAD, linear_work, pair_work

SUM_SIZE = 4
"""Bytes of a sum that is carried along: float32."""


@dataclass(frozen=True, slots=True)
class Price:
    """A way to compute an operation, over all heads of one batch entry.

    Attributes:
        form: `pairs`, `linear`, `chunked` or `nystrom`.
        flops: operations of its products.
        bytes: least traffic: arguments, results and what is carried.
        chosen: whether it is taken at this length.
    """

    form: str
    flops: int | float | None
    bytes: int
    chosen: bool

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `forms`."""
        return {"form": self.form, "flops": self.flops, "bytes": self.bytes, "chosen": self.chosen}


def find_prices(
    plan: Plan, pairs: int | float | None, sizes: dict[SizeName, int], traffic: int, element: int
) -> tuple[Price, ...]:
    """Return the forms that an operation has, the one that is taken first; empty where it has pairs alone.

    Args:
        plan: of the operation.
        pairs: allowed pairs of one head.
        sizes: of the call, keys as pairs see them.
        traffic: bytes of the arguments and the output.
        element: bytes of a number of them.
    """
    operation, heads = plan.operation, sizes[SizeName.HEADS]
    asked = operation.decompose
    features = feature_count(operation.feature, sizes[SizeName.HEAD_SIZE])
    value_size = sizes[SizeName.HEAD_SIZE]
    queries, keys = sizes[SizeName.QUERIES], sizes[SizeName.KEYS]
    mapped = 0 if operation.feature is None else (queries + keys) * features * heads * element
    quadratic = None if pairs is None else heads * pairs * 2 * (features + value_size)
    if asked is not None and asked.form == "nystrom":
        few = min(int(asked.number("landmarks")), queries, keys)
        flops = heads * few * 4 * value_size * (queries + keys) + heads * few**3 * 2 * 24
        approximation = Price("nystrom", flops, traffic + heads * few * (2 * value_size + few) * element, True)
        return approximation, Price("pairs", quadratic, traffic, False)
    if plan.linear is None:
        return ()
    width = value_size + (operation.normalize.kind is NormalizeKind.ROWS)
    work = linear_work(plan.linear, queries, keys, features, width)
    carried = work.states * features * width * SUM_SIZE * 2 * heads
    chosen = plan.linear.asked or OVERHEAD * work.products < pair_work(plan.linear, queries, keys, features, width)
    name = "chunked" if plan.linear.form is Form.CHUNKED else "linear"
    found = (
        Price(name, 2 * heads * work.products, traffic + mapped + carried, chosen),
        Price("pairs", quadratic, traffic + mapped, not chosen),
    )
    return found if chosen else found[::-1]


def feature_count(feature: Deferred | None, head_size: int) -> int:
    """Return how many numbers of a query meet as many of a key."""
    if feature is None:
        return head_size
    return {"favor": lambda: int(feature.number("features")), "cosformer": lambda: 2 * head_size}.get(
        feature.form, lambda: head_size
    )()


def surroundings(operation: Attention, length: int) -> tuple[str, ...]:
    """Say what is done to queries, keys and values before pairs are weighed."""
    found = []
    if operation.shorten is not None:
        keys = operation.shorten
        found.append(
            f"{_SHORTENED[keys.form].format(**dict_of(keys))}: {length:,} keys become {shortened_count(keys, length):,}"
        )
    found += [_PREPARED[one.form].format(**dict_of(one)) for one in operation.prepare]
    if operation.feature is not None:
        found.append(_MAPPED[operation.feature.form].format(**dict_of(operation.feature)))
    return tuple(found)


def dict_of(statement: Deferred) -> dict[str, int | float]:
    """Return the constant arguments of a statement by name."""
    return {name: statement.number(name) for name, value in statement.arguments if not isinstance(value, str)}


_SHORTENED = {
    "mean_pool": "keys and values are averaged over {window} positions, every {stride}",
    "conv": "keys and values pass a learned filter of {kernel} positions, every {stride}",
    "conv2d": "keys and values pass a learned filter of {kernel} x {kernel} positions of a grid {width} wide,"
    " every {stride}",
    "project": "keys and values are projected onto {rank} learned mixtures of up to {length} positions",
}
_PREPARED = {
    "unit": "queries and keys are divided by their lengths",
    "rms": "queries and keys are divided by the root of their mean squares",
    "rotary": "queries and keys are turned by their positions, to the base {theta:g}",
}
_MAPPED = {
    "identity": "the inner product of queries and keys takes the place of its exponential",
    "relu": "queries and keys are mapped to their positive parts",
    "elu1": "queries and keys are mapped by elu(x) + 1",
    "exp": "queries and keys are mapped by exp(x)",
    "square": "queries and keys are mapped by x ** 2",
    "favor": "the exponential of the score is approximated by {features} positive orthogonal random features",
    "cosformer": "the positive parts of queries and keys are weighed by the cosine of their distance",
}
