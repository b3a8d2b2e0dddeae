"""Layers whose matrices are structured, trained on copying and recall beside dense ones of full and of less width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from attnc.compiler import plan_source
from attnc.files import read_pattern
from attnc.study.contenders import Contender, Pattern, contender, planned_patterns
from attnc.study.flops import step_flops
from attnc.study.models import LayerStack, Size
from attnc.study.presets import Changes, configure
from attnc.study.report import TaskReport, task_json
from attnc.study.tasks import Task
from attnc.study.training import Recipe
from attnc.study.trial import Wanted, run_trial
from results.store import Store

NAME = "structures"

PATTERN = Path(__file__).parent / "structures.attn"

SETTINGS: dict[str, Any] = {"tasks": ["copying", "recall"], "seeds": 2, "preset": "tiny", "narrow": 32, "budget": 0.67}
"""`narrow` is the width of the second dense contender, `budget` the part of the dense layers' operations that all are
compared at, beside equal steps."""

QUICK = SETTINGS | {"tasks": ["recall"], "seeds": 1, "steps": 4}

NARROW = "dense, narrow"


def settings(*, quick: bool) -> dict[str, Any]:
    """Return what is measured."""
    return QUICK if quick else SETTINGS


def measure(store: Store) -> None:
    """Fill the rows in: a task and a seed each."""
    chosen = store.data["settings"]
    changes = Changes(steps=chosen.get("steps"))
    layers = {width: compiled(width) for width in (None, chosen["narrow"])}
    for seed in range(chosen["seeds"]):
        for task, recipe, _ in configure(chosen["preset"], tuple(chosen["tasks"]), changes, {}):
            store.add(
                f"{task.name} {seed}",
                lambda task=task, recipe=recipe, seed=seed: measure_trial(  # type: ignore[misc]
                    task, recipe, seed, contenders(layers[None], layers[chosen["narrow"]], task, recipe.size), chosen
                ),
            )


def compiled(width: int | None) -> list[Pattern]:
    """Return the layers of the file, of its own width or of another."""
    return planned_patterns(plan_source(read_pattern(PATTERN), {} if width is None else {"width": width}))


def contenders(whole: Sequence[Pattern], narrow: Sequence[Pattern], task: Task, size: Size) -> list[Contender]:
    """Return who takes part: the first is what operations are compared with, the second is dense and narrow."""
    plan = narrow[0].whole
    assert plan is not None
    less = Size(plan.sizes.width, size.layers, plan.sizes.heads)
    dense, *others = (contender(one, task, size, one.name) for one in whole)
    return [dense, contender(narrow[0], task, less, NARROW), *others]


def measure_trial(
    task: Task, recipe: Recipe, seed: int, taking_part: Sequence[Contender], chosen: dict[str, Any]
) -> dict[str, Any]:
    """Train everybody from one seed; return what the study's JSON has of it, and the elements of layers' matrices."""
    first = taking_part[0]
    flops = step_flops(first.make(seed), recipe.size, first.pairs, task.length, recipe.batch)
    wanted = Wanted(flops=chosen["budget"] * recipe.steps * flops, seconds=0.0)
    trial = run_trial(taking_part, task, recipe, seed, torch.device("cpu"), wanted)
    (found,) = task_json(TaskReport(task, recipe, (trial,), ()))["trials"]
    for one, made in zip(taking_part, found["contenders"], strict=True):
        made["layer_elements"] = layer_elements(one)
        del made["points"][1:-1]  # the curve between its ends is not shown
    return {"task": task.name, "steps": recipe.steps, **found}


def layer_elements(one: Contender) -> int:
    """Return how many free elements the matrices of all layers have."""
    (stack,) = (module for module in one.make(0).modules() if isinstance(module, LayerStack))
    return int(stack.elements)
