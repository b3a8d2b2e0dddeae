"""ListOps (Nangia and Bowman, 2018): the value of a nested expression, `[MAX 2 9 [MIN 4 7 ] 0 ]` being 9."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

import torch

from attnc.study.tasks import IGNORED, Batch, Task, require

DIGITS = 10

OPERATORS: Mapping[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: _median(values),
    "[SM": lambda values: sum(values) % DIGITS,
}
"""What an expression begins with, and its value: the median of an even number of values is rounded down."""

CLOSE, ANSWER, FILLER = "]", "=", "_"

WORDS = (*map(str, range(DIGITS)), *OPERATORS, CLOSE, ANSWER, FILLER)
"""The text of each token, by its number."""

NUMBERS = {word: number for number, word in enumerate(WORDS)}


def listops(length: int, depth: int, arguments: int, nesting: float) -> Task:
    """Make the task.

    An example is an expression and a mark behind it, at the last position, where the value is asked for; it is filled
    up in front. Operators have 2 to `arguments` arguments, each of which is an expression itself with probability
    `nesting` (0.25 in the paper) until `depth` expressions stand in each other. What is too long is drawn again.

    Args:
        length: positions.
        depth: of the expressions in each other.
        arguments: of an operator, at most.
        nesting: probability of an argument that is no digit.

    Raises:
        CompileError: a number that does not fit the others.
    """
    require(1 <= depth <= 20, "depth", depth, "from 1 to 20")
    require(2 <= arguments <= 20, "arguments", arguments, "from 2 to 20")
    require(0 <= nesting <= 0.5, "nesting", nesting, "from 0 to 0.5")
    require(length >= 5, "length", length, "at least 5, for an operator, two digits, its end and the mark")

    def draw(count: int, generator: torch.Generator) -> Batch:
        source = random.Random(int(torch.randint(1 << 62, (1,), generator=generator)))
        targets = torch.full((count, length), IGNORED)
        rows = []
        for row in range(count):
            words, value = _fitting(source, length - 1, depth, arguments, nesting)
            rows.append([NUMBERS[word] for word in (*(FILLER,) * (length - 1 - len(words)), *words, ANSWER)])
            targets[row, -1] = value
        return Batch(torch.tensor(rows), targets)

    settings = {"depth": depth, "arguments": arguments, "nesting": nesting}
    return Task("listops", length, len(WORDS), DIGITS, False, settings, draw)


def _fitting(source: random.Random, room: int, depth: int, arguments: int, nesting: float) -> tuple[list[str], int]:
    """Draw expressions until one fits, as two digits do, which are drawn once in 76 times at the least."""
    while True:
        words: list[str] = []
        value = _expression(source, words, room, depth, arguments, nesting)
        if len(words) <= room:
            return words, value


def _expression(source: random.Random, words: list[str], room: int, depth: int, arguments: int, nesting: float) -> int:
    """Append an expression and return its value; stop, with any value, where there is no more room."""
    operator = source.choice(tuple(OPERATORS))
    words.append(operator)
    values = []
    for _ in range(source.randint(2, arguments)):
        if len(words) > room:
            return 0
        if depth > 1 and source.random() < nesting:
            values.append(_expression(source, words, room, depth - 1, arguments, nesting))
        else:
            values.append(source.randrange(DIGITS))
            words.append(str(values[-1]))
    words.append(CLOSE)
    return OPERATORS[operator](values)


def _median(values: list[int]) -> int:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


def text(tokens: Iterable[int]) -> str:
    """Write an example out, without its filling."""
    return " ".join(WORDS[token] for token in tokens if WORDS[token] != FILLER)
