"""Curves of a training, and what they say at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """What the evaluation gave after a number of steps.

    Attributes:
        step: how many.
        loss: in nats an answer.
        accuracy: of the answers.
    """

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A curve at a budget.

    Attributes:
        steps: that the budget pays for; not a whole number in general.
        loss, accuracy: between two evaluations in proportion.
        reached: whether the training was long enough; where it was not, the figures are those of its last step.
    """

    steps: float
    loss: float
    accuracy: float
    reached: bool


@dataclass(frozen=True, slots=True)
class Budgets:
    """What every contender may use up.

    Attributes:
        steps: updates of the parameters.
        flops: operations, by the rule of `flops`.
        seconds: time of steps.
    """

    steps: int
    flops: float
    seconds: float

    def in_steps(self, step_flops: float, step_seconds: float) -> dict[str, float]:
        """Return how many steps each budget pays for, by its name."""
        return {"steps": self.steps, "flops": self.flops / step_flops, "seconds": self.seconds / step_seconds}


def read(points: Sequence[Point], steps: float) -> Reading:
    """Read a curve at a number of steps.

    Args:
        points: at least one, in the order of their steps.
        steps: not before the first point.
    """
    last = points[-1]
    if steps >= last.step:
        # a budget that was trained for ends at a whole step, so less than one may be missing
        return Reading(steps, last.loss, last.accuracy, steps < last.step + 1)
    number = next(number for number, point in enumerate(points) if point.step > steps)
    before, after = points[number - 1], points[number]
    part = (steps - before.step) / (after.step - before.step)
    loss = before.loss + part * (after.loss - before.loss)
    return Reading(steps, loss, before.accuracy + part * (after.accuracy - before.accuracy), True)
