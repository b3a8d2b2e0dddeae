"""Low-rank keys and values of a layer: whether the factor behind their latents may be taken on the side of queries.

With latents `c = down x`, scores are the chain `q up c^T` of queries, and sums of values the chain `w c up^T` of
weights, where `up` has a part for each head of keys and values. Taken from the right, latents are *expanded* to heads;
from the left, `up` is *absorbed* into queries and results, and all heads attend to the latents themselves. The runtime
decides by the same costs at the lengths of each call (`runtime/structures/latents.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from attnc.algebra.chains import Cost, Factor, Product, cost, orders
from attnc.algebra.counting import count_pairs
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.matrices import LayerSizes, Matrix
from attnc.ir.nodes import Bound, Expr, Index, Parameter, Read, Size, SizeName
from attnc.ir.program import AlignKind, Attention, Layer, expressions
from attnc.ir.walk import walk
from attnc.plan.kernel_plan import Plan

LARGEST_LATENT = 256
"""Numbers of a latent that a head may have: kernels take no larger heads."""

COUNTED_AT = 8192
"""Pairs are counted at this length, twice and four times it, to tell how they grow."""

COUNT_OPERATIONS = 2_000_000
"""isl operations that each of these counts may take."""

NAMES = ("key", "value")


@dataclass(frozen=True, slots=True)
class Growth:
    """About how many keys a query sees: `fixed`, and a share of those up to its own or, if not `causal`, of all.

    Where data decides, that share is taken to be 1.
    """

    density: float = 1.0
    fixed: float = 0.0
    causal: bool = False

    def pairs(self, queries: int, keys: int) -> float:
        """Return about how many pairs of one head are allowed; the last query stands at the last key."""
        rows = min(queries, keys) if self.causal else queries
        before = keys - (rows - 1) / 2 if self.causal else keys
        return rows * min(before, self.fixed + self.density * before)


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """Low-rank keys or values of a layer.

    Attributes:
        name: `key` or `value`.
        rank: numbers of a latent.
        expanded_because: why latents are always expanded; empty where lengths decide.
    """

    name: str
    rank: int
    expanded_because: str = ""

    @property
    def is_choice(self) -> bool:
        """Whether there are two orders to choose from."""
        return not self.expanded_because


@dataclass(frozen=True, slots=True)
class Order:
    """One order of the products around the upper factor.

    Attributes:
        form: `absorb` or `expand`.
        products: as a formula.
    """

    form: str
    products: str
    cost: Cost


def plan_latents(layer: Layer, sizes: LayerSizes, matrices: tuple[Matrix, ...], plan: Plan) -> tuple[LatentPlan, ...]:
    """Return what is known of the low-rank ones among the keys and values of a layer.

    Args:
        layer: all of whose parameters have values.
        sizes: of the layer.
        matrices: of the layer.
        plan: of its attention.
    """
    found = []
    for matrix in matrices:
        if matrix.name in NAMES and matrix.projection.structure == "low_rank":
            reason = next(_reasons(matrix, layer, sizes, plan), "")
            found.append(LatentPlan(matrix.name, matrix.number("r"), reason))
    return tuple(found)


def growth_of(plan: Plan) -> Growth:
    """Tell how the pairs of an attention grow with the length."""
    causal = plan.facts.causal is True and plan.operation.align.kind is AlignKind.END
    counts = [
        count_pairs(plan.attention, length, length, operations=COUNT_OPERATIONS)
        for length in (COUNTED_AT, 2 * COUNTED_AT, 4 * COUNTED_AT)
    ]
    first, second, third = counts
    if first is None or second is None or third is None:
        return Growth(causal=causal)
    # pairs are a + b n + c n^2: rows see b + 2 c p keys up to position p, or b + c n of all
    curve = ((third - second) - 2 * (second - first)) / (6 * COUNTED_AT**2)
    slope = ((second - first) - 3 * curve * COUNTED_AT**2) / COUNTED_AT
    if causal:
        curve, slope = 2 * curve, slope - curve
    density = min(max(curve, Fraction(0)), Fraction(1))
    return Growth(round(float(density), 6), round(max(float(slope), 0.0), 3), causal)


def latent_orders(one: LatentPlan, sizes: LayerSizes, growth: Growth, queries: int, keys: int) -> tuple[Order, Order]:
    """Return both orders of the products around an upper factor: the one that is taken, then the other."""
    pairs = growth.pairs(queries, keys)
    up = Factor("up", sizes.head_size, one.rank, sizes.kv_heads)
    if one.name == "key":
        query = Factor("q", queries, sizes.head_size, sizes.heads)
        chains = orders((query, up, Factor("c^T", one.rank, keys)), pairs)
    else:
        weights = Factor("w", queries, keys, sizes.heads, pairs)
        across = Factor("up^T", one.rank, sizes.head_size, sizes.kv_heads)
        chains = orders((weights, Factor("c", keys, one.rank), across))
    found = [Order(_form(chain), str(chain), cost(chain)) for chain in chains]
    expand, absorb = sorted(found, key=lambda order: order.form, reverse=True)
    chosen = one.is_choice and absorb.cost.flops < expand.cost.flops
    return (absorb, expand) if chosen else (expand, absorb)


def own_scale(attention: Attention, sizes: LayerSizes) -> float | None:
    """Return the factor on the dot product as a number, which does not change with the size of latents.

    None where the attention's own `scale` does not read the head size, and so needs no such number.
    """
    if attention.scale is None:
        return float(sizes.head_size**-0.5)
    if not _reads(attention.scale, SizeName.HEAD_SIZE):
        return None
    return float(evaluate(attention.scale, Environment(sizes={SizeName.HEAD_SIZE: sizes.head_size})))


def _form(chain: Factor | Product) -> str:
    return "absorb" if isinstance(chain, Product) and isinstance(chain.left, Product) else "expand"


def _reasons(matrix: Matrix, layer: Layer, sizes: LayerSizes, plan: Plan) -> Iterator[str]:
    """Yield why latents must be expanded to heads."""
    attention = plan.operation
    if matrix.projection.via is not None:
        yield f"`via {matrix.projection.via.form}` multiplies with the whole factor"
    if matrix.number("r") > LARGEST_LATENT:
        yield f"kernels take heads of up to {LARGEST_LATENT} numbers, and latents have {matrix.number('r')}"
    if attention.shorten is not None:
        yield f"`keys {attention.shorten.form}` shortens the keys and values of heads"
    if attention.decompose is not None and attention.decompose.form == "nystrom":
        yield "`decompose nystrom` weighs no pairs of queries and keys"
    if matrix.name == "key":
        yield from _key_reasons(layer, attention, sizes)
    if plan.linear is not None:
        yield "the attention has a form of linear cost, which has other products"


def _key_reasons(layer: Layer, attention: Attention, sizes: LayerSizes) -> Iterator[str]:
    """Yield what happens to the elements of keys, or asks for their number."""
    if layer.theta is not None:
        yield "`rotary` turns the keys of heads"
    for one in attention.prepare:
        yield f"`prepare {one.form}` changes the keys of heads"
    if attention.feature is not None:
        yield f"`feature {attention.feature.form}` maps the keys of heads"
    scale = attention.scale
    if scale is not None and _is_number_but_for_head_size(scale):
        scale = None
    read = [one for one in expressions(attention) if one is not attention.scale or scale is not None]
    if any(_reads(expr, SizeName.HEAD_SIZE) for expr in read):
        yield "the attention reads the head size `D`"
    if sizes.kv_heads > 1 and any(_reads(expr, SizeName.GROUP) for expr in read):
        yield "the attention reads `g`, the query heads of each key head"


def _reads(expr: Expr, size: SizeName) -> bool:
    return any(isinstance(node, Size) and node.name is size for node in walk(expr))


def _is_number_but_for_head_size(expr: Expr) -> bool:
    """Tell whether an expression has a value as soon as `D` has one."""
    nodes = list(walk(expr))
    if any(isinstance(node, Size) and node.name is not SizeName.HEAD_SIZE for node in nodes):
        return False
    return not any(isinstance(node, Index | Read | Bound | Parameter) for node in nodes)
