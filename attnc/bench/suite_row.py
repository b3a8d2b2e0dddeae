"""One case of a suite: a pattern at one length, in numbers that can be written down and read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

DERIVED = ("waste_in_tiles", "waste", "times_floor", "times_flex", "times_best_flex", "times_flex_with_build")
"""Ratios that are written beside the numbers that they come from."""


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """What was measured of one pattern at one length.

    Attributes:
        pattern: name of its file.
        idea: where it comes from.
        pairs: allowed ones, one head; None where nothing could be measured.
        layouts: of the plan's passes.
        in_tiles: pairs in tiles of 64 x 64 that are visited, one head.
        tile: the tiles that really run; `slabs` on a CPU, whose rectangles are of many sizes.
        computed: pairs in those.
        seconds: of each contender that was right; `dense` is SDPA without a mask.
        build_seconds: of masks, apart from `seconds`.
        floor_seconds: density times `dense`.
        problems: why a contender has no time.
        comparison: everything that was measured.
    """

    pattern: str
    idea: str
    length: int
    pairs: float | None = None
    density: float | None = None
    layouts: tuple[str, ...] = ()
    in_tiles: float | None = None
    tile: str = ""
    computed: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    build_seconds: Mapping[str, float] = field(default_factory=dict)
    floor_seconds: float | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> SuiteRow:
        """Read what `as_json` wrote.

        Raises:
            KeyError: a field is missing.
        """
        values = {one.name: row[one.name] for one in fields(cls)}
        return cls(**{**values, "layouts": tuple(row["layouts"])})

    def as_json(self) -> dict[str, Any]:
        """Return the row with its ratios, ready for `json.dumps`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        ratios = {name: getattr(self, name) for name in DERIVED}
        last = {"comparison": values.pop("comparison")}
        return {**values, "layouts": list(self.layouts), **ratios, **last}

    @property
    def key(self) -> tuple[str, int]:
        """Which case it is of."""
        return self.pattern, self.length

    @property
    def right(self) -> bool:
        """Whether attnc's module computed the right thing."""
        return "attnc" in self.seconds

    @property
    def waste_in_tiles(self) -> float | None:
        """Pairs in visited tiles of 64 x 64 for each allowed one."""
        return _ratio(self.in_tiles, self.pairs)

    @property
    def waste(self) -> float | None:
        """Pairs really computed for each allowed one."""
        return _ratio(self.computed, self.pairs)

    @property
    def times_floor(self) -> float | None:
        """Time in floors."""
        return _ratio(self.seconds.get("attnc"), self.floor_seconds)

    @property
    def times_flex(self) -> float | None:
        """FlexAttention's time at its default block size, mask build not counted, for one of attnc's."""
        return _ratio(self.seconds.get("flex 128"), self.seconds.get("attnc"))

    @property
    def times_best_flex(self) -> float | None:
        """The same at its better block size."""
        times = [seconds for name, seconds in self.seconds.items() if name.startswith("flex")]
        return _ratio(min(times, default=None), self.seconds.get("attnc"))

    @property
    def times_flex_with_build(self) -> float | None:
        """The same at its default block size, mask build counted."""
        if "flex 128" not in self.seconds:
            return None
        whole = self.seconds["flex 128"] + self.build_seconds.get("flex 128", 0.0)
        return _ratio(whole, self.seconds.get("attnc"))

    @property
    def sdpa(self) -> float | None:
        """SDPA's time with the pattern as a dense mask, or as the flag that it is."""
        return next((seconds for name, seconds in self.seconds.items() if name.startswith("sdpa")), None)

    def memory(self, name: str) -> int | None:
        """Return the bytes that the contender whose name begins so needs beyond its arguments; None if not measured."""
        results = self.comparison.get("results", ())
        return next((one["memory"] for one in results if one["name"].startswith(name)), None)


def _ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit else None
