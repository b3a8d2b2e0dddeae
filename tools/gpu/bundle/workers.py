"""Processes that do the steps: what fails, hangs or breaks the device in one ends that process, and is a result."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One step.

    Attributes:
        part, key: where its result goes.
        kind: of `worker.STEPS`.
        given: its arguments.
        limit: seconds after which it is given up.
    """

    part: str
    key: str
    kind: str
    given: dict[str, Any] = field(default_factory=dict)
    limit: float = 90.0


class Worker:
    """One process, started when it is first needed and again after it has died."""

    def __init__(self, device: str, log: Path) -> None:
        self._device, self._log = device, log
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, job: Job, limit: float) -> Row:
        """Do a step and return its row; a row that says why where there is none."""
        begin = time.monotonic()
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"kind": job.kind, "given": job.given}).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process, begin + limit)
        except OSError:
            line = b""
        if line is None:
            self.close()
            return {"ok": False, "why": f"no answer within {limit:.0f} s", "late": True}
        if not line:
            code = process.wait()
            self.close()
            return {"ok": False, "why": f"the process ended with code {code}: {self._last_words()}"}
        row: Row = json.loads(line)
        if row.pop("broken", False):  # the device's context is beyond repair in that process
            self.close()
        return row | {"took": round(time.monotonic() - begin, 3)}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "bundle.worker", self._device],
                    cwd=HERE,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], end: float) -> bytes | None:
        """Return the next line, nothing where the process ended, None where it is late."""
        assert process.stdout is not None
        handle, found = process.stdout.fileno(), b""
        while not found.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                return None
            more = os.read(handle, 1 << 16)
            if not more:
                return b""
            found += more
        return found

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 600))
            return " | ".join(log.read().decode(errors="replace").strip().splitlines()[-3:])

    def close(self) -> None:
        """End the process and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        try:
            process.wait(timeout=0.5 if process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Pool:
    """Several workers that share a list of steps."""

    def __init__(self, count: int, device: str, log: Path) -> None:
        self._workers = [Worker(device, log) for _ in range(count)]

    def run(self, jobs: Iterable[Job], deadline: float, put: Callable[[Job, Row], None], *, alone: bool) -> None:
        """Do steps in their order until the deadline, after which nothing is begun.

        Args:
            jobs: the steps.
            deadline: of `time.monotonic`. What is late by it is given up a little later, and has no row.
            put: called with each row, by one thread at a time.
            alone: whether one worker does all of them and no other has anything in the device's memory.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        if waiting.empty():
            return
        if alone:
            for worker in self._workers[1:]:
                worker.close()
        lock = threading.Lock()

        def work(worker: Worker) -> None:
            while time.monotonic() < deadline:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                left = deadline - time.monotonic() + 0.25 * job.limit
                row = worker.call(job, min(job.limit, left))
                cut_short = row.pop("late", False) and left < job.limit
                if not cut_short:
                    with lock:
                        put(job, row)

        threads = [
            threading.Thread(target=work, args=(one,)) for one in (self._workers[:1] if alone else self._workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()
