"""Time and memory against length: a training step of a small model, and attention alone, forward and backward."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import attnc
from attnc.bench.measure import peak_memory
from attnc.study.contenders import Contender
from attnc.study.models import Attend, Layers, Size, build
from attnc.study.tasks import IGNORED, Batch, Task
from attnc.study.training import Learner, Recipe
from results.store import Store

NAME = "efficiency"

PATTERN = Path(__file__).parent / "efficiency.attn"

SETTINGS: dict[str, Any] = {
    "lengths": [1024, 2048, 3072, 4096],
    "rounds": 5,
    "width": 256,
    "layers": 2,
    "heads": 4,
    "alone": [1024, 2048, 4096, 8192],
    "alone_heads": 2,
    "head_size": 64,
    "longest_vanilla": 4096,
}
"""`lengths` of the model of that `width` and so on, in batches of one; `alone` are those of attention alone. Vanilla
attention is not timed alone beyond `longest_vanilla`, which would take most of the time."""

QUICK = SETTINGS | {"lengths": [128, 256], "rounds": 1, "width": 32, "layers": 1, "alone": [128, 256], "head_size": 16}

VANILLA, FLASH = "vanilla", "torch SDPA"

PATTERNS = {
    "softmax_all": "softmax",
    "local": "local window",
    "linformer": "Linformer",
    "performer": "Performer",
    "linear_transformer": "linear transformer",
}
"""How the attentions of the file are called in tables."""

BYTES = 256

PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "flash_attention")
"""What operators that multiply matrices are called, or what is in their names."""


def settings(*, quick: bool) -> dict[str, Any]:
    """Return what is measured."""
    return QUICK if quick else SETTINGS


def measure(store: Store) -> None:
    """Fill the rows in: all contenders at a length each."""
    chosen = store.data["settings"]
    for length in chosen["lengths"]:
        store.add(f"model {length}", lambda length=length: measure_model(chosen, length))  # type: ignore[misc]
    for length in chosen["alone"]:
        for causal in (False, True):
            key = f"alone {'causal' if causal else 'full'} {length}"
            store.add(key, lambda length=length, causal=causal: measure_alone(chosen, length, causal=causal))  # type: ignore[misc]


@cache
def modules(length: int) -> dict[bool, ModuleType]:
    """Return the compiled patterns, by whether they are causal; Linformer's projections are made for this length."""
    sides = {False: {"two_sided": True}, True: {"two_sided": False}}
    return {causal: attnc.load(PATTERN, length=length, **given) for causal, given in sides.items()}


def attends(length: int, heads: int, size: int, *, causal: bool) -> dict[str, Callable[[], Attend]]:
    """Return what makes each attention, by its name in tables."""
    module = modules(length)[causal]
    found: dict[str, Callable[[], Attend]] = {
        VANILLA: lambda: lambda query, key, value: vanilla(query, key, value, causal=causal),
        FLASH: lambda: (
            lambda query, key, value: functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        ),
    }
    for name, shown in PATTERNS.items():
        if not (causal and name == "linformer"):  # every projected key is made of all positions
            kind = getattr(module, "".join(part.capitalize() for part in name.split("_")))
            given = {"H": heads, "D": size}
            own = {one: value for one, value in given.items() if one in inspect.signature(kind).parameters}
            found[shown] = lambda kind=kind, own=own: kind(**own)  # type: ignore[misc]
    return found


def vanilla(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend by the definition, with matrices of all pairs, as the first transformers did."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value


def classification(length: int) -> Task:
    """Return a task whose examples are random bytes, with one question at the end: its cost is that of any."""

    def draw(count: int, generator: torch.Generator) -> Batch:
        targets = torch.full((count, length), IGNORED)
        targets[:, -1] = torch.randint(2, (count,), generator=generator)
        return Batch(torch.randint(BYTES, (count, length), generator=generator), targets)

    return Task("bytes", length, BYTES, 2, False, {}, draw)


def measure_model(chosen: dict[str, Any], length: int) -> dict[str, dict[str, Any]]:
    """Return seconds and bytes of a training step of each model: forward, backward and AdamW's update."""
    size = Size(chosen["width"], chosen["layers"], chosen["heads"])
    task = classification(length)
    recipe = Recipe(size, steps=1, batch=1, learning_rate=1e-3, evaluations=1, held_out=1)
    example = task.draw(1, torch.Generator().manual_seed(0))
    learners = {}
    for name, attend in attends(length, size.heads, size.head_size, causal=False).items():

        def make(seed: int, attend: Callable[[], Attend] = attend) -> torch.nn.Module:
            return build(task, size, lambda: Layers(size, length, causal=False, attend=attend), seed)

        learners[name] = Learner(Contender(name, name, Fraction(0), make), task, recipe, 0, example)
    calls = {name: lambda one=one: one.step(example) for name, one in learners.items()}  # type: ignore[misc]
    taken = take_turns(calls, chosen["rounds"])
    return {
        name: {"seconds": taken[name], "bytes": one.activations, "parameters": one.parameters}
        for name, one in learners.items()
    }


def measure_alone(chosen: dict[str, Any], length: int, *, causal: bool) -> dict[str, dict[str, Any]]:
    """Return seconds and bytes of each attention, forward and backward, and how much of it are products of matrices."""
    heads, size = chosen["alone_heads"], chosen["head_size"]
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = (torch.randn(1, heads, length, size, generator=generator) for _ in range(4))
    leaves = [one.requires_grad_() for one in (query, key, value)]
    calls: dict[str, Callable[[], object]] = {}
    for name, make in attends(length, heads, size, causal=causal).items():
        if name != VANILLA or length <= chosen["longest_vanilla"]:
            attend = make()
            learned = [*attend.parameters()] if isinstance(attend, torch.nn.Module) else []

            def call(attend: Attend = attend, wanted: tuple[Tensor, ...] = (*leaves, *learned)) -> object:
                return torch.autograd.grad(attend(query, key, value), wanted, upstream)

            calls[name] = call
    memory = {name: (call(), peak_memory(call, query.device))[1] for name, call in calls.items()}
    taken = take_turns(calls, chosen["rounds"])
    shares = {name: share_of_products(call) for name, call in calls.items()}
    return {name: {"seconds": taken[name], "bytes": memory[name], "products": shares[name]} for name in calls}


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds on the processor of calls that take turns, in rounds that alternate their order."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            begin = time.process_time()
            calls[name]()
            samples[name].append(time.process_time() - begin)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def share_of_products(call: Callable[[], object]) -> float:
    """Return the part of a call's time that operators take which multiply matrices."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    times = {one.key: one.self_cpu_time_total for one in profile.key_averages()}
    products = sum(taken for name, taken in times.items() if any(one in name for one in PRODUCTS))
    return float(products / max(1e-9, sum(times.values())))
