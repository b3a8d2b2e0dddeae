"""Multi-query associative recall (Arora et al., Zoology, 2023): which value did this key have?"""

from __future__ import annotations

import torch

from attnc.study.tasks import IGNORED, Batch, Task, require

FILLER = 0


def recall(length: int, pairs: int, keys: int, values: int, gap: int, power: float) -> Task:
    """Make the task.

    An example shows `pairs` keys, each followed by its value, then `gap` fillers, then every key once more in random
    places, where its value is asked for. As in the paper, keys and values of an example are different ones, queries
    stand an even number of positions behind the gap, and early places are likelier by a power law. Other positions
    hold a filler; in the paper they hold random tokens, which is ambiguous where there are few keys.

    Args:
        length: positions.
        pairs: of a key and a value.
        keys: different keys to draw from.
        values: different values to draw from.
        gap: positions between the last pair and the first place of a query.
        power: of the law: place k is chosen in proportion to `k ** (power - 1)`; 0.01 in the paper, 1 for any place.

    Raises:
        CompileError: a number that does not fit the others.
    """
    require(pairs >= 1, "pairs", pairs, "at least 1")
    require(keys >= pairs, "keys", keys, f"at least as many as `pairs`, {pairs}")
    require(values >= max(2, pairs), "values", values, f"at least as many as `pairs`, {pairs}, and 2")
    require(gap >= 0, "gap", gap, "at least 0")
    require(power > 0, "power", power, "above 0")
    require(length >= 4 * pairs + gap, "length", length, f"at least 4 times `pairs` and `gap`, {4 * pairs + gap}")
    shown = 2 * pairs
    places = (length - shown - gap) // 2
    likelihood = torch.arange(1, places + 1, dtype=torch.float64) ** (power - 1)

    def draw(count: int, generator: torch.Generator) -> Batch:
        chosen = _choose(count, keys, pairs, generator)
        answers = _choose(count, values, pairs, generator)
        tokens = torch.full((count, length), FILLER)
        tokens[:, 0:shown:2] = 1 + chosen
        tokens[:, 1:shown:2] = 1 + keys + answers
        place = torch.multinomial(likelihood.expand(count, -1), pairs, generator=generator)
        place = shown + gap + 2 * place
        targets = torch.full((count, length), IGNORED)
        return Batch(tokens.scatter(1, place, 1 + chosen), targets.scatter(1, place, answers))

    settings = {"pairs": pairs, "keys": keys, "values": values, "gap": gap, "power": power}
    return Task("recall", length, 1 + keys + values, values, True, settings, draw)


def _choose(count: int, of: int, wanted: int, generator: torch.Generator) -> torch.Tensor:
    """Choose different numbers below `of`, in random order, for each example."""
    return torch.rand(count, of, generator=generator).argsort(1)[:, :wanted]
