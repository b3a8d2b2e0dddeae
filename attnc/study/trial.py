"""One task and one seed: all contenders side by side, as long as the budgets ask for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from attnc.study.contenders import Contender
from attnc.study.curves import Budgets, Point, Reading, read
from attnc.study.tasks import Batch, Part, Task, chance, stream
from attnc.study.training import Learner, Recipe

MOST = 3
"""No contender is trained for more than so many times the steps of the others, whatever its budgets pay for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Budgets that the user gives; None for those of the first contender.

    Attributes:
        flops: operations.
        seconds: time of steps.
    """

    flops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A contender's training.

    Attributes:
        name, what: of the contender.
        pairs: allowed pairs of one head, the mean over heads.
        density: of all pairs.
        parameters: numbers that are learned.
        parameter_bytes, activation_bytes: memory; None where the system does not tell.
        flops, seconds: of a step; the median time.
        points: of the curve.
        readings: of the curve at each budget; none where the training failed.
        problem: why it failed; empty if it did not.
    """

    name: str
    what: str
    pairs: float
    density: float
    parameters: int
    parameter_bytes: int
    activation_bytes: int | None
    flops: int
    seconds: float
    points: tuple[Point, ...]
    readings: dict[str, Reading]
    problem: str

    @property
    def bytes(self) -> int | None:
        """Memory of parameters and activations together."""
        return None if self.activation_bytes is None else self.parameter_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Trial:
    """All contenders' trainings on one task from one seed.

    Attributes:
        chance: accuracy of the most frequent answer.
        budgets: what the readings are at.
        results: in the order of the contenders.
    """

    seed: int
    chance: float
    budgets: Budgets
    results: tuple[Result, ...]


Progress = Callable[[str, int, int], None]
"""Told of each step: whose, how many are done, how many are planned."""


def run_trial(
    contenders: Sequence[Contender],
    task: Task,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    wanted: Wanted = Wanted(),
    progress: Progress = lambda name, done, planned: None,
) -> Trial:
    """Train all contenders, and read their curves at equal steps, operations and time.

    Each takes a step before any takes the next, on the same examples, so that a drift of the machine's speed touches
    all alike. Contenders for which the budgets of operations and of time pay for more steps go on.

    Args:
        contenders: at least one; budgets are what the first needs for the recipe's steps.
        task: what they learn.
        recipe: how.
        seed: of parameters and examples.
        device: where.
        wanted: other budgets.
        progress: told of each step.
    """
    held_out = next(stream(task, Part.EVALUATION, seed, recipe.held_out)).to(device)
    batches: Iterator[Batch] = (batch.to(device) for batch in stream(task, Part.TRAINING, seed, recipe.batch))
    first = next(batches)
    learners = [Learner(contender, task, recipe, seed, first) for contender in contenders]
    for learner in learners:
        learner.evaluate(held_out)
    batches = itertools.chain([first], batches)
    train([(learner, recipe.steps) for learner in learners], batches, held_out, progress)
    reference = learners[0]
    seconds = [learner.step_seconds() for learner in learners]  # of the steps that all have taken side by side
    budgets = Budgets(
        recipe.steps,
        float(recipe.steps * reference.flops) if wanted.flops is None else wanted.flops,
        recipe.steps * seconds[0] if wanted.seconds is None else wanted.seconds,
    )
    paid = [budgets.in_steps(one.flops, taken) for one, taken in zip(learners, seconds, strict=True)]
    goals = [min(MOST * recipe.steps, math.floor(max(steps.values()))) for steps in paid]
    train(list(zip(learners, goals, strict=True)), batches, held_out, progress)
    results = tuple(_result(*one, task.length) for one in zip(learners, seconds, paid, strict=True))
    return Trial(seed, chance(held_out), budgets, results)


def train(goals: Sequence[tuple[Learner, int]], batches: Iterator[Batch], held_out: Batch, progress: Progress) -> None:
    """Take steps until every learner has taken as many as its goal, or has failed.

    Args:
        goals: learners, all but the failed ones after the same step, and how many steps each is to have taken.
        batches: one for each step.
        held_out: what curves are taken with.
        progress: told of each step.
    """
    step = max(learner.steps for learner, _ in goals)
    while going := [(learner, goal) for learner, goal in goals if step < goal and not learner.problem]:
        batch = next(batches)
        for learner, goal in going if step % 2 == 0 else reversed(going):  # nobody is always the first after a pause
            learner.step(batch)
            if not learner.problem and (learner.recipe.is_evaluated(step + 1) or step + 1 == goal):
                learner.evaluate(held_out)
            progress(learner.contender.name, step + 1, goal)
        step += 1


def _result(learner: Learner, seconds: float, paid: dict[str, float], length: int) -> Result:
    readings = {} if learner.problem else {name: read(learner.points, steps) for name, steps in paid.items()}
    pairs = learner.contender.pairs
    return Result(
        learner.contender.name,
        learner.contender.what,
        float(pairs),
        float(pairs / length**2),
        learner.parameters,
        learner.parameter_bytes,
        learner.activations,
        learner.flops,
        seconds,
        tuple(learner.points),
        readings,
        learner.problem,
    )
