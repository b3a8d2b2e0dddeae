"""What a task is: a generator of examples, and two streams of them that share none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from attnc.diagnostics import CompileError, Diagnostic

IGNORED = -100
"""The target of a position where nothing is asked, as torch's cross entropy has it."""

HELD_OUT = 8
"""One in so many different examples belongs to the evaluation, the others to the training."""

PATIENCE = 64
"""Draws of a whole batch after which a part of a task's examples is taken to be empty."""

Setting = int | float


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples.

    Attributes:
        tokens: (B, N).
        targets: the class asked for at each position (B, N), `IGNORED` where none is.
    """

    tokens: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Batch:
        """Return the examples on a device."""
        return Batch(self.tokens.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class Task:
    """A task at one difficulty.

    Attributes:
        name: as the command line calls it.
        length: positions of an example.
        vocabulary: tokens are `0 .. vocabulary - 1`.
        classes: answers are `0 .. classes - 1`.
        causal: whether a position must not see those behind it.
        settings: what its difficulty is made of.
        draw: makes examples: how many, and where randomness comes from.
    """

    name: str
    length: int
    vocabulary: int
    classes: int
    causal: bool
    settings: Mapping[str, Setting]
    draw: Callable[[int, torch.Generator], Batch]


class Part(Enum):
    """Whom an example is for."""

    TRAINING = 0
    EVALUATION = 1


def stream(task: Task, part: Part, seed: int, count: int) -> Iterator[Batch]:
    """Yield batches of `count` examples without end; the same ones for the same seed.

    Which part an example belongs to is a hash of its tokens, so that no example of the one part is ever in the other,
    whatever the seeds are.

    Raises:
        CompileError: all examples of the task that could be found belong to the other part.
    """
    generator = torch.Generator().manual_seed(2 * seed + part.value)
    tokens, targets = torch.empty(0, task.length, dtype=torch.int64), torch.empty(0, task.length, dtype=torch.int64)
    rarity = HELD_OUT if part is Part.EVALUATION else 1
    while True:
        for _ in range(PATIENCE):
            if len(tokens) >= count:
                break
            drawn = task.draw((count + 7) // 8 * rarity + 1, generator)
            mine = is_held_out(drawn.tokens) == (part is Part.EVALUATION)
            tokens, targets = torch.cat([tokens, drawn.tokens[mine]]), torch.cat([targets, drawn.targets[mine]])
        else:
            raise _too_few(task, part)
        yield Batch(tokens[:count], targets[:count])
        tokens, targets = tokens[count:], targets[count:]


def is_held_out(tokens: Tensor) -> Tensor:
    """Tell of each example (B, N) whether it belongs to the evaluation."""
    factors = torch.randint(1 << 62, (tokens.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    mixed = ((tokens + 1) * factors).sum(1)  # modulo 2 ** 64
    mixed = (mixed ^ (mixed >> 31)) * 0x7FB5D329728EA185
    return (mixed >> 40) % HELD_OUT == 0


def chance(batch: Batch) -> float:
    """Return how often the most frequent answer is right: what a model reaches that looks at nothing."""
    asked = batch.targets[batch.targets != IGNORED]
    return float(torch.bincount(asked).max() / len(asked))


def require(right: bool, setting: str, value: object, expected: str) -> None:
    """Hold a setting of a task against what it may be.

    Raises:
        CompileError: it is not `right`.
    """
    if not right:
        raise CompileError(Diagnostic("unusable-setting", f"`{setting}` is {value}", help=f"it must be {expected}"))


def _too_few(task: Task, part: Part) -> CompileError:
    what = "evaluate with" if part is Part.EVALUATION else "learn from"
    return CompileError(
        Diagnostic(
            "too-few-examples",
            f"`{task.name}` has too few different examples: none is left to {what}",
            help=f"one in {HELD_OUT} is held out; make the task larger with --length or --set",
        )
    )
