"""Whether two trainings are the same but for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from language_model.training import Curves, Learner

FIRST = 20
"""Steps of which the greatest difference is told apart: rounding has had little time to grow in them."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the losses of a compiled pattern are from those of PyTorch's attention with its mask.

    Attributes:
        pattern: its name.
        differences: of the training loss, of each step.
        validation: the greatest one of the loss on held-out text.
    """

    pattern: str
    differences: tuple[float, ...]
    validation: float

    @property
    def first(self) -> float:
        """The greatest difference in the first steps."""
        return max(self.differences[:FIRST])

    @property
    def greatest(self) -> float:
        """The greatest difference of all."""
        return max(*self.differences, self.validation)

    def sentence(self) -> str:
        """Say it for people."""
        steps = len(self.differences)
        start = f", {self.first:.1e} in the first {FIRST}" if steps > FIRST else ""
        return (
            f"{self.pattern}: losses of attnc and of SDPA differ by at most {max(self.differences):.1e} "
            f"in {steps} steps{start}; {self.validation:.1e} on held-out text"
        )


def agreements(learners: Sequence[Learner]) -> list[Agreement]:
    """Compare the trainings of each pattern that has two: attnc's and PyTorch's."""
    found = []
    for name in dict.fromkeys(learner.pattern.name for learner in learners):
        curves = [learner.curves for learner in learners if learner.pattern.name == name]
        if len(curves) == 2:
            found.append(_agreement(name, *curves))
    return found


def _agreement(name: str, ours: Curves, theirs: Curves) -> Agreement:
    pairs = zip(ours.training, theirs.training, strict=True)
    held_out = max(abs(loss - theirs.validation[step]) for step, loss in ours.validation.items())
    return Agreement(name, tuple(abs(left - right) for left, right in pairs), held_out)
