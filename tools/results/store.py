"""What a part has measured: rows in a JSON file that is written whole after each, so that a part goes on from there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from attnc.bench.machine import describe
from attnc.files import write_text

SAME = ("device", "cores", "threads", "torch")
"""What of two machines must be equal for their figures to stand in one table."""


class OutOfTimeError(Exception):
    """The time that was given is over; what was measured is in the file."""


class Store:
    """Rows by their keys, with the machine and the settings that they were measured with.

    Args:
        path: the file.
        machine: of this run.
        settings: of this run.
        deadline: no row is begun behind it, on the clock of `time.monotonic`.
        redo: forget what the file has.
    """

    def __init__(
        self,
        path: Path,
        machine: Mapping[str, Any],
        settings: Mapping[str, Any],
        deadline: float = float("inf"),
        *,
        redo: bool = False,
    ) -> None:
        self.path, self.deadline = path, deadline
        self.data: dict[str, Any] = {"machine": dict(machine), "settings": plain(settings), "rows": {}, "load": 0.0}
        earlier = None if redo else read(path)
        if earlier is not None and same_machine(earlier, self.data) and earlier["settings"] == self.data["settings"]:
            self.data |= {name: earlier[name] for name in ("rows", "load") if name in earlier}

    @property
    def rows(self) -> dict[str, Any]:
        """Everything that was measured."""
        rows: dict[str, Any] = self.data["rows"]
        return rows

    def add(self, key: str, measure: Callable[[], Any]) -> None:
        """Measure a row unless it is there.

        Raises:
            OutOfTimeError: it is not, and the time is over.
        """
        if key in self.rows:
            return
        if time.monotonic() > self.deadline:
            raise OutOfTimeError
        begin = time.monotonic()
        self.rows[key] = plain(measure())
        self.data["load"] = max(self.data["load"], round(os.getloadavg()[0], 1))
        print(f"{key}: {time.monotonic() - begin:.1f} s", flush=True)
        write_json(self.path, self.data)


def publish(store: Store, path: Path) -> None:
    """Copy complete rows to where the pages are written from."""
    write_json(path, store.data)


def one_thread() -> dict[str, Any]:
    """Compute with one thread from now on, and return what that is on.

    Threads wait for each other, so that two of them take several times as long where another program runs, and the
    time of one on the processor hardly changes.
    """
    torch.set_num_threads(1)
    return describe(torch.device("cpu"))


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two files are of one machine."""
    return all(one["machine"].get(name) == other["machine"].get(name) for name in SAME)


def read(path: Path) -> dict[str, Any] | None:
    """Read a file of rows; None where there is none, or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    expected = isinstance(found, dict) and {"machine", "settings", "rows"} <= found.keys()
    return found if expected else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a file as a whole; a number that is none is a mistake."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return json.loads(json.dumps(value, allow_nan=False))
