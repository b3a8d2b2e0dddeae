"""One run of `attnc bench`: every pattern at every length, printed as it is measured, written out at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attnc import terminal
from attnc.bench.cases import Shape, square
from attnc.bench.machine import describe, pick_device
from attnc.bench.names import Mode
from attnc.bench.report import as_json, table
from attnc.bench.run import Comparison, Settings, compare
from attnc.compiler import Compiled, import_compiled
from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD, write_bytes, write_text


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure, and where the results go.

    Attributes:
        peers: of `names.PEERS`.
        device: a torch device, or `auto`.
        seconds: time to spend on each measurement.
        json, plot: files to write; None for none.
    """

    lengths: tuple[int, ...]
    peers: tuple[str, ...]
    backward: bool
    batch: int
    heads: int
    kv_heads: int | None
    head_size: int
    dtype: str
    device: str
    seconds: float
    json: Path | None
    plot: Path | None

    def shape(self, length: int) -> Shape:
        """Return the sizes at one length."""
        return square(length, batch=self.batch, heads=self.heads, kv_heads=self.kv_heads, head_size=self.head_size)


def run_bench(request: BenchRequest, patterns: Sequence[Compiled]) -> bool:
    """Measure everything that was asked for; tell whether every attnc module computed the right thing.

    Raises:
        CompileError: the device is not there, or a result cannot be written.
    """
    device = pick(request.device)
    mode = Mode.BOTH if request.backward else Mode.FORWARD
    settings = Settings(device, getattr(torch, request.dtype), request.peers, mode, request.seconds)
    machine = describe(device)
    quiet = request.json is not None and str(request.json) == STANDARD
    console = terminal.messages() if quiet else terminal.output()
    console.print(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {request.dtype}")
    comparisons: list[Comparison] = []
    for compiled in patterns:
        module = import_compiled(compiled)
        for plan in compiled.plans:
            for length in request.lengths:
                shape = request.shape(length)
                label = f"{plan.attention.name} at {length}"
                with terminal.spinner(label) as say:
                    comparisons.append(compare(plan, module, shape, settings, say))
                console.print(table(comparisons[-1]))
                console.print()
    _write(request, comparisons, machine)
    return all(_is_right(comparison) for comparison in comparisons)


def pick(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        CompileError: it is not there.
    """
    try:
        device = pick_device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CompileError(Diagnostic("no-such-device", f"`{name}` cannot be used: {reason}")) from None
    return device


def _is_right(comparison: Comparison) -> bool:
    ours = next(result for result in comparison.results if result.name == "attnc")
    return ours.timing is not None


def _write(request: BenchRequest, comparisons: Sequence[Comparison], machine: dict[str, object]) -> None:
    if request.json is not None:
        settings: dict[str, object] = {
            "dtype": request.dtype,
            "backward": request.backward,
            "peers": list(request.peers),
            "seconds": request.seconds,
        }
        text = json.dumps(as_json(comparisons, machine, settings), indent=2) + "\n"
        if str(request.json) == STANDARD:
            print(text, end="")
        else:
            write_text(request.json, text)
    if request.plot is not None:
        from attnc.bench.plot import draw_times

        write_bytes(request.plot, draw_times(comparisons))
