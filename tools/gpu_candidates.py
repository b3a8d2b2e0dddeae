"""Configurations of kernels that the GPU bundle carries, the best by estimate first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from attnc.bench.cases import square
from attnc.bench.names import Mode
from attnc.bench.standard import TOKENS
from attnc.bench.standard_row import Sizes
from attnc.compiler import Compiled
from attnc.plan.kernel_plan import Plan
from attnc.tuning.static import Ranking, Target, configs_of, part_of, rank

GPU = "sm_90"

CARRIED = 8
"""Configurations of a kernel."""

HEADS = 8


def candidates(key: str, compiled: Compiled, at: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Rank the configurations of a pattern's kernels, and return the best of each kernel.

    Args:
        key: of the pattern in the bundle.
        compiled: the pattern.
        at: length, head size and type that they are for.
        seconds: of ranking; what it does not come to is carried unranked where there is room, the closest to the
            default first.
    """
    target = Target(GPU, at["dtype"], square(at["length"], batch=1, heads=HEADS, head_size=at["head_size"]))
    plan = compiled.plans[0]
    found: dict[str, list[dict[str, Any]]] = {}
    for ranking in rank(compiled, plan, target, gradients=True, budget=seconds):
        every = dict.fromkeys(tuple(one.items()) for one in (*_ranked(ranking), *_unranked(plan, target, ranking)))
        found[ranking.identity] = carried([dict(one) for one in every])
        print(f"{key}: {len(ranking.candidates)} configurations of {ranking.kernel} ranked", flush=True)
    return entry_of(key, at, found)


def entry_of(key: str, at: Mapping[str, Any], found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what the bundle tunes of a pattern: its kernels that have candidates, and whatever a library can do."""
    length = at["length"]
    sizes = Sizes(length, TOKENS["cuda"] // length, HEADS, HEADS, at["head_size"], at["dtype"], Mode.BOTH)
    return {"pattern": key, "sizes": asdict(sizes), "candidates": found}


def carried(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first ones, one that is persistent among them: a device checks one of each kernel that can be so."""
    first, others = every[:CARRIED], every[CARRIED:]
    persistent = next((one for one in others if one["persistent"]), None)
    if persistent is None or any(one["persistent"] for one in first):
        return first
    return [*first[:-1], persistent]


def _ranked(ranking: Ranking) -> Iterator[dict[str, Any]]:
    yield from (asdict(one.tiles) for one in ranking.candidates if one.works and not one.is_default)


def _unranked(plan: Plan, target: Target, ranking: Ranking) -> Iterator[dict[str, Any]]:
    default = next(one.tiles for one in ranking.candidates if one.is_default)
    tried = [asdict(one.tiles) | {"chunk": 0} for one in ranking.candidates]

    def distance(config: Any) -> float:
        sides = abs(math.log2(config.query / default.query)) + abs(math.log2(config.key / default.key))
        return sides + (config.warps != default.warps) + 0.5 * abs(config.stages - default.stages)

    for config in sorted(configs_of(plan, target, part_of(ranking.kernel, plan.attention.name)), key=distance):
        if asdict(config) not in tried:
            yield asdict(config)
