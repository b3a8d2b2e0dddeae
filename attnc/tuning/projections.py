"""Tuning the projections of layers: every form is checked, outputs and gradients, and measured side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.bench.checking import BACKWARD_FACTOR, FORWARD_FACTOR, allowance
from attnc.bench.contender import first_line
from attnc.bench.measure import Timing, Work, measure
from attnc.bench.run import Settings
from attnc.runtime.structures.projection import Projection
from attnc.runtime.tuned import (
    ProjectionForm,
    TunedTiles,
    device_name,
    round_length,
    try_tiles,
    versions_of,
    versions_of_library,
)
from attnc.tuning.measured import GAIN

CHECKED_TOKENS = 512
"""Tokens for which forms are checked against float64."""

SUM_UNITS = 64
"""Units in the last place that gradients may always be off: they are sums over tokens."""


@dataclass(frozen=True, slots=True)
class FormTrial:
    """One form of one projection.

    Attributes:
        timing: None where there is none, and then `problem` says why.
    """

    name: str
    timing: Timing | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TunedProjection:
    """What became of the projections of a layer that have one structure and size.

    Attributes:
        names: of the projections, in the layer.
        module: one of them.
        default: the form that is taken where nothing was measured.
        trials: of all forms, the fastest first.
    """

    names: tuple[str, ...]
    module: Projection = field(compare=False)
    default: str
    trials: tuple[FormTrial, ...]

    @property
    def best(self) -> FormTrial:
        """The fastest; the default where none saves more than `GAIN`."""
        by_name = {one.name: one for one in self.trials}
        default, first = by_name[self.default], self.trials[0]
        if first.timing is None or default.timing is None:
            return first if default.timing is None else default
        return first if first.timing.median < (1 - GAIN) * default.timing.median else default


Alike = tuple[tuple[str, ...], Projection]
"""Names of projections that have one structure and size, and one of them."""


def tunable(layer: torch.nn.Module, settings: Settings) -> tuple[Alike, ...]:
    """Return the projections of a layer that have several forms on its device, those that are alike together."""
    found: dict[tuple[str, int, int], tuple[list[str], Projection]] = {}
    for name, module in layer.named_children():
        if isinstance(module, Projection) and module.product is None and len(_forms_of(module, settings)) > 1:
            size = module.measured_as, module.in_features, module.out_features
            found.setdefault(size, ([], module))[0].append(name)
    return tuple((tuple(names), module) for names, module in found.values())


def tune_projections(
    waiting: Sequence[Alike],
    shape: tuple[int, int],
    settings: Settings,
    *,
    budget: float,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[TunedProjection]:
    """Tune projections, at least the first.

    Args:
        waiting: on the device, of the type.
        shape: batch and positions.
        settings: device, type, and whether the backward pass is timed as well.
        budget: seconds; what it leaves out is not yielded.
        progress: called with a word on what comes next.
    """
    end = time.monotonic() + budget
    for number, (names, module) in enumerate(waiting):
        if number and time.monotonic() > end:
            return
        forms = _forms_of(module, settings)
        progress(f"{', '.join(names)}: {len(forms)} forms")
        yield TunedProjection(names, module, _default(module, settings), _trials(module, forms, shape, settings))


def _default(module: Projection, settings: Settings) -> str:
    return module.table(settings.device).default(settings.device.type)


def _forms_of(module: Projection, settings: Settings) -> list[str]:
    """Return the forms that suit the device."""
    table = module.table(settings.device)
    x = torch.empty((0, module.in_features), device=settings.device, dtype=settings.dtype)
    factors = tuple(module.parameters())
    return [table.chain, *(form.name for form in table.others if form.suits(x, factors))]


def _trials(
    module: Projection, forms: Sequence[str], shape: tuple[int, int], settings: Settings
) -> tuple[FormTrial, ...]:
    few = min(shape[1], CHECKED_TOKENS)
    chain = module.table(settings.device).chain
    right = _run(copy.deepcopy(module).double(), chain, *_case(module, (1, few), settings, torch.float64))
    plain = _run(module, chain, *_case(module, (1, few), settings))
    failed, works = [], []
    for name in forms:
        problem = _problem(module, name, _case(module, (1, few), settings), plain, right)
        if problem:
            failed.append(FormTrial(name, problem=problem))
        else:
            works.append(name)
    case = _case(module, shape, settings)
    every = {name: _work(module, name, *case, backward=settings.backward) for name in works}
    timings = measure(every, settings.device, seconds=settings.seconds, least=settings.least)
    timed = sorted((FormTrial(name, timing) for name, timing in timings.items()), key=lambda one: one.timing.median)  # type: ignore[union-attr]
    return (*timed, *failed)


def _case(
    module: Projection, shape: tuple[int, int], settings: Settings, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return inputs and the gradient of outputs, the same numbers in every type."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((*shape, module.in_features), generator=generator).to(settings.device, settings.dtype)
    like = torch.empty((1, shape[1], module.in_features), device="meta", dtype=settings.dtype)
    outputs = copy.deepcopy(module).to("meta")(like).shape[1] if module.keeps_positions else shape[1]
    grad = torch.randn((shape[0], outputs, module.out_features), generator=generator)
    grad = grad.to(settings.device, settings.dtype)
    return x.to(dtype or settings.dtype).requires_grad_(), grad.to(dtype or settings.dtype)


def _run(module: Projection, form: str, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Return outputs and all gradients."""
    with torch.enable_grad(), try_tiles({module.measured_as: ProjectionForm(form)}):
        out = module(x)
        return out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], grad)


def _work(module: Projection, form: str, x: Tensor, grad: Tensor, *, backward: bool) -> Work:
    chosen = {module.measured_as: ProjectionForm(form)}
    leaves = [x, *module.parameters()]

    def run() -> object:
        with try_tiles(chosen), torch.set_grad_enabled(backward):
            out = module(x).contiguous()  # what comes next reads rows
            return torch.autograd.grad(out, leaves, grad) if backward else out

    return run


def _problem(
    module: Projection,
    form: str,
    case: tuple[Tensor, Tensor],
    plain: Sequence[Tensor],
    right: Sequence[Tensor],
) -> str:
    """Say what is wrong with the outputs or gradients of a form; empty if nothing."""
    try:
        found = _run(module, form, *case)
    except Exception as error:  # a form may fail in any way, which is a result
        return f"it fails: {first_line(error)}"
    names = ("output", "gradient of the input", *(f"gradient of {name}" for name, _ in module.named_parameters()))
    for name, one, same, exact in zip(names, found, plain, right, strict=True):
        factor, units = (FORWARD_FACTOR, 8) if name == "output" else (BACKWARD_FACTOR, SUM_UNITS)
        allowed = allowance(_apart(same, exact), exact, one.dtype, factor, units)
        if not _apart(one, exact) <= allowed:
            return f"wrong {name}: error {_apart(one, exact):.1e}, allowed {allowed:.1e}"
    return ""


def _apart(one: Tensor, exact: Tensor) -> float:
    return float((one.double() - exact).abs().max()) if exact.numel() else 0.0


def entry_of_projection(one: TunedProjection, tokens: int, settings: Settings) -> TunedTiles:
    """Return what is to be remembered, under the versions that are installed."""
    program = settings.device.type != "cuda"
    length = round_length(tokens)
    return TunedTiles(
        one.module.measured_as,
        device_name(settings.device, program),
        versions_of(program=True) if program else versions_of_library(),
        str(settings.dtype).removeprefix("torch."),
        one.module.in_features,
        one.module.out_features,
        length,
        length,
        ProjectionForm(one.best.name),
    )
