"""The kernels of the examples, compiled with given tiles and remembered in a file; for `derive_tiles.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnc.codegen.gradient_view import gradient_views
from attnc.codegen.launch_view import launch_views
from attnc.compiler import plan_source, render
from attnc.files import read_pattern
from attnc.plan.configs import TileConfig, Traits
from attnc.plan.kernel_plan import Plan
from attnc.runtime.aot import compile_kernels
from attnc.runtime.load import load_module
from attnc.runtime.tiles import Tiles
from attnc.tuning.counting import FORWARD, PRODUCTS
from attnc.tuning.disassembly import main_loop
from attnc.tuning.model import Work, estimate
from attnc.tuning.static import part_of

ROOT = Path(__file__).resolve().parent.parent
TRAITS = ("plain", "heavy", "gathered", "adds", "tested")

TOGETHER = 4
"""Kernels that are compiled before it is asked whether others have to be."""


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


def is_clean(findings: Findings, kernels: list[Case], place: Place, config: TileConfig) -> bool:
    """Tell whether no kernel spills; those that others have spilled come first, and one is enough."""

    def spilled(case: Case) -> int:
        return -sum(
            not found["clean"] for name, found in findings.known.items() if name[:2] == (case.attention, case.kernel)
        )

    ordered = sorted(kernels, key=spilled)
    for first in range(0, len(ordered), TOGETHER):
        if not all(found["clean"] for found in findings.of(ordered[first : first + TOGETHER], place, [config])):
            return False
    return True


def kernel_cases(
    folder: Path, examples: list[str] | None, representatives: Iterable[str]
) -> tuple[list[Case], dict[str, Plan]]:
    """Return the kernels of examples, once each, and the plans of representative ones."""
    cases: list[Case] = []
    plans: dict[str, Plan] = {}
    for path in sorted((ROOT / "examples").glob("*.attn")):
        if examples is not None and path.stem not in examples:
            continue
        compiled = plan_source(read_pattern(path))
        module = folder / f"{path.stem}.py"
        module.write_text(render(compiled))
        for plan in compiled.plans:
            name = plan.attention.name
            found = [(kernel.function, kernel.traits) for view in launch_views(plan) for kernel in view.written]
            found += [(kernel.function, kernel.traits) for view in gradient_views(plan) for kernel in view.written]
            for kernel, traits in found:
                cases.append(Case(path.stem, name, kernel, part_of(kernel, name), traits, str(module)))
            plans.setdefault(path.stem, plan)
    return cases, {name: plans[name] for name in representatives}


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
        tiles=tiles_of(config),
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


def _name(case: Case, place: Place, config: TileConfig) -> tuple[Any, ...]:
    return (case.attention, case.kernel, place.target, place.head_size, place.dtype, *astuple(config))


def tiles_of(config: TileConfig) -> Tiles:
    """Return a configuration as launchers take it."""
    return Tiles(**asdict(config))
