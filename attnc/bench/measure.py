"""Times and memory of several functions, taken so that they can be compared: warmed up, interleaved, medians."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

Work = Callable[[], object]

Around = Callable[[], AbstractContextManager[object]]
"""Makes what is entered around a sample, outside of its time."""

SHORTEST_SAMPLE = 2e-3
"""Seconds that one sample lasts at least; shorter work is repeated within it."""


LONG = 1.0
"""Seconds of a first call after which nobody asks how often to repeat it."""

PATIENCE = 10.0
"""Seconds of samples of one function after which there are enough, however few they are."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median, best, worst: over the samples.
        samples: how many there were.
    """

    median: float
    best: float
    worst: float
    samples: int


def measure(
    work: Mapping[str, Work],
    device: torch.device,
    *,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 100,
    around: Mapping[str, Around] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time functions against each other.

    Every function is called once to warm up; then rounds follow, in each of which every function gives one sample, in
    an order that turns from round to round, so that a slow drift of the machine touches all of them alike.

    Args:
        work: the functions by name.
        device: where they run.
        least: samples of each, at least, unless they last longer than `PATIENCE`.
        most: samples of each, at most.
        seconds: time that one function's samples may take together, once there are `least` of them.
        around: what is entered around the samples of some functions.
        progress: called after every round.
    """

    def sample(name: str, count: int) -> float:
        with (around or {}).get(name, nullcontext)():
            return _sample(work[name], count, device)

    first = {name: sample(name, 1) for name in work}  # the first call is the warm-up
    repeats = {name: _repeats(taken) for name, taken in first.items()}
    quick = [name for name in work if first[name] < LONG]
    repeats |= {name: _repeats(sample(name, repeats[name])) for name in quick}
    samples: dict[str, list[float]] = {name: [] for name in work}
    for order in _orders(list(work)):
        unfinished = [name for name in order if not _enough(samples[name], repeats[name], seconds, least, most)]
        if not unfinished:
            break
        for name in unfinished:
            samples[name].append(sample(name, repeats[name]))
        progress()
    return {
        name: Timing(statistics.median(taken), min(taken), max(taken), len(taken)) for name, taken in samples.items()
    }


def once(work: Work, device: torch.device) -> float:
    """Return the seconds of a single call, without warming up: for things that are done once."""
    return _sample(work, 1, device)


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Return the bytes that a call needs beyond what is in use before it; None where the system does not tell.

    On a CPU it is the most that torch's allocator had given out at once during the call, as its profiler records it:
    every buffer counts, compiled code's and recycled memory included. What a library allocates for itself does not.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its start and end on standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = work()
    del result
    records = getattr(profile.profiler, "kineto_results", None)
    if records is None:
        return None
    changes = sorted((one.start_ns(), one.nbytes()) for one in records.events() if one.name() == "[memory]")
    return max(itertools.accumulate((int(count) for _, count in changes), initial=0))


def _sample(work: Work, repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = _event(), _event()
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _repeats(seconds: float) -> int:
    return max(1, min(1000, round(SHORTEST_SAMPLE / max(seconds, 1e-7))))


def _enough(taken: list[float], repeats: int, seconds: float, least: int, most: int) -> bool:
    spent = sum(taken) * repeats
    return len(taken) >= most or (len(taken) >= least and spent >= seconds) or spent >= PATIENCE


def _orders(names: list[str]) -> Iterator[list[str]]:
    """Yield the names forward, backward, turned by one, and so on without end."""
    while True:
        yield list(names)
        yield list(reversed(names))
        names = names[1:] + names[:1]
