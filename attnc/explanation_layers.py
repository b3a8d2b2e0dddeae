"""What the plan of a layer means in numbers: parameters, work and traffic of each projection and of its attention."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from attnc.explanation import explain_plan
from attnc.explanation_counts import call_sizes
from attnc.explanation_latents import CacheSize, LatentPrices, cache_size, latent_prices
from attnc.explanation_products import TakenForm, taken_form
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import SizeName
from attnc.ir.show import show
from attnc.plan.layer_plan import ELEMENT_SIZE, LayerPlan, ProjectionPlan, as_attention
from attnc.schemes import scheme_json


@dataclass(frozen=True, slots=True)
class ProjectionCost:
    """One projection at a length, for one batch entry.

    Attributes:
        parameters: free ones.
        flops: useful operations of the forward pass, a multiply-add being two.
        bytes: least traffic: parameters, and activations that are read and written.
        taken: the form in which it is computed here.
    """

    plan: ProjectionPlan
    parameters: int
    flops: int
    bytes: int
    taken: TakenForm

    @property
    def dense(self) -> int:
        """Elements of the matrix."""
        return self.plan.matrix.rows * self.plan.matrix.columns

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints of it."""
        matrix = self.plan.matrix
        return {
            "name": matrix.name,
            "structure": matrix.projection.structure,
            "arguments": {
                name: value if isinstance(value, str) else show(value) for name, value in matrix.projection.arguments
            },
            "rows": matrix.rows,
            "columns": matrix.columns,
            "form": self.plan.product.value,
            "taken": {"form": self.taken.name, "reason": self.taken.reason},
            "via": None if self.plan.scheme is None else scheme_json(self.plan.scheme),
            "kernels": None if self.plan.direction is None else self.plan.direction.value,
            "parameters": self.parameters,
            "dense_parameters": self.dense,
            "flops": self.flops,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class LayerExplanation:
    """A layer in numbers, for one batch entry.

    Attributes:
        length: queries, and keys before any are left out.
        others: parameters of norms and what the attention learns.
        attention_flops: of all heads; None where data decides how many pairs are allowed.
        attention_bytes: least traffic of the attention, between expanded keys and values.
        latents: both orders of products around low-rank keys and values.
        cache: what is kept of the tokens so far.
    """

    plan: LayerPlan
    length: int
    projections: tuple[ProjectionCost, ...]
    others: int
    attention_flops: int | float | None
    attention_bytes: int
    latents: tuple[LatentPrices, ...]
    cache: CacheSize

    @property
    def parameters(self) -> int:
        """All that are trained."""
        return self.others + sum(one.parameters for one in self.projections)

    @property
    def flops(self) -> int | float | None:
        """Useful operations of the forward pass."""
        if self.attention_flops is None:
            return None
        return self.attention_flops + sum(one.flops for one in self.projections)

    @property
    def bytes(self) -> int:
        """Least traffic of the forward pass."""
        return self.attention_bytes + sum(one.bytes for one in self.projections)

    def as_json(self) -> dict[str, Any]:
        """Return what `explain --json` prints for this layer."""
        layer, sizes = self.plan.layer, self.plan.sizes
        return {
            "kind": "layer",
            "name": self.plan.name,
            "attention": layer.attention,
            "norm": layer.norm,
            "width": sizes.width,
            "heads": sizes.heads,
            "kv_heads": sizes.kv_heads,
            "head_size": sizes.head_size,
            "rotary": self.plan.theta,
            "feedforward": None if layer.feedforward is None else layer.feedforward.form,
            "hidden": sizes.hidden,
            "projections": [one.as_json() for one in self.projections],
            "parameters": self.parameters,
            "attention_flops": self.attention_flops,
            "attention_bytes": self.attention_bytes,
            "flops": self.flops,
            "bytes": self.bytes,
            "latents": [one.as_json() for one in self.latents],
            "cache": self.cache.as_json(),
        }


def explain_layer(plan: LayerPlan, *, length: int) -> LayerExplanation:
    """Count what a layer does for `length` positions."""
    sizes = plan.sizes
    shortened = plan.projection("key").outputs
    keys = -(-length // shortened)
    attention = explain_plan(plan.attention, length=length, heads=sizes.heads, head_size=sizes.head_size)
    flops = attention.flops
    if shortened != 1:  # every key is allowed, or the plan would have been refused
        flops = 4 * length * keys * sizes.heads * sizes.head_size
    elements = sizes.head_size * (2 * sizes.heads * length + 2 * sizes.kv_heads * keys)
    costs = tuple(_cost(one, length) for one in plan.projections)
    return LayerExplanation(
        plan,
        length,
        costs,
        _others(plan),
        flops,
        elements * ELEMENT_SIZE,
        latent_prices(plan, length),
        cache_size(plan),
    )


def _cost(one: ProjectionPlan, length: int) -> ProjectionCost:
    parameters = count_free(one)
    outputs = Fraction(length, one.outputs)
    return ProjectionCost(
        one,
        parameters,
        round(2 * parameters * outputs),
        round(one.bytes * length) + parameters * ELEMENT_SIZE,
        taken_form(one, parameters, length),
    )


def count_free(one: ProjectionPlan) -> int:
    """Return the free parameters of a projection; entries that sets could not count are evaluated."""
    from attnc.blockwise import count_pairs  # brings torch

    if one.parameters is not None:
        return one.parameters
    matrix = one.matrix
    sizes = call_sizes(1, 1, 1) | {SizeName.QUERIES: matrix.rows, SizeName.KEYS: matrix.columns}
    return int(count_pairs(as_attention(matrix.expr("condition")), sizes))


def _others(plan: LayerPlan) -> int:
    """Count parameters that are in no projection."""
    norms = 0 if plan.layer.norm == "none" else 1 + (plan.layer.feedforward is not None)
    env = Environment(sizes={SizeName.HEADS: plan.sizes.heads, SizeName.HEAD_SIZE: plan.sizes.head_size})
    learned = 0
    for tensor in plan.attention.operation.learned:
        elements = 1
        for dim in tensor.dims:
            assert dim is not None
            elements *= int(evaluate(dim, env))
        learned += elements
    return norms * plan.sizes.width + learned
