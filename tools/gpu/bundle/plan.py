"""Which steps there are, in their order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundle.results import Results
from bundle.scans import DRY_SCANS, MODULE, SCANS
from bundle.structures import DRY_STRUCTURES, STRUCTURES
from bundle.structures import MODULE as PROJECTIONS
from bundle.workers import Job

HERE = Path(__file__).resolve().parent.parent

CHECKS = (
    ("bfloat16", (2, 4, 2, 257, 257, 64)),
    ("bfloat16", (1, 2, 1, 4500, 4500, 128)),  # beyond the windows of all examples but one
    ("float16", (1, 4, 1, 100, 300, 128)),
    ("bfloat16", (1, 4, 2, 1, 513, 128)),
    ("float16", (2, 4, 4, 1000, 1000, 64)),
    ("bfloat16", (1, 4, 2, 300, 65, 64)),
    ("bfloat16", (2, 4, 4, 65, 65, 128)),
    ("bfloat16", (1, 2, 2, 1, 1, 64)),
    ("float32", (1, 4, 2, 257, 257, 64)),
    ("bfloat16", (1, 2, 2, 1024, 1024, 80)),
    ("bfloat16", (1, 2, 1, 300, 300, 256)),
    ("float16", (1, 4, 2, 2048, 2048, 128)),
)
"""Types and sizes of comparisons, the most telling first: batch, heads, key heads, queries, keys, head size."""

DRY_CHECKS = (
    ("float32", (1, 2, 1, 65, 65, 16)),
    ("float32", (1, 2, 2, 20, 70, 16)),
)

CAPTURED = (2, 4, 2, 257, 257, 64)

PEERS = ("flex", "sdpa", "sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "sdpa-math")

DRY_PEERS = ("sdpa", "sdpa-math")

SHORT_PEERS = tuple(name for name in PEERS if name != "flex")
"""What a short call costs is a question to functions that are called: FlexAttention is compiled for each length."""

DRY = {"length": 128, "batch": 1, "heads": 2, "kv_heads": 1, "head_size": 16, "dtype": "float32"}
"""Sizes on a machine without a GPU, where the steps are tried and nothing is measured."""

SECONDS = 0.2
"""Time of samples of each provider."""

LIBRARY = ", library"
"""In names of what stands for a library's call, and for no kernel: see `runtime/gpu_library.py`."""

MOST_TRIED = 8
"""Candidates of a kernel that are checked and measured."""


class Steps:
    """The steps of one bundle on one device.

    Attributes:
        manifest: what `tools/gpu_bundle.py` has written down.
        only: names of patterns that steps are limited to; all if empty.
    """

    def __init__(self, device: str, only: list[str] | None = None) -> None:
        self.manifest: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
        self.dry = device == "cpu"
        self.only = set(only or ())
        patterns = sorted(self.manifest["patterns"], key=lambda one: (one["priority"], one["key"]))
        self.patterns = [one for one in patterns if self._is_wanted(one["key"])]
        self.cases = [case for case in self.manifest["cases"] if self._is_wanted(case["pattern"])]

    def _is_wanted(self, key: str) -> bool:
        return not self.only or key in self.only or key.rpartition("/")[2] in self.only

    def checks(self) -> Iterator[Job]:
        """Yield comparisons of all examples, one set of sizes after the other."""
        for dtype, shape in DRY_CHECKS if self.dry else CHECKS:
            for one in self.patterns:
                if one["key"].startswith("examples/"):
                    given = {"pattern": one["key"], "shape": list(shape), "dtype": dtype}
                    yield Job("correct", f"{one['key']} {dtype} {_words(shape)}", "check", given)
        for dtype, sizes, weights, reverse in DRY_SCANS if self.dry else SCANS:
            if self._is_wanted(MODULE):
                given = {"dtype": dtype, "sizes": list(sizes), "weights": weights, "reverse": reverse}
                yield Job("correct", f"{MODULE} {' '.join(str(value) for value in given.values())}", "scan", given)
        for dtype, kind, *sizes in DRY_STRUCTURES if self.dry else STRUCTURES:
            if self._is_wanted(PROJECTIONS):
                given = {"dtype": dtype, "kind": kind, "sizes": sizes}
                yield Job("correct", f"{PROJECTIONS} {' '.join(map(str, given.values()))}", "structure", given)

    def captures(self) -> Iterator[Job]:
        """Yield captures of all examples in CUDA graphs, where there are such."""
        for one in [] if self.dry else self.patterns:
            if one["key"].startswith("examples/"):
                given = {"pattern": one["key"], "shape": list(CAPTURED), "dtype": "bfloat16"}
                yield Job("graphs", f"{one['key']} {_words(CAPTURED)}", "capture", given, limit=60)

    def ceilings(self) -> Iterator[Job]:
        """Yield the measurement of what the device reaches."""
        yield Job("ceilings", "ceilings", "ceilings", limit=60)

    def prepared(self) -> Iterator[Job]:
        """Yield what compiles the kernels of the first cases, each pattern once."""
        first = {case["pattern"]: case for case in reversed(self.cases) if case["first"]}
        for key, case in reversed(first.items()):
            given = {"key": key, "sizes": self._sizes(case), "names": list(self._peers(case))}
            yield Job("prepared", key, "prepare", given, limit=150)

    def standard(self, *, first: bool) -> Iterator[Job]:
        """Yield the cases of the benchmark standard: those that decide on its targets, or all others."""
        for case in self.cases:
            if case["first"] == first:
                sizes = self._sizes(case)
                given = {
                    "key": case["pattern"],
                    "sizes": sizes,
                    "small": case["small"],
                    "names": list(self._peers(case)),
                }
                label = f"{case['pattern']} {' '.join(str(value) for value in sizes.values())}"
                yield Job("standard", label, "case", given | {"seconds": self._seconds()}, limit=120)

    def profiles(self) -> Iterator[Job]:
        """Yield the question where the time goes, for each pattern of the first cases."""
        for job in self.prepared():
            given = {name: job.given[name] for name in ("key", "sizes")}
            yield Job("profiles", job.key, "profile", given, limit=60)

    def _sizes(self, case: dict[str, Any]) -> dict[str, Any]:
        return case["sizes"] | DRY if self.dry else case["sizes"]

    def _peers(self, case: dict[str, Any]) -> tuple[str, ...]:
        return DRY_PEERS if self.dry else SHORT_PEERS if case["small"] else PEERS

    def _seconds(self) -> float:
        return 0.0 if self.dry else SECONDS

    def kernels(self) -> Iterator[Job]:
        """Yield the question which kernels a pattern runs, for each one that has candidates."""
        for tuned in self.manifest["tuned"]:
            if self._is_wanted(tuned["pattern"]):
                given = {"key": tuned["pattern"], "sizes": self._sizes(tuned)}
                yield Job("kernels", _tuned_key(tuned), "kernels", given, limit=60)

    def gates(self, results: Results) -> Iterator[Job]:
        """Yield the comparison of each candidate, the best candidates of all kernels first."""
        asked = [one for one in self._kernels(results) if one[3]]
        for rank in range(MOST_TRIED):
            for tuned, identity, _, candidates in asked:
                if rank < len(candidates):
                    given = {"key": tuned["pattern"], "sizes": self._sizes(tuned), "identity": identity}
                    given |= {"tiles": candidates[rank]}
                    yield Job("gates", _gate_key(tuned, identity, candidates[rank]), "gate", given)

    def tunings(self, results: Results, *, library: bool) -> Iterator[Job]:
        """Yield the measurement of each kernel with the candidates that were right; or of the library instead."""
        gates = results.part("gates")
        for tuned, identity, backward, candidates in self._kernels(results):
            if (LIBRARY in identity) != library:
                continue
            right = [one for one in candidates if gates.get(_gate_key(tuned, identity, one), {}).get("ok")]
            if right:
                given = {"key": tuned["pattern"], "sizes": self._sizes(tuned), "identity": identity}
                entered = [row["entry"] for row in results.part("tuned").values() if row.get("entry")]
                others = {one["kernel"]: one["tiles"] for one in entered if library and "tiles" in one}
                given |= {"backward": backward, "tiles": right, "others": others, "seconds": self._seconds()}
                yield Job("tuned", f"{_tuned_key(tuned)} {identity}", "tune", given)

    def _kernels(self, results: Results) -> Iterator[tuple[dict[str, Any], str, bool, list[dict[str, Any]]]]:
        for tuned in self.manifest["tuned"]:
            found = results.part("kernels").get(_tuned_key(tuned), {})
            for backward in (False, True):
                for identity in found.get("backward" if backward else "forward", ()):
                    known = [{"library": "flash"}] if LIBRARY in identity else tuned["candidates"].get(identity, [])
                    yield tuned, identity, backward, known[:MOST_TRIED]

    def long(self) -> Iterator[Job]:
        """Yield long sequences: attnc alone, then FlexAttention's mask where it can be tried."""
        for case in self.manifest["long"]:
            if self._is_wanted(case["pattern"]):
                sizes = self._sizes(case)
                given = {"key": case["pattern"], "sizes": sizes, "seconds": self._seconds()}
                label = f"{case['pattern']} {case['sizes']['length']}"
                yield Job("long", label, "long", given)
                if not self.dry:
                    yield Job("long", f"{label} flex", "long-flex", given)


def _words(shape: tuple[int, ...]) -> str:
    batch, heads, kv_heads, queries, keys, head_size = shape
    return f"B{batch} H{heads}/{kv_heads} N{queries} M{keys} D{head_size}"


def _tuned_key(tuned: dict[str, Any]) -> str:
    sizes = tuned["sizes"]
    return f"{tuned['pattern']} {sizes['length']} {sizes['head_size']} {sizes['dtype']}"


def _gate_key(tuned: dict[str, Any], identity: str, tiles: dict[str, Any]) -> str:
    return f"{_tuned_key(tuned)} {identity} {' '.join(str(value) for value in tiles.values())}"
