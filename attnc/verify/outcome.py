"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """One property of one attention, tried on several cases.

    Attributes:
        variant: the values of parameters that it was tried at, as text; empty where there are none.
        topic: `tiles`, `output`, `gradients`...
        cases: how many were tried before the first failure.
        worst: the greatest error divided by what it might have been; None where the comparison is exact.
        problem: the first failure, with its case; empty if there is none.
        note: why nothing was tried, where nothing was.
    """

    attention: str
    variant: str
    topic: str
    cases: int = 0
    worst: float | None = None
    problem: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for `json.dumps`."""
        return {
            "attention": self.attention,
            "variant": self.variant,
            "topic": self.topic,
            "cases": self.cases,
            "worst": self.worst,
            "problem": self.problem,
            "note": self.note,
        }


class Mismatch(Exception):  # noqa: N818 - a finding, told apart from crashes
    """Something is not what it should be; the text says where."""
