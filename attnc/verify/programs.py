"""Generated modules against the dense reference: outputs, log-sum-exps, masks, weights, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from types import ModuleType

import torch

from attnc.bench.cases import Data
from attnc.bench.checking import BACKWARD_FACTOR, FORWARD_FACTOR, GRADIENT_UNITS, allowance
from attnc.ir.program import Attention, NormalizeKind
from attnc.ir.shortening import shortened_count
from attnc.plan.kernel_plan import Plan
from attnc.reference import dense_mask, dense_weights, evaluate_tensor, pair_environment, reference
from attnc.verify.outcome import Mismatch
from attnc.verify.trials import Trial

REDUCED_UNITS = 64
"""Units in the last place that the gradient of an input may always be off: it is a sum over many pairs, taken in
another order than the reference's."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares results by FlashAttention's rule and remembers how close the worst one came to the limit."""

    factor: float
    dtype: torch.dtype
    units: int = 8

    def ratio(self, what: str, found: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> float:
        """Return error / allowed error.

        Args:
            what: is named in the message.
            found: what is judged.
            exact: the reference in float64.
            plain: the reference in the precision of `found`.

        Raises:
            Mismatch: the shape, the dtype's range or the numbers are wrong.
        """
        if found.shape != exact.shape:
            raise Mismatch(f"{what} has shape {tuple(found.shape)} in place of {tuple(exact.shape)}")
        special = ~torch.isfinite(exact)
        same = (found == exact) | (found.isnan() & exact.isnan())
        if bool((special & ~same).any()) or bool((~special & ~torch.isfinite(found)).any()):
            place = (special & ~same | ~special & ~torch.isfinite(found)).nonzero()[0].tolist()
            raise Mismatch(
                f"{what} at {place} is {float(found[tuple(place)])} in place of {float(exact[tuple(place)])}"
            )
        if not bool((~special).any()):
            return 0.0
        right = exact[~special]
        error = (found.double()[~special] - right).abs()
        allowed = allowance(_greatest(plain.double()[~special] - right), right, self.dtype, self.factor, self.units)
        if float(error.max()) > allowed:
            raise Mismatch(f"{what}: error {float(error.max()):.1e}, allowed {allowed:.1e}")
        return float(error.max()) / allowed if allowed else 0.0


def _greatest(difference: torch.Tensor) -> float:
    finite = difference[torch.isfinite(difference)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def check_outputs(module: ModuleType, plan: Plan, trial: Trial) -> float:
    """Compare output and, under softmax, log-sum-exp; returns the worst error / allowed error.

    Raises:
        Mismatch: one of them is wrong.
    """
    attention = plan.operation
    function: Callable[..., object] = getattr(module, attention.name)
    query, key, value = trial.tensors(attention)
    data = trial.data(attention)
    judge = Judge(FORWARD_FACTOR, trial.dtype)
    with torch.no_grad():
        with_lse = _has_lse(attention, trial, data)
        found = _results(function(query, key, value, **data, **({"return_lse": True} if with_lse else {})))
        exact = _results(reference(attention, query, key, value, data, return_lse=with_lse))
        plain = _results(reference(attention, query, key, value, data, return_lse=with_lse, dtype=None))
    names = ("output", "log-sum-exp")
    return max(judge.ratio(*one) for one in zip(names, found, exact, plain, strict=False))


def check_scale(module: ModuleType, plan: Plan, trial: Trial) -> float:
    """Compare the output under a scale that is given at the call.

    Raises:
        Mismatch: it is wrong.
    """
    attention = plan.operation
    query, key, value = trial.tensors(attention)
    data = trial.data(attention)
    with torch.no_grad():
        found = getattr(module, attention.name)(query, key, value, **data, scale=0.3)
        exact = reference(attention, query, key, value, data, scale=0.3)
        plain = reference(attention, query, key, value, data, scale=0.3, dtype=None)
    assert isinstance(exact, torch.Tensor)
    assert isinstance(plain, torch.Tensor)
    return Judge(FORWARD_FACTOR, trial.dtype).ratio("output with scale=0.3", found, exact, plain)


def check_companions(module: ModuleType, plan: Plan, trial: Trial) -> None:
    """Compare the module's mask, its weights of a few rows, and its own reference.

    Raises:
        Mismatch: one of them is wrong.
    """
    attention, shape = plan.operation, trial.shape
    query, key, value = trial.tensors(attention)
    data = trial.data(attention)
    name = attention.name
    keys = attention.shorten
    sizes = {"D": shape.head_size, "g": shape.heads // shape.kv_heads, "K": shape.keys}
    count = shape.keys if keys is None else shortened_count(keys, shape.keys)
    if count == 0:
        return
    rows = sorted({0, shape.queries // 2, shape.queries - 1})
    judge = Judge(FORWARD_FACTOR, trial.dtype)
    with torch.no_grad():
        if not is_approximate(attention):
            weights = getattr(module, f"{name}_weights")(query, key, rows=rows, **data)
            exact = dense_weights(attention, query, key, rows=rows, inputs=data)
            plain = dense_weights(attention, query, key, rows=rows, inputs=data, dtype=None)
            judge.ratio("weights", weights, exact, plain)
        own = getattr(module, f"{name}_reference")(query.double(), key.double(), value.double(), **data)
        right = reference(attention, query, key, value, data)
        assert isinstance(right, torch.Tensor)
        Judge(FORWARD_FACTOR, torch.float32).ratio("the module's reference", own, right, right.float())
    make_mask = getattr(module, f"{name}_mask")
    data = {**data, "K": shape.keys} if keys is not None else data
    chosen = {key: value for key, value in {**data, **sizes}.items() if key in signature(make_mask).parameters}
    mask = make_mask(shape.queries, count, B=shape.batch, H=shape.heads, **chosen)
    right = dense_mask(
        attention,
        shape.queries,
        count,
        batch=shape.batch,
        heads=shape.heads,
        inputs=data,
        head_size=shape.head_size,
        group=sizes["g"],
    )
    if mask.shape != right.shape or not torch.equal(mask, right):
        raise Mismatch("the module's mask is another one")


def check_gradients(module: ModuleType, plan: Plan, trial: Trial) -> float:
    """Compare gradients of query, key, value and of every float input and learned tensor.

    Raises:
        Mismatch: one of them is wrong.
    """
    attention = plan.operation
    function: Callable[..., torch.Tensor] = getattr(module, attention.name)
    tensors = trial.tensors(attention)
    data = trial.data(attention)

    def exactly(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
            out = reference(attention, query, key, value, inputs, dtype=dtype)
            assert isinstance(out, torch.Tensor)
            return out

        return run

    names, found = gradients(function, tensors, data, trial.dtype)
    _, exact = gradients(exactly(torch.float64), tensors, data, torch.float64)
    _, plain = gradients(exactly(trial.dtype), tensors, data, trial.dtype)
    worst = 0.0
    for name, *three in zip(names, found, exact, plain, strict=True):
        judge = Judge(
            BACKWARD_FACTOR, trial.dtype, units=GRADIENT_UNITS if name in ("query", "key", "value") else REDUCED_UNITS
        )
        worst = max(worst, judge.ratio(f"gradient of {name}", *three))
    return worst


def gradients(
    run: Callable[..., torch.Tensor], tensors: Tensors, data: Data, dtype: torch.dtype
) -> tuple[list[str], list[torch.Tensor]]:
    """Return names and gradients of everything that is a float tensor, for a fixed gradient of the output."""

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(dtype).clone().requires_grad_()

    leaves = {name: leaf(tensor) for name, tensor in zip(("query", "key", "value"), tensors, strict=True)}
    inputs = dict(data)
    for name, given in data.items():
        if isinstance(given, torch.Tensor) and given.is_floating_point():
            inputs[name] = leaves[name] = leaf(given)
    out = run(leaves["query"], leaves["key"], leaves["value"], **inputs)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator).to(out.dtype)
    found = torch.autograd.grad(out, list(leaves.values()), upstream, allow_unused=True)
    zeros = (torch.zeros_like(one) for one in leaves.values())
    return list(leaves), [zero if one is None else one for one, zero in zip(found, zeros, strict=True)]


def is_approximate(attention: Attention) -> bool:
    """Tell whether weights of pairs are never formed, not even in the dense meaning."""
    return attention.decompose is not None and attention.decompose.form == "nystrom"


def _results(found: object) -> Sequence[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return (found,)
    assert isinstance(found, tuple)
    return found


def _has_lse(attention: Attention, trial: Trial, data: Data) -> bool:
    """Tell whether a log-sum-exp exists: under softmax, unless weights are negative."""
    if attention.normalize.kind is not NormalizeKind.SOFTMAX or is_approximate(attention):
        return False
    if attention.weight is None:
        return True
    env = pair_environment(attention, trial.shape.sizes(), data)
    return bool((evaluate_tensor(attention.weight, env) >= 0).all())
