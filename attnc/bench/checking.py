"""Whether a contender computes the right thing: the gate before any time is taken.

The rule is FlashAttention's: the error may be at most twice (for gradients, three times) the error that plain PyTorch
makes in the same precision, both against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from attnc.bench.contender import Case, Contender, Run
from attnc.reference import dense_weights, reference, with_shorter_keys

WHOLE = 1 << 26
"""Pairs, over batch and heads, up to which every row is checked."""

SAMPLED_ROWS = 256
"""Rows that are checked beyond that: the first, the last, and some evenly spread between."""

BLOCK = 1 << 24
"""Pairs of the reference that are held at once."""

SMALL_LENGTH, SMALL_BATCH = 1024, 2
"""Length and batch entries at which gradients are checked: where the reference fits, and windows do not hold all."""

FORWARD_FACTOR, BACKWARD_FACTOR = 2.0, 3.0

GRADIENT_UNITS = 32
"""Units in the last place that gradients may always be off: they are differences of dot products, whose size grows
with the root of the head size."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        error: the greatest absolute error.
        allowed: what it may be.
        rows: rows that were compared.
        what: the worst of what was compared: `output`, `gradient of key`...
    """

    error: float
    allowed: float
    rows: int
    what: str = "output"

    @property
    def right(self) -> bool:
        """Whether the error is within what is allowed; a NaN never is."""
        return self.error <= self.allowed


@dataclass(frozen=True, slots=True)
class Truth:
    """Rows of the right output, and what PyTorch makes of them in the case's own precision."""

    rows: torch.Tensor
    exact: torch.Tensor
    error: float


def true_rows(case: Case) -> Truth:
    """Compute the rows that outputs are compared with, in float64 and in the case's precision."""
    rows = _chosen_rows(case).to(case.device)
    at_once = max(1, BLOCK // (case.shape.batch * case.shape.heads * case.shape.keys))
    pieces = [(_rows(case, part, torch.float64), _rows(case, part, case.dtype)) for part in torch.split(rows, at_once)]
    exact = torch.cat([piece[0] for piece in pieces], dim=2)
    same = torch.cat([piece[1] for piece in pieces], dim=2)
    return Truth(rows, exact, _distance(same, exact))


def check_output(contender: Contender, case: Case, truth: Truth) -> Verdict:
    """Compare a contender's output with the truth."""
    with torch.no_grad(), contender.around():
        out = contender.run(*(contender.arranged(tensor) for tensor in (case.query, case.key, case.value)))
    if out.shape != (*case.query.shape[:3], case.shape.value_size):
        return Verdict(float("nan"), 0.0, 0, f"shape {tuple(out.shape)}")
    error = _distance(out[:, :, truth.rows], truth.exact)
    return Verdict(error, allowance(truth.error, truth.exact, case.dtype, FORWARD_FACTOR), len(truth.rows))


@dataclass(frozen=True, slots=True)
class TrueGradients:
    """The right gradients of query, key and value, and what PyTorch makes of them in the case's own precision."""

    exact: tuple[torch.Tensor, ...]
    same: tuple[torch.Tensor, ...]


def true_gradients(case: Case) -> TrueGradients:
    """Compute the gradients that others are compared with, in float64 and in the case's precision."""

    def exactly(dtype: torch.dtype) -> Run:
        def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            out = reference(case.attention, query, key, value, case.data, dtype=dtype)
            assert isinstance(out, torch.Tensor)
            return out

        return run

    double = replace(case, query=case.query.double(), key=case.key.double(), value=case.value.double())
    return TrueGradients(gradients(exactly(torch.float64), double), gradients(exactly(case.dtype), case))


def check_gradients(contender: Contender, case: Case, truth: TrueGradients | None = None) -> Verdict:
    """Compare a contender's gradients of query, key and value with the truth, which is computed unless it is given."""
    truth = true_gradients(case) if truth is None else truth
    with contender.around():
        found = gradients(contender.run, case, contender.arranged)
    worst = Verdict(0.0, 0.0, case.shape.queries)
    for name, one, right, plain in zip(("query", "key", "value"), found, truth.exact, truth.same, strict=True):
        allowed = allowance(_distance(plain, right), right, case.dtype, BACKWARD_FACTOR, GRADIENT_UNITS)
        verdict = Verdict(_distance(one, right), allowed, case.shape.queries, f"gradient of {name}")
        if not verdict.right:
            return verdict
        worst = max(worst, verdict, key=lambda verdict: verdict.error)
    return worst


def gradients(
    run: Run, case: Case, arranged: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of query, key and value for the same gradient of the output every time."""
    given = (arranged(tensor) for tensor in (case.query, case.key, case.value))
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in given)
    out = run(*leaves)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(out.shape, generator=generator).to(device=out.device, dtype=out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


def allowance(plain: float, exact: torch.Tensor, dtype: torch.dtype, factor: float, units: int = 8) -> float:
    """Return the error that is allowed where plain PyTorch makes the error `plain`.

    A few `units` in the last place of numbers of size 1, as the data has, are always allowed: on few numbers PyTorch
    may be right by luck, and a gradient that is 0 is a difference of such numbers. In float64 PyTorch is the reference
    itself, so that its error says nothing.
    """
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    units = 10_000 if dtype == torch.float64 else units
    return factor * plain + units * torch.finfo(dtype).eps * max(largest, 1.0)


def _chosen_rows(case: Case) -> torch.Tensor:
    shape = case.shape
    if shape.batch * shape.heads * shape.queries * shape.keys <= WHOLE or shape.queries <= SAMPLED_ROWS:
        return torch.arange(shape.queries)
    edge = SAMPLED_ROWS // 4
    between = torch.linspace(edge, shape.queries - edge - 1, SAMPLED_ROWS - 2 * edge).long()
    rows = [torch.arange(edge), between, torch.arange(shape.queries - edge, shape.queries)]
    chosen: torch.Tensor = torch.cat(rows).unique()  # type: ignore[no-untyped-call]
    return chosen


def _rows(case: Case, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    attention, asked = case.attention, case.attention.decompose
    if asked is not None and asked.form == "nystrom":
        out = reference(attention, case.query, case.key, case.value, case.data, dtype=dtype)
        assert isinstance(out, torch.Tensor)
        return out[:, :, rows]
    weights = dense_weights(attention, case.query, case.key, rows=rows, inputs=case.data, dtype=dtype)
    _, value, _ = with_shorter_keys(attention, case.query, case.key, case.value, case.data, dtype)
    value = value.to(dtype).repeat_interleave(case.shape.group, dim=1)
    return torch.einsum("bhrm,bhme->bhre", weights, value)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the greatest absolute difference; NaN where either side is not finite."""
    difference = (one.double() - other.double()).abs()
    return float(difference.max()) if difference.numel() else 0.0
