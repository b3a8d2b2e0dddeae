"""What the pages say of Performer's errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attnc.pictures import figure_class
from results.closed_forms import gap, independent, least_gap, orthogonal
from results.text import machine_line, paragraph, png, table

TITLE = "Performer: errors of positive random features"

MEASURABLE = 0.1
"""Means whose own standard error is expected to be a larger part of them are marked: nothing can be said by them."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One row of estimates, all relative to the square of `exp(x . y)`.

    Attributes:
        length: `|x + y|`.
        expected, measured, deviations: of each draw: the closed form, the mean over seeds, its standard error.
        spread: the standard error that is expected of independent draws, as a part of the mean.
    """

    length: float
    features: int
    expected: dict[str, float]
    measured: dict[str, float]
    deviations: dict[str, float]
    spread: float

    @property
    def is_measurable(self) -> bool:
        """Whether there were draws enough."""
        return self.spread <= MEASURABLE

    def away(self, draw: str) -> float:
        """Return how many standard errors the mean is from the closed form."""
        return abs(self.measured[draw] - self.expected[draw]) / self.deviations[draw]


def estimates(data: Mapping[str, Any]) -> Iterator[Estimate]:
    """Yield the rows of all lengths and numbers of features."""
    chosen = data["settings"]
    parts = [row for key, row in data["rows"].items() if key.startswith("estimates")]
    for i, length in enumerate(chosen["lengths"]):
        for k, features in enumerate(chosen["features"]):
            square = length**2
            sums = {draw: [sum(part[draw][power][i][k] for part in parts) for power in (0, 1)] for draw in parts[0]}
            seeds = chosen["seeds"]
            means = {draw: one / seeds for draw, (one, _) in sums.items()}
            variances = {draw: (two - one**2 / seeds) / (seeds - 1) for draw, (one, two) in sums.items()}
            yield Estimate(
                length,
                features,
                {
                    "independent": independent(square, features),
                    "orthogonal": orthogonal(square, features, chosen["size"]),
                },
                means,
                {draw: math.sqrt(variance / seeds) for draw, variance in variances.items()},
                math.sqrt((math.exp(4 * square) / features + 2) / (chosen["pairs"] * seeds)),
            )


def section(data: Mapping[str, Any]) -> list[str]:
    """Return the part of the page."""
    rows = [*estimates(data)]
    chosen = data["settings"]
    size = chosen["size"]
    shown = [row for row in rows if row.features in (size, chosen["features"][-1])]
    return [
        *paragraph(
            "One estimate of `SM = exp(x . y)` by `m` positive features (Choromanski et al., 2021) has for "
            "independent directions the mean squared error `exp(|x + y|^2) SM^2 (1 - exp(-|x + y|^2)) / m`: lemma 2 "
            "of the paper, and the variance of a log-normal number. Directions that are orthogonal in blocks of the "
            "head size `d`, which `feature favor` takes, have a smaller one. The paper bounds the difference "
            "(theorem 2); it can be written down exactly, from the moments of a sum of two orthogonal directions "
            "(derived in `tools/results/closed_forms.py`): of the pairs of features in one block each takes off "
            f"`SM^2 (1 - exp(-z) 1F1(d; d / 2; z / 2)) / m^2`, with `z = |x + y|^2`. Measured with `d = {size}`, "
            f"{chosen['pairs']} pairs `x, y` for each length and {chosen['seeds']:,} seeds, in float64; mean squares "
            "over `SM^2`, with the standard error of the mean."
        ),
        *estimates_table(shown),
        "",
        *paragraph(
            f"{verdict(rows)} Rows with a \\* are no measurement: the square of an error there has a mean that is "
            "carried by draws rarer than those that were taken (its variance grows like `exp(4 |x + y|^2)`), so that "
            "the mean of a sample lies below it most of the time, and its standard error is too small as well. [All "
            "numbers of features](results/performer.md)."
        ),
        "![squared errors of estimates, and errors of the whole output](results/performer.png)",
        "",
        *paragraph(
            "The whole output of [`examples/performer.attn`](../examples/performer.attn), causal, against exact "
            f"softmax attention: {chosen['positions']} positions, {chosen['heads']} heads of {size}, normally "
            "distributed queries and keys of one standard deviation, values of 1, float64; the root of the mean "
            f"squared error over the root of the mean square of the exact output, over {chosen['attention_seeds']} "
            "seeds. `expected` is the first order in `1 / m` for independent directions (`attention_error` in the "
            "same file)."
        ),
        *attention_table(data),
        "",
        *paragraph(attention_verdict(data)),
    ]


def details(data: Mapping[str, Any]) -> list[str]:
    """Return the page of all rows."""
    size = data["settings"]["size"]
    bounds = [
        [f"{x:g}", f"{gap(x * x, size):.3e}", f"{least_gap(x * x, size):.3e}"] for x in data["settings"]["lengths"]
    ]
    return [
        f"# {TITLE}",
        "",
        f"Written by `make study` ([what it says](../results.md)). {machine_line(data['machine'])}.",
        "",
        *estimates_table([*estimates(data)]),
        "",
        *paragraph(f"What each pair of features in one orthogonal block takes off, for `d = {size}`:"),
        *table(["length of x + y", "exact", "theorem 2: at least"], bounds),
        "",
        "## The whole output",
        "",
        *attention_table(data),
    ]


def estimates_table(rows: list[Estimate]) -> list[str]:
    """Lay estimates out."""
    headings = (
        "length of x + y",
        "m",
        "independent: closed form",
        "measured",
        "orthogonal: exact form",
        "measured",
        "less",
    )
    cells = []
    for row in rows:
        mark = "" if row.is_measurable else " \\*"
        found = [f"{row.length:g}", f"{row.features}"]
        for draw in ("independent", "orthogonal"):
            found += [
                number(row.expected[draw]),
                f"{number(row.measured[draw])} ± {number(row.deviations[draw])}{mark}",
            ]
        cells.append([*found, f"{1 - row.expected['orthogonal'] / row.expected['independent']:.1%}"])
    return table(headings, cells, names=2)


def verdict(rows: list[Estimate]) -> str:
    """Say how far the measured means are from the closed forms."""
    sure = [row for row in rows if row.is_measurable]
    count = sum(1 for _ in rows)
    if not sure:
        return "There were too few draws for any row."
    far = {draw: max(row.away(draw) for row in sure) for draw in ("independent", "orthogonal")}
    beyond = sum(row.away(draw) > 3 for row in sure for draw in far)
    lower = sum(row.measured["orthogonal"] < row.measured["independent"] for row in sure)
    return (
        f"Of {len(sure)} of {count} rows there were draws enough. Their means are at most {far['independent']:.1f} "
        f"standard errors from the closed form for independent directions and {far['orthogonal']:.1f} from that for "
        f"orthogonal ones ({beyond} of {2 * len(sure)} are more than 3 away), and orthogonal directions had the "
        f"smaller error in {lower} of them."
    )


def attentions(data: Mapping[str, Any]) -> Iterator[tuple[float, int, dict[str, float], float]]:
    """Yield deviation, features, errors (of both draws and expected), and the variance of a denominator."""
    chosen = data["settings"]
    for deviation in chosen["deviations"]:
        row = data["rows"][f"attention {deviation:g}"]
        for k, features in enumerate(chosen["attention_features"]):
            found = {draw: math.sqrt(statistics.fmean(row[draw][k])) for draw in ("orthogonal", "independent")}
            yield (
                deviation,
                features,
                found | {"expected": math.sqrt(row["expected"] / features)},
                row["variance"] / features,
            )


def attention_table(data: Mapping[str, Any]) -> list[str]:
    """Lay errors of outputs out."""
    size = data["settings"]["size"]
    cells = []
    for deviation, features, found, variance in attentions(data):
        expected = number(found["expected"]) if variance < 1 else "-"
        shown = [number(found[draw]) for draw in ("orthogonal", "independent")]
        mean = 2 * deviation**2 * math.sqrt(size)
        cells.append([f"{deviation:g}", f"{mean:g}", f"{features}", *shown, expected, number(variance)])
    headings = (
        "deviation",
        "mean of squared x + y",
        "m",
        "attnc (orthogonal)",
        "independent",
        "expected",
        "variance of a denominator",
    )
    return table(headings, cells, names=3)


def attention_verdict(data: Mapping[str, Any]) -> str:
    """Say where the first order holds and where the approximation is of no use."""
    rows = [*attentions(data)]
    close = [one for one in rows if one[3] < 0.02]
    ratios = [found["independent"] / found["expected"] for _, _, found, _ in close]
    useless = sorted({deviation for deviation, _, found, _ in rows if found["orthogonal"] > 1})
    text = (
        "The first order is right where the relative variance of denominators is far below 1 (no figure is given "
        "above it). What grows with the lengths of queries and keys is `exp(|x + y|^2)`: weights and their sums are "
        "then carried by the few features that happen to point their way, typical draws are nearer than the mean of "
        "rare ones, and more features help little."
    )
    if ratios:
        text += f" Where that variance is below 0.02, measured over expected is {min(ratios):.2f} to {max(ratios):.2f}."
    if useless:
        last = rows[-1]
        text += (
            f" At a standard deviation of {last[0]:g}, {last[1]:,} features leave an error of "
            f"{last[2]['orthogonal']:.2f}, where answering 0 to everything has 1: `prepare unit` or `prepare rms` "
            "with a small `scale`, or training with the features in place, must keep queries and keys short."
            if last[2]["orthogonal"] > 1
            else f" With a deviation of {useless[0]:g} some are worse than answering 0 to everything, whose error is 1."
        )
    return text


def number(value: float) -> str:
    """Write three digits."""
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"


def draw(data: Mapping[str, Any]) -> bytes:
    """Draw squared errors of estimates by features, and errors of outputs."""
    figure = figure_class()(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [*estimates(data)]
    for place, length in enumerate(data["settings"]["lengths"]):
        own = [row for row in rows if row.length == length]
        counts = [row.features for row in own]
        for draw_name, line, marker in (("independent", "-", "o"), ("orthogonal", "--", "s")):
            name = f"length {length:g}, {draw_name}"
            left.plot(counts, [row.expected[draw_name] for row in own], line, color=f"C{place}", linewidth=1)
            left.errorbar(
                counts,
                [row.measured[draw_name] for row in own],
                [row.deviations[draw_name] for row in own],
                linestyle="",
                marker=marker,
                markersize=4,
                color=f"C{place}",
                label=name,
                fillstyle="full" if draw_name == "independent" else "none",
            )
    left.set(xscale="log", yscale="log", xlabel="features", ylabel="mean squared error of an estimate, over SM²")
    left.set_title("lines: closed forms; points: measured", loc="left", fontsize=10)
    for place, deviation in enumerate(data["settings"]["deviations"]):
        own_rows = [one for one in attentions(data) if one[0] == deviation]
        counts = [one[1] for one in own_rows]
        right.plot(
            counts,
            [one[2]["orthogonal"] for one in own_rows],
            "s-",
            color=f"C{place}",
            label=f"deviation {deviation:g}",
        )
        known = [one for one in own_rows if one[3] < 1]
        right.plot([one[1] for one in known], [one[2]["expected"] for one in known], ":", color=f"C{place}")
    right.axhline(1, color="0.5", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="features", ylabel="relative error of the output")
    right.set_title("attnc's output; dotted: first order; grey: answering 0", loc="left", fontsize=10)
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7, frameon=False)
    for panel, name in ((left, "features"), (right, "attention_features")):
        panel.set_xticks(data["settings"][name], [f"{one}" for one in data["settings"][name]])
        panel.minorticks_off()
    return png(figure)
