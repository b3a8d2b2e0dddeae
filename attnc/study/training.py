"""One model in training: steps, evaluations, the time and the memory of a step."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attnc.bench.measure import peak_memory
from attnc.study.contenders import Contender
from attnc.study.curves import Point
from attnc.study.flops import step_flops
from attnc.study.models import Size
from attnc.study.tasks import IGNORED, Batch, Task

WARM_UP = 20
"""Steps in which the learning rate grows. It is constant behind them, so that no point of a curve is better prepared
than another, and a budget can be read off anywhere."""

EVALUATED_AT_ONCE = 32
"""Examples, at least: small batches of the training need not make evaluations slow."""

LONGEST_NORM = 1.0
"""Of the gradient; longer ones are shortened."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How all models of a study are trained.

    Attributes:
        size: of the models.
        steps: updates of the parameters: the budget that the others follow from.
        batch: examples of a step.
        learning_rate: behind the warm-up.
        evaluations: in `steps`, the one before the first step not counted.
        held_out: examples of an evaluation.
    """

    size: Size
    steps: int
    batch: int
    learning_rate: float
    evaluations: int
    held_out: int

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / WARM_UP)

    def is_evaluated(self, step: int) -> bool:
        """Tell whether the loss is taken after so many steps."""
        return step % max(1, round(self.steps / self.evaluations)) == 0


class Learner:
    """A model in training.

    Attributes:
        points: of its curve.
        problem: why it is trained no further; empty while it is.
        activations: bytes that a step needs at most beyond parameters, gradients and the optimiser's state; None
            where the system does not tell.
        flops: of a step.

    Args:
        contender: what to train.
        task: what for.
        recipe: how.
        seed: of the initial parameters.
        example: a batch that the memory of a step is measured with, on the device of the training.
    """

    def __init__(self, contender: Contender, task: Task, recipe: Recipe, seed: int, example: Batch) -> None:
        self.contender, self.recipe = contender, recipe
        self.device = example.tokens.device
        self.model = contender.make(seed).to(self.device)
        self.flops = step_flops(self.model, recipe.size, contender.pairs, task.length, recipe.batch)
        on_gpu_or_cpu = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu_or_cpu
        )
        self.points: list[Point] = []
        self.problem = ""
        self._seconds: list[float] = []
        self._gradients(example)  # the first call makes the gradients, and what else is made once
        self.activations = peak_memory(lambda: self._gradients(example), self.device)

    @property
    def steps(self) -> int:
        """Updates so far."""
        return len(self._seconds)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(one.numel() for one in self.model.parameters())

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(one.numel() * one.element_size() for one in self.model.parameters())

    def step_seconds(self) -> float:
        """Return the median time of the steps so far, which a pause of the machine does not move."""
        return statistics.median(self._seconds)

    def step(self, batch: Batch) -> None:
        """Update the parameters once."""
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.steps)
        loss = self._gradients(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), LONGEST_NORM)
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds.append(time.perf_counter() - begin)
        if not math.isfinite(loss):
            self.problem = f"the loss of step {self.steps} is {float(loss)}"

    def evaluate(self, batch: Batch) -> None:
        """Take loss and accuracy; nothing is learned."""
        asked, right, loss = 0, 0, 0.0
        at_once = max(self.recipe.batch, EVALUATED_AT_ONCE)
        with torch.no_grad():
            for start in range(0, len(batch), at_once):
                part = Batch(*(one[start : start + at_once] for one in (batch.tokens, batch.targets)))
                logits, targets = self._answers(part)
                asked += len(targets)
                right += int((logits.argmax(1) == targets).sum())
                loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
        if not math.isfinite(loss):
            self.problem = self.problem or f"the loss after step {self.steps} is {loss}"
            return
        self.points.append(Point(self.steps, loss / asked, right / asked))

    def _gradients(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        logits, targets = self._answers(batch)
        loss = functional.cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        return loss.detach()

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits and targets of the positions where something is asked."""
        asked = batch.targets != IGNORED
        return self.model(batch.tokens)[asked], batch.targets[asked]
