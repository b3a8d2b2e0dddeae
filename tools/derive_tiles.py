"""Derive the tables of default tiles (`attnc/plan/configs.py`) from what the compilers make of the examples' kernels.

    python tools/derive_tiles.py --results build/derived.jsonl --kinds key --targets sm_90 --head-sizes 64 128

No GPU is needed. All configurations of `attnc.plan.tile_space` are compiled for one representative pattern, and ranked
by the time that `attnc.tuning.model` estimates. Then, for each kind of kernel and each of its traits, the first of that
order is taken with which no kernel of any example spills. What has been compiled stands in the file of results and is
not compiled again; with `--seconds`, a run ends in time and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch

from attnc.bench.cases import square
from attnc.codegen.gradient_view import gradient_views
from attnc.codegen.launch_view import launch_views
from attnc.compiler import plan_source, render
from attnc.files import read_pattern
from attnc.plan.configs import TileConfig, Traits
from attnc.plan.kernel_plan import Plan
from attnc.runtime.aot import compile_kernels
from attnc.runtime.load import load_module
from attnc.runtime.tiles import Tiles
from attnc.tuning.counting import FORWARD, KEYS, PRODUCTS, QUERIES, TileCounter
from attnc.tuning.disassembly import main_loop
from attnc.tuning.model import Work, estimate
from attnc.tuning.static import Target, configs_of, part_of

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"forward": FORWARD, "query": QUERIES, "key": KEYS}
REPRESENTATIVE = "streaming"
"""Its kernels are ranked: loops with and without tests, some of them short."""
LENGTH, HEADS = 16384, 16
TRAITS = ("plain", "heavy", "gathered", "adds", "tested")


class OutOfTimeError(Exception):
    """Nothing more is begun."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel of an example and what its defaults depend on; `module` is a file."""

    example: str
    attention: str
    kernel: str
    part: str
    traits: Traits
    module: str

    @property
    def trait(self) -> str:
        """The last of its traits: the first of the tables that decides."""
        return TRAITS[max(number for number, holds in enumerate(self.traits.kinds) if holds)]


@dataclass(frozen=True, slots=True)
class Place:
    """A row of the tables."""

    part: str
    target: str
    head_size: int
    dtype: str


@dataclass(slots=True)
class Findings:
    """What has been compiled: by kernel, place and tiles.

    Attributes:
        file: where it is kept.
        end: when nothing more is begun, in seconds of the clock.
    """

    pool: ProcessPoolExecutor
    file: Path
    end: float
    known: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def of(self, cases: list[Case], place: Place, configs: list[TileConfig]) -> Iterator[dict[str, Any]]:
        """Yield what the compilers make of kernels with configurations, in their order."""
        jobs = [(case, place, config) for config in configs for case in cases]
        new = [job for job in jobs if _name(*job) not in self.known]
        if new and time.monotonic() > self.end:
            raise OutOfTimeError
        for job, found in zip(new, self.pool.map(_compile, new), strict=True):
            self.known[_name(*job)] = found
            with self.file.open("a") as file:
                file.write(json.dumps([_name(*job), found]) + "\n")
        yield from (self.known[_name(*job)] for job in jobs)


def main() -> int:
    """Derive the rows that the command line asks for, and print them; 1 if the time did not suffice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="what was compiled, a JSON list per line")
    parser.add_argument("--kinds", nargs="*", default=tuple(PARTS), choices=tuple(PARTS))
    parser.add_argument("--targets", nargs="*", default=("sm_80", "sm_90", "sm_100", "gfx942"))
    parser.add_argument("--head-sizes", nargs="*", type=int, default=(64, 128, 256))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases, plan = _cases(Path(folder))
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            findings = Findings(pool, options.results, time.monotonic() + options.seconds)
            if options.results.exists():
                lines = map(json.loads, options.results.read_text().splitlines())
                findings.known.update({tuple(name): found for name, found in lines})
            try:
                for kind, target, size in product(options.kinds, options.targets, options.head_sizes):
                    place = Place(PARTS[kind], target, size, options.dtype)
                    for trait, reads, config in derive(findings, cases, plan, place):
                        print(kind, target, size, trait, reads, "none" if config is None else _text(config), flush=True)
            except OutOfTimeError:
                return 1
    return 0


def derive(
    findings: Findings, cases: list[Case], plan: Plan, place: Place
) -> Iterator[tuple[str, str, TileConfig | None]]:
    """Yield trait, way of reading and the configuration of each row; None where every configuration spills somewhere.

    Traits whose kernels are clean with the row of plain ones are left out.
    """
    ranked = rank(findings, cases, plan, place)
    for described in sorted({config.descriptors for config in ranked}, reverse=True):
        order = [config for config in ranked if config.descriptors == described]
        plain: TileConfig | None = None
        for trait in TRAITS:
            kernels = [case for case in cases if case.part == place.part and case.trait == trait]
            if not kernels or (described and trait == "gathered"):
                continue
            chosen = next((config for config in order if is_clean(findings, kernels, place, config)), None)
            if trait == "plain" or chosen != plain:
                yield trait, "descriptors" if described else "pointers", chosen
            plain = chosen if trait == "plain" else plain


def rank(findings: Findings, cases: list[Case], plan: Plan, place: Place) -> list[TileConfig]:
    """Return the configurations that work for the representative pattern, those with the shortest times first."""
    shape = square(LENGTH, heads=HEADS, head_size=place.head_size)
    target = Target(place.target, place.dtype, shape)
    # without stages nothing is read ahead of its use; AMD's compiler does that by itself
    possible = [one for one in configs_of(plan, target, place.part) if one.stages > 1 or place.target == "gfx942"]
    # defaults have a loop for each interval and a program for each tile, and the order of programs follows from rows
    plain = (one for one in possible if not one.fused and not one.persistent)
    space = list(dict.fromkeys(replace(one, order="") for one in plain))
    kernels = [case for case in cases if case.example == REPRESENTATIVE and case.part == place.part]
    count = TileCounter(plan, place.target, shape, getattr(torch, place.dtype).itemsize)
    times: dict[TileConfig, float] = {}
    for config in space:
        (found,) = findings.of(kernels[:1], place, [config])
        if found["clean"]:
            work = count.work(place.part, _tiles(config))
            times[config] = _seconds(found, work)
    return sorted(times, key=times.__getitem__)


def is_clean(findings: Findings, kernels: list[Case], place: Place, config: TileConfig) -> bool:
    """Tell whether no kernel spills; those that others have spilled come first, and one is enough."""

    def spilled(case: Case) -> int:
        return -sum(
            not found["clean"] for name, found in findings.known.items() if name[:2] == (case.attention, case.kernel)
        )

    ordered = sorted(kernels, key=spilled)
    for first in range(0, len(ordered), 4):
        if not all(found["clean"] for found in findings.of(ordered[first : first + 4], place, [config])):
            return False
    return True


def _cases(folder: Path) -> tuple[list[Case], Plan]:
    """Return the kernels of all examples, once each, and the plan of the representative one."""
    cases: list[Case] = []
    for path in sorted((ROOT / "examples").glob("*.attn")):
        compiled = plan_source(read_pattern(path))
        module = folder / f"{path.stem}.py"
        module.write_text(render(compiled))
        for plan in compiled.plans:
            name = plan.attention.name
            found = [(kernel.function, kernel.traits) for view in launch_views(plan) for kernel in view.written]
            found += [(kernel.function, kernel.traits) for view in gradient_views(plan) for kernel in view.written]
            for kernel, traits in found:
                cases.append(Case(path.stem, name, kernel, part_of(kernel, name), traits, str(module)))
            if path.stem == REPRESENTATIVE:
                representative = plan
    return cases, representative


_MODULES: dict[str, ModuleType] = {}


def _compile(job: tuple[Case, Place, TileConfig]) -> dict[str, Any]:
    """Compile one kernel, in a process of its own."""
    case, place, config = job
    torch.set_num_threads(1)
    if case.module not in _MODULES:
        _MODULES[case.module] = load_module(case.module)
    (report,) = compile_kernels(
        _MODULES[case.module],
        place.target,
        getattr(torch, place.dtype),
        place.head_size,
        name=case.attention,
        tiles=_tiles(config),
        shares=1,
        gradients=case.part != FORWARD,
        wanted=lambda kernel: kernel == case.kernel,
    )
    loop = main_loop(report)
    once, twice = (
        estimate(report, loop, Work(tiles, programs, PRODUCTS[case.part])).seconds
        for tiles, programs in ((1e6, 1e4), (2e6, 1e4))
    )
    return {
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "clean": report.is_clean and loop is not None,
        # seconds are linear in tiles and programs where there are many of both
        "tile": (twice - once) / 1e6,
        "program": (2 * once - twice) / 1e4,
    }


def _seconds(found: dict[str, Any], work: Work) -> float:
    return float(found["tile"] * work.tiles + found["program"] * work.programs)


def _name(case: Case, place: Place, config: TileConfig) -> tuple[Any, ...]:
    return (case.attention, case.kernel, place.target, place.head_size, place.dtype, *astuple(config))


def _tiles(config: TileConfig) -> Tiles:
    return Tiles(**asdict(config))


def _text(config: TileConfig) -> str:
    more = (", descriptors=True" if config.descriptors else "") + (f", chunk={config.chunk}" if config.chunk else "")
    return f"TileConfig({config.query}, {config.key}, {config.warps}, {config.stages}{more})"


if __name__ == "__main__":
    sys.exit(main())
