"""Time products by bilinear schemes against the library's, and measure their errors, by size and level.

    python tools/time_schemes.py --json docs/results/strassen.json --markdown docs/results/strassen.md
    python tools/time_schemes.py --json one.json --markdown one.md --clock processor
    python tools/time_schemes.py --json gpu.json --device cuda --dtype bfloat16

Each product is called in turn with the library's, in rounds that alternate their order. The least time counts, of all
runs that wrote to the same JSON file: other work on the machine can only add to it. `--clock processor` counts the time
of one thread on the processor, which is hardly longer where the machine is busy. The rates that the cost model takes
are measured as well: the library's product, and sums of matrices that no cache holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from results.store import same_machine
from torch import Tensor

from attnc.algebra.bilinear.leveled import LeveledScheme
from attnc.algebra.bilinear.prices import Rates
from attnc.bench.machine import describe
from attnc.resources import schemes_directory
from attnc.runtime.bilinear import BilinearScheme, scheme_matmul
from attnc.schemes import float_rows, scheme_of

SIZES = (512, 768, 1024, 1536, 2048, 3072, 4096)
LEVELS = (1, 2, 3)
SCHEMES = ("strassen", "winograd", "laderman", "strassen_twice")
UNITS = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8, "float16": 2.0**-11}
CLOCKS = {"wall": "in milliseconds", "processor": "in milliseconds of one thread"}
"""What the page says of a clock."""

CLOCK: list[Callable[[], float]] = [time.perf_counter]
"""What times are taken from: the last one."""

LEAST_BLOCK = 64
"""Levels that leave smaller blocks are not measured: they lose everywhere."""


def main() -> None:
    """Measure what the command line asks for and print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=tuple(UNITS))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="of the CPU's times")
    parser.add_argument("--json", type=Path, required=True, help="read and write what was measured")
    parser.add_argument("--markdown", type=Path, help="write a page of all that was measured")
    options = parser.parse_args()
    if options.clock == "processor":
        torch.set_num_threads(1)
        CLOCK.append(time.process_time)
    data: dict[str, Any] = {"rates": [], "rows": {}}
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    now = {"machine": describe(device), "dtype": options.dtype, "clock": options.clock}
    if options.json.exists():
        data = json.loads(options.json.read_text())
        if not is_same(data, now):
            parser.error(f"{options.json} is of another machine, type or clock: write to another file")
    data |= now
    for key, found, size in cases(options.sizes, options.schemes, options.levels):
        add(data, key, measure(found, size, device, dtype, options.rounds))
        print(key, data["rows"][key], flush=True)
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    add_rates(data, measure_rates(device, dtype))
    options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(page(data))


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether figures of two files may stand in one."""
    return same_machine(one, other) and all(one[name] == other[name] for name in ("dtype", "clock"))


def cases(
    sizes: Iterable[int], schemes: Iterable[str], levels: Iterable[int]
) -> Iterator[tuple[str, LeveledScheme, int]]:
    """Yield what is measured, by its key in files."""
    for size, name, count in itertools.product(sizes, schemes, levels):
        found = load(name, count)
        if size // max(found.divisors) >= LEAST_BLOCK:
            yield f"{name} {count} {size}", found, size


def add(data: dict[str, Any], key: str, row: dict[str, list[float]]) -> None:
    """Take a row up: of its times the least ones, of its errors the new ones, which are the same."""
    before = data["rows"].get(key, row)
    data["rows"][key] = row | {"seconds": list(map(min, before["seconds"], row["seconds"]))}


def add_rates(data: dict[str, Any], rates: Sequence[float]) -> None:
    """Take rates up, the greatest ones."""
    data["rates"] = list(map(max, data["rates"] or rates, rates))


def load(name: str, levels: int) -> LeveledScheme:
    """Return a scheme that attnc carries."""
    return scheme_of("bilinear", schemes_directory() / f"{name}.json", levels)


def page(data: dict[str, Any]) -> str:
    """Lay what was measured out as Markdown."""
    flops, bandwidth = data["rates"]
    dtype = data["dtype"]
    rates = Rates("measured", flops, bandwidth, getattr(torch, dtype).itemsize)
    lines = [
        "# Products by bilinear schemes",
        "",
        f"Square products of {dtype}, {CLOCKS[data['clock']]}: the least of rounds in which the library's product",
        "and the scheme's alternate. `error` is the greatest difference from the product in float64, over the greatest",
        "entries of both factors, of normally distributed numbers; it cannot exceed `bound`",
        "([how](../bilinear.md#the-error)). `model` is the speedup that the cost model expects from the rates below.",
        "Written by `python tools/time_schemes.py`.",
        "",
        ", ".join(f"{name} {fact}" for name, fact in data["machine"].items()) + ".",
        f"Rates: {flops / 1e9:.0f} GFLOP/s in products, {bandwidth / 1e9:.1f} GB/s in sums of matrices.",
    ]
    crossings = []
    names = ("levels", "size", "library", "scheme", "speedup", "model", "library's error", "error", "bound")
    rows = {tuple(key.split()): row for key, row in data["rows"].items()}
    for scheme in SCHEMES:
        lines += ["", f"## {scheme}", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for levels in LEVELS:
            found = load(scheme, levels)
            own = {int(key[2]): row for key, row in rows.items() if key[:2] == (scheme, str(levels))}
            lines += [_line(found, size, row, rates, dtype) for size, row in sorted(own.items())]
            if own:
                crossings.append(_crossing(found, scheme, own, rates))
    lines += ["", "## Where they break even", "", "| scheme | levels | model | measured |", "|---|---|---|---|"]
    return "\n".join([*lines, *crossings]) + "\n"


def _line(found: LeveledScheme, size: int, row: dict[str, Any], rates: Rates, dtype: str) -> str:
    plain, scheme = row["seconds"]
    half = UNITS[dtype] if dtype in ("bfloat16", "float16") else 0.0
    unit = UNITS["float32"] if half else UNITS[dtype]
    bound = found.accuracy.bound(size, found.levels, unit, output_unit=half)
    model = found.gain((size,) * 3, rates)
    times = f"{1e3 * plain:.2f} | {1e3 * scheme:.2f} | {plain / scheme:.2f} | {model:.2f}"
    errors = " | ".join(f"{error:.1e}" for error in (*row["errors"], bound))
    return f"| {found.levels} | {size} | {times} | {errors} |"


def _crossing(found: LeveledScheme, name: str, rows: dict[int, dict[str, Any]], rates: Rates) -> str:
    """Return a row that says from which size on the scheme was faster, at all larger ones measured."""
    slower = [size for size, row in rows.items() if row["seconds"][0] < row["seconds"][1]]
    faster = [size for size in rows if size > max(slower, default=0)]
    measured = f"above {max(rows)}" if not faster else f"between {max(slower)} and {min(faster)}" if slower else ""
    return f"| {name} | {found.levels} | {found.break_even(rates):,.0f} | {measured or f'at most {min(rows)}'} |"


def measure(
    found: LeveledScheme, size: int, device: torch.device, dtype: torch.dtype, rounds: int
) -> dict[str, list[float]]:
    """Return seconds and errors of the library's product and of the scheme's."""
    scheme = BilinearScheme(found.scheme.m, found.scheme.k, found.scheme.n, *float_rows(found.scheme))
    a, b, exact = factors(size, device, dtype)
    scale = float(a.abs().max() * b.abs().max())
    ways = (lambda: a @ b, lambda: scheme_matmul(a, b, scheme, found.levels))
    errors = [float((way().double() - exact).abs().max()) / scale for way in ways]
    return {"seconds": alternate(ways, rounds, device), "errors": errors}


@lru_cache(maxsize=1)
def factors(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return two matrices and their product in float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    return a, b, a.double() @ b.double()


def alternate(ways: tuple[Callable[[], Tensor], ...], rounds: int, device: torch.device) -> list[float]:
    """Return the least seconds of calls that take turns."""
    taken: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        for place in range(len(ways)) if number % 2 else reversed(range(len(ways))):
            taken[place].append(_seconds(ways[place], device))
    return [min(times) for times in taken]


def _seconds(call: Callable[[], object], device: torch.device, least: float = 0.02) -> float:
    """Return the seconds of a call, over as many as take `least` seconds."""
    count, total = 0, 0.0
    _wait(device)
    start = CLOCK[-1]()
    while total < least:
        call()
        count += 1
        if device.type == "cpu" or count % 8 == 0:
            _wait(device)
            total = CLOCK[-1]() - start
    return total / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measure operations a second in the library's product and bytes a second in sums, of matrices of 4096."""
    size = 4096
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = min(_seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(3))
    added = min(_seconds(lambda: torch.add(a, b, out=out), device) for _ in range(9))
    return 2 * size**3 / product, 3 * a.nbytes / added


if __name__ == "__main__":
    main()
