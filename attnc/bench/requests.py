"""From the options of `attnc bench` to what each kind of run asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnc.bench.names import PEERS, USUAL_PEERS, Mode
from attnc.parameters import MalformedParameterError

if TYPE_CHECKING:
    from attnc.bench.session import BenchRequest
    from attnc.bench.standard import StandardRequest

LENGTHS = (1024, 4096)
"""Of patterns that are named."""

SECONDS = 2.0

PATTERNS = Path(__file__).parent / "patterns"

SUITES = {"sparsity": "literature", "standard": "standard"}
"""Suites, and the folder of the patterns that each one has for itself."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the command line said; None where it said nothing."""

    suite: str | None = None
    lengths: tuple[int, ...] | None = None
    peers: tuple[str, ...] | None = None
    backward: bool = False
    modes: tuple[Mode, ...] | None = None
    batch: int | None = None
    tokens: int | None = None
    heads: int = 8
    kv_heads: tuple[int, ...] | None = None
    head_sizes: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    device: str = "auto"
    seconds: float | None = None
    only: tuple[str, ...] = ()
    budget: float | None = None
    redo: bool = False
    markdown: Path | None = None
    json: Path | None = None
    plot: Path | None = None

    def require_place(self) -> None:
        """Refuse options that mean nothing to this kind of run, and numbers of heads that do not fit.

        Raises:
            MalformedParameterError: there is one.
        """
        suites: tuple[str | None, ...] = ("sparsity", "standard")
        places: dict[str, tuple[bool, tuple[str | None, ...]]] = {
            "budget": (self.budget is not None, suites),
            "only": (bool(self.only), suites),
            "redo": (self.redo, suites),
            "markdown": (self.markdown is not None, suites),
            "modes": (self.modes is not None, ("standard",)),
            "tokens": (self.tokens is not None, ("standard",)),
            "backward": (self.backward, (None, "sparsity")),
            "batch": (self.batch is not None, (None, "sparsity")),
            "plot": (self.plot is not None, (None, "standard")),
        }
        for name, (given, kinds) in places.items():
            if given and self.suite not in kinds:
                where = "patterns by themselves" if self.suite is None else f"the {self.suite} suite"
                raise MalformedParameterError(f"--{name} is not for {where}")
        for kv_heads in self.kv_heads or ():
            if self.heads % kv_heads:
                raise MalformedParameterError(f"{kv_heads} key/value heads do not divide {self.heads} heads")
        several = {"kv-heads": self.kv_heads, "head-size": self.head_sizes, "dtype": self.dtypes}
        for option, values in several.items():
            if values is not None and len(values) > 1 and self.suite != "standard":
                raise MalformedParameterError(f"several values of --{option} are for --suite standard")


def suite_files(suite: str | None) -> list[Path]:
    """Return the patterns of a suite: those that both have, and its own."""
    if suite is None:
        return []
    return sorted([*PATTERNS.glob("*.attn"), *(PATTERNS / SUITES[suite]).glob("*.attn")])


def single_request(options: BenchOptions, lengths: Sequence[int]) -> BenchRequest:
    """Return a request with one number of heads, one head size and one precision, `lengths` unless said."""
    from attnc.bench.session import BenchRequest

    return BenchRequest(
        lengths=options.lengths or tuple(lengths),
        peers=USUAL_PEERS if options.peers is None else options.peers,
        backward=options.backward,
        batch=options.batch or 1,
        heads=options.heads,
        kv_heads=options.kv_heads[0] if options.kv_heads else None,
        head_size=options.head_sizes[0] if options.head_sizes else 64,
        dtype=options.dtypes[0] if options.dtypes else "float32",
        device=options.device,
        seconds=SECONDS if options.seconds is None else options.seconds,
        json=options.json,
        plot=options.plot,
    )


def standard_request(options: BenchOptions) -> StandardRequest:
    """Return the request of the benchmark standard."""
    from attnc.bench.standard import StandardRequest

    return StandardRequest(
        lengths=options.lengths or (),
        peers=PEERS if options.peers is None else options.peers,
        modes=options.modes or tuple(Mode),
        tokens=options.tokens,
        heads=options.heads,
        kv_heads=options.kv_heads or (),
        head_sizes=options.head_sizes or (),
        dtypes=options.dtypes or (),
        device=options.device,
        seconds=options.seconds,
        plot=options.plot,
    )
