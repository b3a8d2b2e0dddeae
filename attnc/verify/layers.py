"""Compiled layers against their dense meaning: outputs and gradients of x, the context and every parameter.

Where the products around low-rank keys or values have two orders, both are tried. A layer that can go on from a cache
is called stretch by stretch as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from types import ModuleType

import torch
from torch import Tensor, nn

from attnc.bench.cases import Data, Shape, Style, make_data
from attnc.bench.checking import BACKWARD_FACTOR, FORWARD_FACTOR
from attnc.plan.convolutions import Direction
from attnc.plan.layer_caches import Kept
from attnc.plan.layer_plan import LayerPlan
from attnc.reference import layer_reference
from attnc.runtime.structures.latents import PRODUCT_ORDERS, products_in_order
from attnc.verify.outcome import Mismatch, Outcome
from attnc.verify.programs import REDUCED_UNITS, Judge

LENGTHS = ((1, 3, None), (2, 12, None), (2, 7, 24), (1, 24, 12))
"""Batch entries, positions of x and of the context; whole rows of a grid are taken instead where kernels need one."""

_DTYPES = {
    "layer output": torch.float32,
    "layer output in half precision": torch.bfloat16,
    "layer gradients": torch.float32,
}
_STEPS = "layer output by steps"
LAYER_TOPICS = 2 * len(_DTYPES) + 1
"""Most outcomes of one layer."""

STRETCHES = (3, 1, 1)
"""Positions of the first calls that go on from a cache; the last one has what is left."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One call of a layer: its tensors, made from a seed, float32."""

    x: Tensor
    context: Tensor | None
    inputs: Data

    def __str__(self) -> str:
        shape = f"x {tuple(self.x.shape)}"
        return shape if self.context is None else f"{shape}, context {tuple(self.context.shape)}"


def verify_layer(plan: LayerPlan, module: ModuleType) -> Iterator[Outcome]:
    """Try a layer, with fixed parameters, on a few lengths."""
    layer = _layer(plan, module)
    cases = [_case(plan, number, lengths) for number, lengths in enumerate(LENGTHS)]
    choice = any(one.is_choice for one in plan.latents)
    for order in PRODUCT_ORDERS if choice else ("",):
        for topic, dtype in _DTYPES.items():
            check = _check_gradients if topic.endswith("gradients") else _check_output
            outcome = Outcome(plan.name, "", f"{topic} ({order})" if order else topic)
            with products_in_order(order) if order else nullcontext():
                outcome = _try_all(outcome, cases, lambda case: check(plan, layer, case, dtype))  # noqa: B023
            yield outcome
    if plan.cache.kept is not Kept.NOTHING:
        own = [case for case in cases if case.context is None]
        yield _try_all(Outcome(plan.name, "", _STEPS), own, lambda case: _check_steps(plan, layer, case))


def _try_all(outcome: Outcome, cases: list[_Case], check: Callable[[_Case], float]) -> Outcome:
    worst = 0.0
    for number, case in enumerate(cases, start=1):
        try:
            worst = max(worst, check(case))
        except Mismatch as mismatch:
            return replace(outcome, cases=number, problem=f"{mismatch} ({case})")
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else ""
            return replace(outcome, cases=number, problem=f"{type(error).__name__}: {first} ({case})")
    return replace(outcome, cases=len(cases), worst=worst)


def _layer(plan: LayerPlan, module: ModuleType) -> nn.Module:
    """Make the layer, with parameters that are not those it begins with."""
    kinds = [getattr(module, name) for name in module.__all__]
    found = next(
        kind for kind in kinds if isinstance(kind, type) and (kind.__doc__ or "").startswith(f"Layer `{plan.name}`")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer: nn.Module = found(dtype=torch.float32)
        with torch.no_grad():
            for one in layer.parameters():
                one.add_(0.05 * torch.randn_like(one))
    return layer


def _case(plan: LayerPlan, seed: int, lengths: tuple[int, int, int | None]) -> _Case:
    batch, queries, keys = lengths
    grids = [one.matrix.number("width") for one in plan.projections if one.matrix.projection.structure == "conv2d"]
    if grids:
        queries, keys = grids[0] * (1 + queries // 6), None if keys is None else grids[0] * (1 + keys // 6)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, queries, plan.sizes.width, generator=generator)
    context = None if keys is None else torch.randn(batch, keys, plan.sizes.width, generator=generator)
    sizes = plan.sizes
    outputs = plan.projection("key").outputs
    shape = Shape(
        batch, sizes.heads, sizes.kv_heads, queries, -(-(keys or queries) // outputs), sizes.head_size, sizes.head_size
    )
    return _Case(x, context, _attention_inputs(plan, shape, seed=seed))


def _attention_inputs(plan: LayerPlan, shape: Shape, *, seed: int) -> Data:
    attention = plan.attention.operation
    data = make_data(attention, shape, seed=seed, style=Style.WILD, dtype=torch.float32)
    return {one.name: data[one.name] for one in attention.inputs if not one.hidden}


Leaves = Mapping[str, Tensor]


def _leaves(layer: nn.Module, case: _Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return everything that has a gradient, rounded to a dtype."""
    named = {
        "x": case.x,
        **({} if case.context is None else {"context": case.context}),
        **dict(layer.named_parameters()),
    }
    return {name: tensor.detach().to(dtype).clone() for name, tensor in named.items()}


def _run(layer: nn.Module, case: _Case, leaves: Leaves, dtype: torch.dtype) -> Tensor:
    state = {name: tensor for name, tensor in leaves.items() if name not in ("x", "context")}
    out: Tensor = torch.func.functional_call(
        layer, state, (leaves["x"], leaves.get("context")), _inputs(case.inputs, dtype)
    )
    return out


def _exact(plan: LayerPlan, case: _Case, leaves: Leaves, dtype: torch.dtype) -> Tensor:
    state = {name: tensor for name, tensor in leaves.items() if name not in ("x", "context")}
    causal = frozenset(one.matrix.name for one in plan.projections if one.direction is Direction.CAUSAL)
    layer = replace(plan.layer, attend=plan.attention.operation)
    inputs = _inputs(case.inputs, dtype)
    return layer_reference(layer, state, leaves["x"], leaves.get("context"), inputs, causal=causal, dtype=dtype)


def _inputs(inputs: Data, dtype: torch.dtype) -> dict[str, Tensor | float]:
    return {
        name: given.to(dtype) if isinstance(given, Tensor) and given.is_floating_point() else given
        for name, given in inputs.items()
    }


def _check_output(plan: LayerPlan, layer: nn.Module, case: _Case, dtype: torch.dtype) -> float:
    """Compare the output.

    Raises:
        Mismatch: it is wrong.
    """
    leaves = _leaves(layer, case, dtype)
    with torch.no_grad():
        found = _run(layer, case, leaves, dtype)
        exact = _exact(plan, case, leaves, torch.float64)
        plain = _exact(plan, case, leaves, dtype)
    return Judge(FORWARD_FACTOR, dtype, REDUCED_UNITS).ratio("output", found, exact, plain)


def _check_steps(plan: LayerPlan, layer: nn.Module, case: _Case) -> float:
    """Compare what stretches of a sequence give that go on from a cache, each with all tokens so far.

    Raises:
        Mismatch: it is wrong.
    """
    dtype, worst, kept, start = torch.float32, 0.0, None, 0
    leaves = _leaves(layer, case, dtype)
    length = case.x.shape[1]
    ends = sorted({*(min(end, length) for end in accumulate(STRETCHES)), length})
    for end in ends:
        part = _stretch(plan, case, start, end)
        with torch.no_grad():
            layer_out, kept = layer(part.x, cache=kept, return_cache=True, **_inputs(part.inputs, dtype))
            own = {**leaves, "x": part.x, "context": case.x[:, :end]}
            exact = _exact(plan, part, own, torch.float64)
            plain = _exact(plan, part, own, dtype)
        judge = Judge(FORWARD_FACTOR, dtype, REDUCED_UNITS)
        worst = max(worst, judge.ratio(f"output of positions {start} to {end - 1}", layer_out, exact, plain))
        start = end
    return worst


def _stretch(plan: LayerPlan, case: _Case, start: int, end: int) -> _Case:
    """Return the call of some positions behind others, with inputs made for its lengths."""
    sizes, batch = plan.sizes, case.x.shape[0]
    shape = Shape(batch, sizes.heads, sizes.kv_heads, end - start, end, sizes.head_size, sizes.head_size)
    return _Case(case.x[:, start:end], None, _attention_inputs(plan, shape, seed=end))


def _check_gradients(plan: LayerPlan, layer: nn.Module, case: _Case, dtype: torch.dtype) -> float:
    """Compare the gradients of x, the context and every parameter.

    Raises:
        Mismatch: one of them is wrong.
    """

    def gradients(run: Callable[[Leaves], Tensor], kind: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: one.to(kind).requires_grad_() for name, one in _leaves(layer, case, dtype).items()}
        out = run(leaves)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        found = torch.autograd.grad(out, list(leaves.values()), upstream, allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(leaf) if one is None else one for (name, leaf), one in pairs}

    ours = gradients(lambda leaves: _run(layer, case, leaves, dtype), dtype)
    exact = gradients(lambda leaves: _exact(plan, case, leaves, torch.float64), torch.float64)
    plain = gradients(lambda leaves: _exact(plan, case, leaves, dtype), dtype)
    judge = Judge(BACKWARD_FACTOR, dtype, REDUCED_UNITS)
    return max(judge.ratio(f"gradient of {name}", ours[name], exact[name], plain[name]) for name in ours)
