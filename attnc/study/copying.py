"""Copying (Jelassi et al., Repeat After Me, 2024) and selective copying (Gu and Dao, Mamba, 2023)."""

from __future__ import annotations

import torch

from attnc.study.tasks import IGNORED, Batch, Task, require


def copying(length: int, tokens: int, shortest: int) -> Task:
    """Make the task: a string, a mark, and the string again, which is asked for token by token.

    Strings have `shortest` to `length // 2` tokens; what is left of the positions is filled up at the end.

    Args:
        length: positions.
        tokens: different ones of a string.
        shortest: tokens of a string, at least.

    Raises:
        CompileError: a number that does not fit the others.
    """
    longest = length // 2
    require(length >= 2, "length", length, "at least 2")
    require(tokens >= 2, "tokens", tokens, "at least 2")
    require(1 <= shortest <= longest, "shortest", shortest, f"from 1 to half of `length`, {longest}")
    mark, filler = tokens, tokens + 1
    position = torch.arange(length)

    def draw(count: int, generator: torch.Generator) -> Batch:
        string = torch.randint(tokens, (count, longest), generator=generator)
        size = torch.randint(shortest, longest + 1, (count, 1), generator=generator)
        again = position - size  # 0 at the mark, where the first token is asked for
        asked = (again >= 0) & (again < size)
        target = string.gather(1, again.clamp(0, longest - 1))
        shown = torch.where(
            position < size, string.gather(1, position.clamp(max=longest - 1).expand(count, -1)), filler
        )
        before = string.gather(1, (again - 1).clamp(0, longest - 1))
        shown = torch.where(asked, before, shown)
        return Batch(torch.where(again == 0, mark, shown), torch.where(asked, target, IGNORED))

    settings = {"tokens": tokens, "shortest": shortest}
    return Task("copying", length, tokens + 2, tokens, True, settings, draw)


def selective(length: int, tokens: int, content: int) -> Task:
    """Make the task: tokens strewn among noise, and at the end as many marks; mark k asks for the k-th token.

    Args:
        length: positions.
        tokens: different ones that are to be copied.
        content: how many of them an example has.

    Raises:
        CompileError: a number that does not fit the others.
    """
    require(tokens >= 2, "tokens", tokens, "at least 2")
    require(1 <= content <= length // 2, "content", content, f"from 1 to half of `length`, {length // 2}")
    noise, mark = tokens, tokens + 1
    context = length - content

    def draw(count: int, generator: torch.Generator) -> Batch:
        string = torch.randint(tokens, (count, content), generator=generator)
        place = torch.rand(count, context, generator=generator).argsort(1)[:, :content].sort(1).values
        shown = torch.full((count, length), noise).scatter(1, place, string)
        shown[:, context:] = mark
        targets = torch.full((count, length), IGNORED)
        targets[:, context:] = string
        return Batch(shown, targets)

    settings = {"tokens": tokens, "content": content}
    return Task("selective", length, tokens + 2, tokens, True, settings, draw)
