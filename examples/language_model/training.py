"""Training several models side by side: the same text in the same order, one step of each before any takes the next.

So a drift of the machine's speed touches all alike, and curves can be compared from the first step on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnc.bench.measure import peak_memory
from language_model.mistakes import MistakeError
from language_model.model import BYTES, LanguageModel, Size
from language_model.patterns import Attend, Pattern
from language_model.text import Corpus

WARM_UP, LAST_RATE = 0.1, 0.1
"""The part of the steps in which the learning rate grows, and what is left of it at the end, by a cosine."""

RECENT = 0.1
"""The part of the steps over which the last losses are averaged: one step sees too little text to tell much."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all models of a training share.

    Attributes:
        size: of the model.
        steps: updates of the parameters.
        length: bytes of a window.
        batch: windows of a step.
        learning_rate: the highest.
        evaluations: how many times the loss on held-out text is taken, the one before the first step not counted.
        held_out: windows of that text.
        seed: of the parameters and of the order of the text.
        dtype: precision of everything.
    """

    size: Size
    steps: int
    length: int
    batch: int
    learning_rate: float
    evaluations: int
    held_out: int
    seed: int
    dtype: torch.dtype

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        gone = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * gone)) / 2)

    def evaluated(self) -> set[int]:
        """Return after how many steps the loss on held-out text is taken."""
        return {round(self.steps * part / self.evaluations) for part in range(self.evaluations + 1)}


@dataclass(slots=True)
class Curves:
    """What a training gave.

    Attributes:
        training: the loss of each step, in nats a byte.
        validation: the loss on held-out text by the number of steps before it.
        seconds: what each step took.
        memory: bytes that forward and backward need at most beyond parameters, gradients and the optimiser's state;
            None where the system does not tell.
    """

    training: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None

    @property
    def recent(self) -> float:
        """The mean loss of the last steps."""
        return statistics.fmean(self.training[-recent_steps(len(self.training)) :])

    @property
    def last_validation(self) -> float:
        """The loss on held-out text after the last step."""
        return self.validation[len(self.training)]

    @property
    def step_seconds(self) -> float:
        """The median time of a step."""
        return statistics.median(self.seconds)


def recent_steps(steps: int) -> int:
    """Return over how many steps the last losses are averaged."""
    return max(1, round(RECENT * steps))


class Learner:
    """A model in training.

    Args:
        pattern: what it attends to.
        by: what computes that.
        attend: the function that does.
        settings: shared by all.
    """

    def __init__(self, pattern: Pattern, by: str, attend: Attend, settings: Settings) -> None:
        self.pattern, self.by, self.curves = pattern, by, Curves()
        self.model = LanguageModel(settings.size, attend, settings.length, settings.seed, settings.dtype)
        decayed = [one for one in self.model.parameters() if one.dim() == 2]
        others = [one for one in self.model.parameters() if one.dim() != 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    @property
    def name(self) -> str:
        """The name in progress bars and messages."""
        return f"{self.pattern.name}, {self.by}"

    def step(self, ids: Tensor, following: Tensor, rate: float) -> None:
        """Update the parameters once.

        Raises:
            MistakeError: the loss is no longer finite.
        """
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(ids, following)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.curves.seconds.append(time.perf_counter() - begin)
        self.curves.training.append(float(loss))
        if not math.isfinite(loss):
            steps = len(self.curves.training)
            raise MistakeError(f"{self.name}: the loss of step {steps} is {float(loss)}; lower --learning-rate")

    def evaluate(self, ids: Tensor, following: Tensor) -> None:
        """Take the loss on held-out text, a window at a time."""
        with torch.no_grad():
            losses = [float(self._loss(ids[k : k + 1], following[k : k + 1])) for k in range(len(ids))]
        self.curves.validation[len(self.curves.training)] = statistics.fmean(losses)

    def measure_memory(self, ids: Tensor, following: Tensor) -> None:
        """Take the memory of forward and backward; the parameters stay as they are."""
        self.curves.memory = peak_memory(lambda: self._gradients(ids, following), ids.device)

    def _gradients(self, ids: Tensor, following: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self._loss(ids, following)
        torch.autograd.backward(loss)
        return loss.detach()

    def _loss(self, ids: Tensor, following: Tensor) -> Tensor:
        logits = self.model(ids)
        return functional.cross_entropy(logits.view(-1, BYTES), following.reshape(-1))


def train(
    learners: Sequence[Learner],
    corpus: Corpus,
    settings: Settings,
    advance: Callable[[Learner], None] = lambda learner: None,
) -> None:
    """Train all side by side, leaving their curves; then measure the memory of each.

    Args:
        learners: the models.
        corpus: what they read.
        settings: for how long.
        advance: called after each step of a model.

    Raises:
        MistakeError: a loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = corpus.held_out(settings.held_out, settings.length)
    evaluated = settings.evaluated()
    for step in range(settings.steps + 1):
        if step in evaluated:
            for learner in learners:
                learner.evaluate(*held_out)
        batch = corpus.draw(settings.batch, settings.length, generator)
        if step == settings.steps:
            break
        for learner in learners if step % 2 == 0 else reversed(learners):  # nobody is always the first after a pause
            learner.step(*batch, settings.rate(step))
            advance(learner)
    for learner in learners:
        learner.measure_memory(*batch)
