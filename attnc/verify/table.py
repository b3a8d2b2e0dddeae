"""The result of a verification for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnc.verify.outcome import Outcome

if TYPE_CHECKING:
    from rich.table import Table


def report_table(reports: Sequence[tuple[str, Sequence[Outcome]]]) -> Table:
    """Lay out files and outcomes: one line for each attention and set of parameters."""
    from rich.table import Table
    from rich.text import Text

    checked = dict.fromkeys(outcome.topic for _, outcomes in reports for outcome in outcomes if not outcome.note)
    skipped = dict.fromkeys(f"no {one.topic}: {one.note}" for _, outcomes in reports for one in outcomes if one.note)
    notes = [f"checked: {', '.join(checked)}", *skipped, WORST]
    table = Table(caption="\n".join(notes), caption_justify="left")
    for heading in ("file", "attention", "at"):
        table.add_column(heading, overflow="fold")
    table.add_column("cases", justify="right")
    table.add_column("worst", justify="right")
    table.add_column("", no_wrap=True)
    for file, outcomes in reports:
        for key in dict.fromkeys((outcome.attention, outcome.variant) for outcome in outcomes):
            group = [outcome for outcome in outcomes if (outcome.attention, outcome.variant) == key]
            failed = [outcome.topic for outcome in group if outcome.problem]
            verdict = Text("wrong: " + ", ".join(failed), "bold red") if failed else Text("agrees", "green")
            worst = max((outcome.worst for outcome in group if outcome.worst is not None), default=None)
            cases = sum(outcome.cases for outcome in group)
            table.add_row(file, *key, str(cases), "" if worst is None else f"{worst:.2f}", verdict)
    return table


WORST = (
    "worst: the greatest error, in units of what FlashAttention's rule allows (2 x PyTorch's own, 3 x for gradients)"
)
