"""One case of the benchmark standard: one pattern at one set of sizes, one precision, one mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from attnc.bench.names import Mode
from attnc.bench.run import Comparison, Result

OURS = "attnc"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a case is besides its pattern.

    Attributes:
        length: of queries and of keys.
    """

    length: int
    batch: int
    heads: int
    kv_heads: int
    head_size: int
    dtype: str
    mode: Mode

    @property
    def configuration(self) -> tuple[str, int, int, int, Mode]:
        """What rows of one table have in common: dtype, heads, key/value heads, head size, mode."""
        return self.dtype, self.heads, self.kv_heads, self.head_size, self.mode

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        return f"N={self.length} B={self.batch} H={heads} D={self.head_size} {self.dtype} {self.mode}"


@dataclass(frozen=True, slots=True)
class StandardRow:
    """What was measured of one case.

    Attributes:
        pattern: name of its file.
        idea: where it comes from.
        small: whether it is one short call, measured for what a call costs besides its work.
        comparison: everything that was measured; None where the pattern could not be compiled, and `problem` says why.
    """

    pattern: str
    idea: str
    sizes: Sizes
    small: bool
    comparison: Comparison | None = None
    problem: str = ""

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> StandardRow:
        """Read what `as_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        values = {one.name: row[one.name] for one in fields(cls)}
        sizes = Sizes(**{**row["sizes"], "mode": Mode(row["sizes"]["mode"])})
        comparison = None if row["comparison"] is None else Comparison.from_json(row["comparison"])
        return cls(**{**values, "sizes": sizes, "comparison": comparison})

    def as_json(self) -> dict[str, Any]:
        """Return the row, and its ratios, ready for `json.dumps`."""
        ratios = {"times_floor": self.times_floor, "fastest_peer": self.fastest_peer, "speed_ups": self.speed_ups}
        row = asdict(self)
        if row["comparison"] is not None:  # most of the many providers have little to say
            row["comparison"]["results"] = [_said(result) for result in row["comparison"]["results"]]
        return {**row, **ratios}

    @property
    def key(self) -> tuple[str, Sizes]:
        """Which case it is of."""
        return self.pattern, self.sizes

    @property
    def results(self) -> dict[str, Result]:
        """What became of each provider, by the provider's name."""
        results = () if self.comparison is None else self.comparison.results
        return {provider(result.name): result for result in results}

    @property
    def seconds(self) -> dict[str, float]:
        """Median time of each provider that was right."""
        return {name: result.timing.median for name, result in self.results.items() if result.timing is not None}

    @property
    def right(self) -> bool:
        """Whether attnc's module computed the right thing."""
        return OURS in self.seconds

    @property
    def speed_ups(self) -> dict[str, float]:
        """Time of each peer for one of attnc's."""
        seconds = self.seconds
        ours = seconds.pop(OURS, None)
        return {name: one / ours for name, one in seconds.items()} if ours else {}

    @property
    def fastest_peer(self) -> str | None:
        """Name of the peer with the least time, preparation of masks not counted."""
        seconds = {name: one for name, one in self.seconds.items() if name != OURS}
        return min(seconds, key=lambda name: seconds[name], default=None)

    @property
    def times_floor(self) -> float | None:
        """Time of attnc in floors."""
        result = self.results.get(OURS)
        return None if result is None else result.times_floor

    @property
    def problems(self) -> dict[str, str]:
        """Why a provider has no time."""
        if self.comparison is None:
            return {OURS: self.problem}
        return {name: result.problem for name, result in self.results.items() if result.timing is None}

    @property
    def overhead(self) -> float | None:
        """Seconds that a call takes longer than SDPA's on the same pattern; None where either has no time."""
        seconds = self.seconds
        return seconds[OURS] - seconds["sdpa"] if OURS in seconds and "sdpa" in seconds else None


def _said(result: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has its default."""
    usual = {one.name: one.default for one in fields(Result)}
    return {name: value for name, value in result.items() if value != usual[name]}


def provider(name: str) -> str:
    """Return who a contender belongs to: `sdpa, causal` and `sdpa, dense mask` are `sdpa`."""
    return name.partition(",")[0]
