"""What a training gave: a table for people, as text and as Markdown, and everything as JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import HEAVY_HEAD
from rich.table import Table

from attnc.bench.machine import describe
from attnc.bench.report import duration
from language_model.agreement import Agreement
from language_model.training import Learner, Settings, recent_steps

HEADINGS = ("pattern", "computed by", "density", "attention", "all", "loss", "held out", "time", "memory")


def rows(learners: Sequence[Learner], settings: Settings) -> list[tuple[str, ...]]:
    """Return the cells of the table, a row for each training."""
    return [
        (
            learner.pattern.name,
            learner.by,
            f"{learner.pattern.density:.4f}",
            f"{attention_flops(learner, settings) / 1e9:.3g} GFLOP",
            f"{(attention_flops(learner, settings) + matrix_flops(learner, settings)) / 1e9:.3g} GFLOP",
            f"{learner.curves.recent:.4f}",
            f"{learner.curves.last_validation:.4f}",
            duration(learner.curves.step_seconds),
            "?" if learner.curves.memory is None else f"{learner.curves.memory / 2**20:.0f} MiB",
        )
        for learner in learners
    ]


def table(learners: Sequence[Learner], settings: Settings) -> Table:
    """Lay the trainings out for a terminal."""
    made = Table(title=_title(learners, settings), title_justify="left", box=HEAVY_HEAD)
    for number, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    cells = rows(learners, settings)
    for number, row in enumerate(cells):
        made.add_row(*row, end_section=number + 1 < len(cells) and cells[number + 1][0] != row[0])
    return made


def caption(settings: Settings) -> str:
    """Say what the columns are."""
    return (
        "attention: floating-point operations of the allowed pairs in a step, forward and backward, all layers; all:\n"
        "with the rest of the model. They are counted, and what a program computes beside them is not in them.\n"
        f"loss: nats a byte, the mean of the last {recent_steps(settings.steps)} steps. time: of a step, the median.\n"
        "memory: what forward and backward need beyond parameters, gradients, the optimiser's state and SDPA's mask."
    )


def markdown(learners: Sequence[Learner], settings: Settings, found: Sequence[Agreement]) -> str:
    """Return table, caption and agreements as Markdown."""
    lines = [_title(learners, settings), "", _line(HEADINGS), "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    lines += [_line(row) for row in rows(learners, settings)]
    lines += ["", caption(settings)]
    lines += ["", *(f"- {one.sentence()}" for one in found)] if found else []
    return "\n".join(lines) + "\n"


def as_json(learners: Sequence[Learner], settings: Settings, found: Sequence[Agreement]) -> dict[str, Any]:
    """Return everything, ready for `json.dumps`. Times are seconds, memory is bytes, losses are nats a byte."""
    return {
        "machine": describe(learners[0].model.embedding.weight.device),
        "settings": asdict(settings) | {"dtype": str(settings.dtype).removeprefix("torch.")},
        "parameters": learners[0].model.parameter_count(),
        "matrix_flops": matrix_flops(learners[0], settings),
        "trainings": [
            {
                "pattern": learner.pattern.name,
                "by": learner.by,
                "pairs": learner.pattern.pairs,
                "attention_flops": attention_flops(learner, settings),
                **asdict(learner.curves),
            }
            for learner in learners
        ],
        "agreements": [asdict(one) for one in found],
    }


def attention_flops(learner: Learner, settings: Settings) -> int:
    """Count what attention takes in a step, of all windows and layers."""
    size = settings.size
    return learner.pattern.attention_flops(size.heads, size.head_size) * settings.batch * size.layers


def matrix_flops(learner: Learner, settings: Settings) -> int:
    """Count what everything else takes in a step."""
    return learner.model.matrix_flops(settings.batch * settings.length)


def _title(learners: Sequence[Learner], settings: Settings) -> str:
    facts = describe(learners[0].model.embedding.weight.device)
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return (
        f"{learners[0].model.parameter_count():,} parameters, {settings.steps} steps of {settings.batch} x "
        f"{settings.length} bytes\n{facts['device']}, {threads}, torch {facts['torch']}, "
        f"{str(settings.dtype).removeprefix('torch.')}"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
