"""Time products by bilinear schemes against the library's, and measure their errors, by size and level.

    python tools/time_schemes.py --markdown docs/results/strassen.md
    python tools/time_schemes.py --device cuda --dtype bfloat16

Each product is called in turn with the library's, in rounds that alternate their order; medians count. The rates that
the cost model takes are measured as well: the library's largest product, and sums of matrices that no cache holds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attnc.algebra.bilinear.prices import Rates
from attnc.bench.machine import describe
from attnc.resources import schemes_directory
from attnc.runtime.bilinear import BilinearScheme, scheme_matmul
from attnc.schemes import LeveledScheme, float_rows, scheme_of

SIZES = (512, 768, 1024, 1536, 2048, 3072, 4096)
LEVELS = (1, 2, 3)
SCHEMES = ("strassen", "winograd", "laderman", "strassen_twice")
UNITS = {"float32": 2.0**-24, "float64": 2.0**-53}
LEAST_BLOCK = 64
"""Levels that leave smaller blocks are not measured: they lose everywhere."""


def main() -> None:
    """Measure what the command line asks for and print a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="write the page to this file as well")
    options = parser.parse_args()
    text = report(options)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


def report(options: argparse.Namespace) -> str:
    """Measure everything and lay it out as Markdown."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rates = measure_rates(device, dtype)
    facts = ", ".join(f"{name} {fact}" for name, fact in describe(device).items())
    lines = [
        "# Products by bilinear schemes",
        "",
        f"Square products of {options.dtype}, times in milliseconds, median of {options.rounds} rounds in which the",
        "library's product and the scheme's alternate. `error` is the greatest difference from the product in float64,",
        "over the greatest entries of both factors, of normally distributed numbers; `bound` is what it cannot exceed",
        "([how](../bilinear.md#error)). `model` is the ratio that the cost model expects from the rates measured here.",
        "Written by `python tools/time_schemes.py`.",
        "",
        f"{facts}.",
        f"Rates: {rates.flops / 1e9:.0f} GFLOP/s in products, {rates.bandwidth / 1e9:.1f} GB/s in sums of matrices.",
        "",
    ]
    crossings = []
    for name in options.schemes:
        lines += [f"## {name}", "", *_header()]
        for levels in options.levels:
            found = scheme_of("bilinear", schemes_directory() / f"{name}.json", levels)
            rows = [measure(found, size, device, dtype, options.rounds, rates) for size in options.sizes]
            measured = [row for row in rows if row is not None]
            lines += [row.line(size, levels) for size, row in zip(options.sizes, rows, strict=True) if row is not None]
            if measured:
                crossings.append(_crossing(name, levels, options.sizes, rows, found.break_even(rates)))
        lines.append("")
    lines += ["## Where they break even", "", "| scheme | levels | model | measured |", "|---|---|---|---|", *crossings]
    return "\n".join(lines) + "\n"


def _header() -> list[str]:
    names = ("levels", "size", "library", "scheme", "speedup", "model", "library's error", "error", "bound")
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


class Row:
    """One size: seconds of both, the expected ratio, errors of both and the bound."""

    def __init__(self, seconds: tuple[float, float], model: float, errors: tuple[float, float], bound: float) -> None:
        self.seconds, self.model, self.errors, self.bound = seconds, model, errors, bound

    @property
    def speedup(self) -> float:
        """How many times as fast as the library's the scheme's product is."""
        return self.seconds[0] / self.seconds[1]

    def line(self, size: int, levels: int) -> str:
        """Return the row of the table."""
        times = f"{1e3 * self.seconds[0]:.2f} | {1e3 * self.seconds[1]:.2f} | {self.speedup:.2f} | {self.model:.2f}"
        return f"| {levels} | {size} | {times} | {self.errors[0]:.1e} | {self.errors[1]:.1e} | {self.bound:.1e} |"


def measure(
    found: LeveledScheme, size: int, device: torch.device, dtype: torch.dtype, rounds: int, rates: Rates
) -> Row | None:
    """Measure one scheme at one size, or nothing where its blocks would be too small."""
    if size // max(found.divisors) < LEAST_BLOCK:
        return None
    scheme = BilinearScheme(found.scheme.m, found.scheme.k, found.scheme.n, *float_rows(found.scheme))
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    exact = a.double() @ b.double()
    scale = float(a.abs().max() * b.abs().max())
    ways = (lambda: a @ b, lambda: scheme_matmul(a, b, scheme, found.levels))
    errors = [float((way().double() - exact).abs().max()) / scale for way in ways]
    seconds = alternate(ways, rounds, device)
    bound = found.accuracy.bound(size, found.levels, UNITS.get(str(dtype).removeprefix("torch."), 2.0**-24))
    return Row(seconds, found.gain((size, size, size), rates), (errors[0], errors[1]), bound)


def alternate(ways: tuple[Callable[[], Tensor], ...], rounds: int, device: torch.device) -> tuple[float, float]:
    """Return the median seconds of two calls that take turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for way in ways:
        way()
    for number in range(rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            taken[place].append(_seconds(ways[place], device))
    return statistics.median(taken[0]), statistics.median(taken[1])


def _seconds(call: Callable[[], object], device: torch.device, least: float = 0.05) -> float:
    """Return the seconds of a call, over as many as take `least` seconds."""
    count, total = 0, 0.0
    _wait(device)
    start = time.perf_counter()
    while total < least:
        call()
        count += 1
        if device.type == "cpu" or count % 8 == 0:
            _wait(device)
            total = time.perf_counter() - start
    return total / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure operations a second in the library's product and bytes a second in sums, of matrices of 4096."""
    size = 4096
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = statistics.median(_seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(3))
    added = statistics.median(_seconds(lambda: torch.add(a, b, out=out), device) for _ in range(5))
    return Rates("measured", 2 * size**3 / product, 3 * a.nbytes / added, a.element_size())


def _crossing(name: str, levels: int, sizes: list[int], rows: list[Row | None], model: float) -> str:
    """Return a row that says from which size on the scheme was faster, at all larger ones measured."""
    known = [(size, row) for size, row in zip(sizes, rows, strict=True) if row is not None]
    slower = [size for size, row in known if row.speedup < 1]
    faster = [size for size, _ in known if size > max(slower, default=0)]
    if not slower:
        measured = f"at most {known[0][0]}"
    elif not faster:
        measured = f"above {known[-1][0]}"
    else:
        measured = f"between {max(slower)} and {min(faster)}"
    return f"| {name} | {levels} | {model:,.0f} | {measured} |"


if __name__ == "__main__":
    main()
