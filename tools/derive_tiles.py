"""Derive the tables of default tiles (`attnc/plan/configs.py`) from what the compilers make of the examples' kernels.

    python tools/derive_tiles.py --results build/derived.jsonl --kinds key --targets sm_90 --head-sizes 64 128

No GPU is needed. The configurations of `attnc.plan.tile_space` are compiled for one representative pattern, the best of
them for others as well, and ranked by the times that `attnc.tuning.model` estimates for all of those. Then, for each
kind of kernel and each of its traits, the first of that order is taken with which no kernel of any example spills; but
what the tables have comes first where no other one is expected to save more time than estimates can tell. A line says
what was found, what stands in the tables, and the times of both, in those of the fastest. What has been compiled stands
in the file of results and is not compiled again; with `--seconds`, a run ends in time and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tile_kernels import TOGETHER, TRAITS, Case, Findings, OutOfTimeError, Place, is_clean, kernel_cases, tiles_of

from attnc.bench.cases import square
from attnc.plan.configs import TileConfig, Traits, gradient_tile_rows, tile_rows
from attnc.plan.kernel_plan import Plan
from attnc.tuning.counting import FORWARD, KEYS, QUERIES, TileCounter
from attnc.tuning.model import ALONE, CYCLES, MACHINES, Work
from attnc.tuning.static import DOUBT, Target, configs_of

PARTS = {"forward": FORWARD, "query": QUERIES, "key": KEYS}
REPRESENTATIVES = ("streaming", "gpt", "longformer")
"""Whose kernels are ranked: several loops, some of them short; one long loop; most loops. The first for all tiles."""

NEAR = 1.3
"""Times the shortest estimate for the first of those, up to which the others are compiled."""

MOST_NEAR = 5
"""The most configurations for which they are."""

OUTSIDE = 64
"""Bytes that a kernel may spill outside of its loops over tiles, by what is no part of them."""

OPERATIONS, THREADS = 3, 32
"""Least instructions for a pair besides an exponential: a factor, a maximum and a sum; threads of a warp."""

LENGTH, HEADS = 16384, 16
LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """What was derived for kernels with a trait that read through descriptors or by pointers.

    Attributes:
        present: what the tables have.
        chosen: None where every configuration spills somewhere.
        shares: estimated times of both, in those of the fastest configuration; not a number where nothing was ranked.
    """

    trait: str
    described: bool
    present: TileConfig | None
    chosen: TileConfig | None
    shares: tuple[float, float]


def main() -> int:
    """Derive the rows that the command line asks for, and print them; 1 if the time did not suffice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="what was compiled, a JSON list per line")
    parser.add_argument("--kinds", nargs="*", default=tuple(PARTS), choices=tuple(PARTS))
    parser.add_argument("--targets", nargs="*", default=("sm_80", "sm_90", "sm_100", "gfx942"))
    parser.add_argument("--head-sizes", nargs="*", type=int, default=(64, 128, 256))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--examples", nargs="*", help="whose kernels may not spill: names without .attn")
    parser.add_argument("--representatives", nargs="*", default=REPRESENTATIVES, help="whose kernels are ranked")
    parser.add_argument("--most", type=int, help="leave out configurations that read much for what they compute")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    options = parser.parse_args()
    # before any process is started that imports triton
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        cases, plans = kernel_cases(Path(folder), options.examples, options.representatives)
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            findings = Findings(pool, options.results, time.monotonic() + options.seconds)
            if options.results.exists():
                lines = map(json.loads, options.results.read_text().splitlines())
                findings.known.update({tuple(name): found for name, found in lines})
            try:
                for kind, target, size in product(options.kinds, options.targets, options.head_sizes):
                    place = Place(PARTS[kind], target, size, options.dtype)
                    for row in derive(findings, cases, plans, place, options.most):
                        print(kind, target, size, _text(row), flush=True)
            except OutOfTimeError:
                return 1
    return 0


def derive(
    findings: Findings, cases: list[Case], plans: Mapping[str, Plan], place: Place, most: int | None = None
) -> Iterator[Row]:
    """Yield what suits kernels with each trait, those without any first.

    Args:
        findings: known ones, and how others are found.
        cases: whose kernels may not spill.
        plans: of the patterns whose kernels are ranked.
        place: the row.
        most: configurations that are looked at, those that read least for what they compute.
    """
    for described in sorted({config.descriptors for config in _space(next(iter(plans.values())), place)}, reverse=True):
        for trait in TRAITS:
            kernels = [case for case in cases if case.part == place.part and case.trait == trait]
            if not kernels or (described and trait == "gathered"):
                continue
            present = present_config(place, kernels[0].traits, described=described)
            stays = present is not None and is_clean(findings, kernels, place, present)
            shares = rank(findings, cases, plans, place, described, present, stays, most)
            order = [variant for config in in_order(shares, present) for variant in _variants(config, place.part)]
            chosen = next((config for config in order if is_clean(findings, kernels, place, config)), None)
            both = tuple(math.nan if one is None else shares.get(_code(one), math.nan) for one in (present, chosen))
            yield Row(trait, described, present, chosen, both)


def rank(
    findings: Findings,
    cases: list[Case],
    plans: Mapping[str, Plan],
    place: Place,
    described: bool,
    present: TileConfig | None,
    stays: bool,
    most: int | None = None,
) -> dict[TileConfig, float]:
    """Return configurations with the means of their times, in those of the fastest, the best first.

    Those that cannot be the fastest, or save enough to take the place of one that stays otherwise, are not compiled,
    and follow without a number.
    """
    first, *others = [case for name in plans for case in _first_kernel(cases, name, place.part)]
    shape = square(LENGTH, heads=HEADS, head_size=place.head_size)
    size = getattr(torch, place.dtype).itemsize
    counts = {case.example: TileCounter(plans[case.example], place.target, shape, size) for case in (first, *others)}

    def times(case: Case, configs: list[TileConfig]) -> dict[TileConfig, float]:
        return _times(findings, case, place, configs, counts[case.example])

    def least(config: TileConfig) -> float:
        return _least_seconds(counts[first.example].work(place.part, tiles_of(config)), place, config)

    space = [config for config in _space(plans[first.example], place) if config.descriptors == described]
    space = sorted(space, key=least)[:most]
    own = [] if present is None else [_code(present)]
    known = [times(first, own)]
    enough = (1 - DOUBT) * min(known[0].values(), default=math.inf) if stays else math.inf
    for start in range(0, len(space), TOGETHER):
        together = space[start : start + TOGETHER]
        if least(together[0]) > min((enough, *known[0].values())):
            break
        known[0] |= times(first, together)
    limit = min(enough, NEAR * min(known[0].values(), default=math.inf))
    near = sorted((one for one in known[0] if known[0][one] <= limit), key=known[0].__getitem__)[:MOST_NEAR]
    if near:
        known += [times(case, list(dict.fromkeys([*own, *near]))) for case in others]
    shares = {config: _mean_share(config, known) for config in dict.fromkeys([*own, *space])}
    return dict(sorted(shares.items(), key=lambda one: math.inf if math.isnan(one[1]) else one[1]))


def _times(
    findings: Findings, case: Case, place: Place, configs: list[TileConfig], count: TileCounter
) -> dict[TileConfig, float]:
    """Return the estimated seconds of a kernel with configurations, those with which it spills left out."""
    found = dict(zip(configs, findings.of([case], place, configs), strict=True))
    for config in configs:
        for variant in _variants(config, place.part):
            if not found[config]["clean"] and found[config]["spills"] <= OUTSIDE:
                (found[config],) = findings.of([case], place, [variant])
    works = {config: count.work(case.part, tiles_of(config)) for config, one in found.items() if one["clean"]}
    return {config: _seconds(found[config], work) for config, work in works.items()}


def _mean_share(config: TileConfig, times: list[dict[TileConfig, float]]) -> float:
    """Return the geometric mean of a configuration's times for several patterns, in those of the fastest of each."""
    logarithms = [math.log(each[config] / min(each.values())) for each in times if config in each]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def in_order(shares: Mapping[TileConfig, float], present: TileConfig | None) -> list[TileConfig]:
    """Return configurations in the order in which they are tried, the present one first unless another is faster."""
    order = list(shares)
    if present is None or _code(present) not in shares:
        return order
    is_faster = shares[order[0]] < (1 - DOUBT) * shares[_code(present)]
    return order if is_faster else [present, *order]


def present_config(place: Place, traits: Traits, *, described: bool) -> TileConfig | None:
    """Return what the tables have for kernels with traits; None where they have no row with descriptors."""
    if place.part == FORWARD:
        rows = tile_rows(LONGEST, LONGEST, traits)
    else:
        rows = gradient_tile_rows(LONGEST, LONGEST, traits, of_keys=place.part == KEYS)
    where = place.target, getattr(torch, place.dtype).itemsize
    fitting = [row for row in rows if (row.target, row.element_size) == where and row.head_size >= place.head_size]
    configs = min(fitting, key=lambda row: row.head_size).configs
    return next((config for config in configs if config.descriptors == described), None)


def _space(plan: Plan, place: Place) -> list[TileConfig]:
    """Return the configurations that defaults are taken from."""
    target = Target(place.target, place.dtype, square(LENGTH, heads=HEADS, head_size=place.head_size))
    # without stages nothing is read ahead of its use, but AMD's compiler does that by itself; estimates know no latency
    # that would take more than three
    possible = [
        one
        for one in configs_of(plan, target, place.part)
        if one.stages in (2, 3) or (one.stages == 1 and place.target == "gfx942")
    ]
    # defaults have a loop for each interval, and the order of programs follows from rows
    plain = (one for one in possible if not one.fused and not one.persistent)
    return list(dict.fromkeys(replace(one, order="") for one in plain))


def _code(config: TileConfig) -> TileConfig:
    """Return what decides on the code of a kernel's loops over tiles."""
    return replace(config, chunk=0)


def _variants(config: TileConfig, part: str) -> Iterator[TileConfig]:
    """Yield a configuration, and what else may keep the compiler from spilling outside of the loops over tiles."""
    yield config
    for chunk in (16, 64) if part == FORWARD and not config.chunk else ():
        if chunk <= config.key:
            yield replace(config, chunk=chunk)


def _first_kernel(cases: list[Case], example: str, part: str) -> list[Case]:
    return [case for case in cases if (case.example, case.part) == (example, part)][:1]


def _least_seconds(work: Work, place: Place, config: TileConfig) -> float:
    """Return what products, exponentials and reading take at least, whatever the compiler makes of a kernel."""
    machine = MACHINES[place.target]
    pairs, numbers = config.query * config.key, 2 * place.head_size
    products = pairs * numbers * work.products / machine.matrix
    others = pairs * (CYCLES["MUFU"] + OPERATIONS) / (THREADS * machine.schedulers)
    walked = config.query if place.part == KEYS else config.key
    reading = walked * numbers * getattr(torch, place.dtype).itemsize / machine.cache
    cycles = max(products, others) + ALONE * min(products, others)
    return work.tiles / machine.multiprocessors * max(cycles, reading) / machine.clock


def _seconds(found: dict[str, Any], work: Work) -> float:
    return float(found["tile"] * work.tiles + found["program"] * work.programs)


def _text(row: Row) -> str:
    named = [_call(row.chosen), "as before"] if row.chosen == row.present else [_call(row.chosen), _call(row.present)]
    shares = " ".join(f"{share:.2f}" for share in row.shares)
    return " ".join((row.trait, "descriptors" if row.described else "pointers", *named, shares))


def _call(config: TileConfig | None) -> str:
    if config is None:
        return "none"
    more = (", descriptors=True" if config.descriptors else "") + (f", chunk={config.chunk}" if config.chunk else "")
    return f"TileConfig({config.query}, {config.key}, {config.warps}, {config.stages}{more})"


if __name__ == "__main__":
    sys.exit(main())
