"""Tuning on the device: configurations are checked, outputs and gradients, and then measured side by side."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch

from bundle import checks
from bundle.data import Shape, make_arguments, module_of, patterns
from bundle.measure import measure
from bundle.suite import shape_of

GAIN = 0.02
"""Share of the default's time that a candidate has to save: less is not told from noise."""

AT_ONCE = 4
"""Candidates that are measured against each other, and against the default, in one round."""

GATE_LENGTHS = (1024, 257)

Tiles = dict[str, Any]
"""The fields of `runtime.tiles.Tiles`; or `library`, the name of what may take the place of all kernels of a pass."""


def kernels(key: str, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the identities of the kernels of a forward pass, and of those that a backward pass runs besides."""
    module = module_of(patterns()[key])
    with module.watch_kernels() as asked:
        _work(key, sizes, device, backward=False)()
        forward = list(dict.fromkeys(asked))
        _work(key, sizes, device, backward=True)()
        every = list(dict.fromkeys(asked))
    return {"ok": True, "forward": forward, "backward": [one for one in every if one not in forward]}


def gate(key: str, sizes: dict[str, Any], identity: str, tiles: Tiles, device: str) -> dict[str, Any]:
    """Check one configuration of one kernel: output and all gradients; and that a library's call can be captured."""
    pattern = patterns()[key]
    module = module_of(pattern)
    for length in GATE_LENGTHS if device == "cuda" else (65,):
        shape = Shape(1, sizes["heads"], sizes["kv_heads"], length, length, sizes["head_size"])
        with module.try_tiles({identity: _made(module, tiles)}):
            found = checks.check(pattern, shape, sizes["dtype"], device)
        if not found["ok"]:
            return {"ok": False, "wrong": found["wrong"], "length": length}
        if "library" in tiles and device == "cuda":
            # a library sums gradients of queries in any order, unless it is told not to
            with module.try_tiles({identity: _made(module, tiles)}), checks.poisoned():
                found = checks.capture(pattern, shape, sizes["dtype"])
            if not found["ok"]:
                return found | {"length": length}
    return {"ok": True}


def _made(module: Any, tiles: Tiles) -> Any:
    return module.LibraryCall(tiles["library"]) if "library" in tiles else module.Tiles(**tiles)


def tune(
    key: str,
    sizes: dict[str, Any],
    identity: str,
    backward: bool,
    tiles: list[Tiles],
    others: dict[str, Tiles],
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """Measure configurations that are right against what would be taken anyway, and enter the fastest.

    Args:
        key: of the pattern.
        sizes: of the calls.
        identity: of the kernel, or of a library's call.
        backward: whether it is of the backward pass.
        tiles: what to measure.
        others: what other kernels take meanwhile: a library is measured against the best that kernels do.
        seconds: of samples.
        device: where.
    """
    module = module_of(patterns()[key])
    work = _work(key, sizes, device, backward=backward)
    taken = {name: _made(module, one) for name, one in others.items()}

    def with_tiles(number: int | None) -> Callable[[], object]:
        tried = {} if number is None else {identity: _made(module, tiles[number])}

        def run() -> object:
            with module.try_tiles(taken | tried):
                return work()

        return run

    times: dict[int, float] = {}
    default = float("inf")
    for start in range(0, len(tiles), AT_ONCE):
        # the best so far runs again beside the new ones: a machine drifts from round to round
        leader = [min(times, key=lambda one: times[one])] if times else []
        numbers = [None, *leader, *range(start, min(start + AT_ONCE, len(tiles)))]
        found = _measured({str(number): with_tiles(number) for number in numbers}, seconds, device)
        default = found.pop("None")
        times |= {int(number): taken for number, taken in found.items()}
    best = min(times, key=lambda one: times[one])
    decided = _measured({"None": with_tiles(None), str(best): with_tiles(best)}, 2 * seconds, device)
    default, times[best] = decided["None"], decided[str(best)]
    ordered = sorted(times, key=lambda one: times[one])
    trials = [{"tiles": tiles[number], "seconds": times[number]} for number in ordered]
    row = {"ok": True, "pattern": key, "identity": identity, "backward": backward, "default_seconds": default}
    chosen = ordered[0] if times[ordered[0]] < (1 - GAIN) * default else None
    entry = None if chosen is None else _entry(module, identity, sizes, device, tiles[chosen])
    if entry is not None:
        entry |= {"seconds": times[chosen], "default_seconds": default, "when": _today()}
    return row | {"trials": trials, "entry": entry}


def _measured(work: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, float]:
    timings = measure(work, torch.device(device), seconds=seconds, least=3)
    return {name: timing.median for name, timing in timings.items()}


def _work(key: str, sizes: dict[str, Any], device: str, *, backward: bool) -> Callable[[], object]:
    """Return what is measured: a forward pass, or both."""
    pattern = patterns()[key]
    tensors, inputs = make_arguments(pattern, shape_of(sizes), sizes["dtype"], device)
    call = pattern.function()
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return call(*tensors, **inputs)

        return forward
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
    upstream = torch.randn_like(leaves[0])
    return lambda: torch.autograd.grad(call(*leaves, **inputs), leaves, upstream)


def _entry(module: Any, identity: str, sizes: dict[str, Any], device: str, tiles: Tiles) -> dict[str, Any]:
    """Return an entry for calls of about a shape, under the versions that are installed."""
    length = module.round_length(sizes["length"])
    found = {
        "kernel": identity,
        "device": module.device_name(torch.device(device, 0) if device == "cuda" else torch.device(device)),
        "versions": module.versions_of_library() if "library" in tiles else module.versions_of(False),
        "dtype": sizes["dtype"],
        "head_size": module.padded(sizes["head_size"]),
        "value_size": module.padded(sizes["head_size"]),
        "queries": length,
        "keys": length,
    }
    if "library" in tiles:
        return found | tiles
    told = {name: value for name, value in tiles.items() if value or name in ("query", "key", "warps", "stages")}
    return found | {"tiles": told}


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
