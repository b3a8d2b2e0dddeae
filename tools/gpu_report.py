"""Write what the GPU bundle has measured as tables, into a folder of `docs/results` that is named after the GPU.

    python tools/gpu_report.py results/results.json

The folder gets `summary.md`, the benchmark standard as `attnc bench` writes it (Markdown, JSON, pictures where
matplotlib is installed), and `tuned.json` for `attnc tune --import`. The same results give the same files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnc.bench import cells
from attnc.bench.names import Mode
from attnc.bench.standard_plot import draw_standard
from attnc.bench.standard_report import as_markdown
from attnc.bench.standard_row import OURS, Sizes, StandardRow

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT / "tools" / "gpu"))
from bundle.results import tuned_text  # noqa: E402 - the bundle's own folder

FORWARD, BACKWARD = 1.2, 1.3
"""Times of FlexAttention for one of attnc's that are aimed at."""

TARGETS = {"causal": 0, "window": 0, "documents": 0, "dilated_2": 2, "dilated": 4, "dilated_wide": 16}
"""Patterns of which something is aimed at, and their dilation."""

AT = {"length": 16384, "head_size": 128, "dtype": "bfloat16"}

FLEX = "flex 128"

KERNELS, NAME = 5, 60
"""Kernels of a pass that are listed, and characters of their names."""

METHOD = """\
Measured by `tools/gpu/run.py`, whose modules are those of `attnc compile --standalone`, with their default tiles.
Samples are timed by events, in alternating order; the level-2 cache is not cleared between them, and tensors are
several times as large. Every output was compared with float64 first, and for backward passes gradients of a shorter
call as well.
"""

Row = Mapping[str, Any]


def main() -> None:
    """Write the folder of the results that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of a bundle")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder of all GPUs' results")
    options = parser.parse_args()
    for path in write_report(json.loads(options.results.read_text()), options.out):
        print(path)


def write_report(data: Row, out: Path) -> list[Path]:
    """Write all files of one GPU's results and return their paths."""
    folder = out / re.sub(r"[^a-z0-9]+", "-", data["machine"]["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    parts, machine, settings = data["parts"], data["machine"], data["settings"]
    rows = [standard_row(row) for row in parts["standard"].values()]
    texts = {"summary.md": summary(data, rows), "tuned.json": tuned_text(list(parts["tuned"].values()))}
    if rows:
        report = as_markdown(rows, machine, settings)
        report = report.replace("`attnc bench --suite standard`", "the GPU bundle (`tools/gpu/run.py`)", 1)
        texts["standard.md"] = report.replace("](../benchmarks.md)", "](../../benchmarks.md)")
        whole = {"machine": machine, "settings": settings, "cases": [row.as_json() for row in rows]}
        texts["standard.json"] = json.dumps(whole, indent=1) + "\n"
    written = []
    for name, text in texts.items():
        written.append(folder / name)
        written[-1].write_text(text)
    if any(row.comparison for row in rows if not row.small) and find_spec("matplotlib"):
        for ending, picture in draw_standard([row for row in rows if row.right]).items():
            written.append(folder / f"standard-{ending}.png")
            written[-1].write_bytes(picture)
    return written


def standard_row(row: Row) -> StandardRow:
    """Read a row of the suite; one that could not be measured says why."""
    if "comparison" in row:
        return StandardRow.from_json(row)
    given = row["given"]
    sizes = Sizes(**{**given["sizes"], "mode": Mode(given["sizes"]["mode"])})
    why = str(row.get("why", "not measured")).strip().splitlines()[-1]
    return StandardRow(given["key"].removeprefix("standard/"), "", sizes, given["small"], problem=why[:200])


def summary(data: Row, rows: Sequence[StandardRow]) -> str:
    """Write what a reader wants to know first."""
    machine, parts = data["machine"], data["parts"]
    lines = [f"# {machine['device']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items() if name != "device") + ".", ""]
    lines += [METHOD]
    lines += [*correctness(parts), *targets(rows), *profiles(parts), *long(parts), *tuning(parts), *gluon(parts)]
    return "\n".join(lines).rstrip() + "\n"


def correctness(parts: Row) -> Iterator[str]:
    """Say what was compared, and what was wrong."""
    yield from ("## Correctness", "")
    names = {"correct": "comparisons of output, log-sum-exp and all gradients with float64", "graphs": "CUDA graphs"}
    for part, what in names.items():
        every = parts[part]
        wrong = {key: row for key, row in every.items() if not row["ok"]}
        yield f"- {len(every) - len(wrong)} of {len(every)} {what} are right."
        for key, row in wrong.items():
            yield f"  - {key}: {_reason(row)}"
    yield ""


def targets(rows: Sequence[StandardRow]) -> Iterator[str]:
    """Lay out the cases that something is aimed at: time of FlexAttention, its mask not counted, for one of attnc's."""
    found = {
        (row.pattern, row.sizes.mode): row
        for row in rows
        if row.pattern in TARGETS and not row.small and row.sizes.heads == row.sizes.kv_heads
        if all(getattr(row.sizes, name) == value for name, value in AT.items())
    }
    if not found:
        return
    yield from (f"## Targets: {AT['length']} positions, head size {AT['head_size']}, {AT['dtype']}", "")
    headings = ("pattern", "mode", "attnc", "TFLOP/s", "x floor", "FlexAttention", "its mask", "flex / attnc", "aim")
    yield from cells.table((*headings, "fastest peer", "/ attnc"), (), ())
    for name, dilation in TARGETS.items():
        for mode in Mode:
            row = found.get((name, mode))
            if row is None:
                continue
            aim = dilation / 3 if dilation else FORWARD if mode is Mode.FORWARD else BACKWARD
            yield f"| {name} | {mode} | {' | '.join(_cells(row))} | {aim:.2f} | {' | '.join(_fastest(row))} |"
    yield ""


def _cells(row: StandardRow) -> list[str]:
    if not row.right:
        return [cells.escaped(row.problems.get(OURS, "no time")), *[cells.NOTHING] * 5]
    ours, flex = row.results[OURS], row.results.get(FLEX)
    ratio = row.speed_ups.get(FLEX)
    rate = "" if ours.flops_per_second is None else f"{ours.flops_per_second / 1e12:.0f}"
    build = None if flex is None else flex.build_seconds
    times = [cells.time(row.seconds[OURS]), rate, cells.number(row.times_floor), cells.time(row.seconds.get(FLEX))]
    return [*times, cells.time(build), cells.number(ratio)]


def _fastest(row: StandardRow) -> list[str]:
    name = row.fastest_peer
    return [cells.NOTHING] * 2 if name is None or not row.right else [name, cells.number(row.speed_ups[name])]


def profiles(parts: Row) -> Iterator[str]:
    """Lay out what the device runs in a call."""
    found = {key: row for key, row in parts.get("profiles", {}).items() if row["ok"]}
    if not found:
        return
    yield from ("## Where the time goes", "", "Of one call at the sizes of the targets, by PyTorch's profiler.", "")
    yield from cells.table(("pattern", "pass", "kernel", "calls", "time"), (), ())
    for key, row in found.items():
        for mode, kernels in row["kernels"].items():
            for one in kernels[:KERNELS]:
                name = cells.escaped(one["name"][:NAME])
                yield cells.line((key, mode, name, f"{one['calls']:g}", cells.time(one["seconds"])))
    yield ""


def long(parts: Row) -> Iterator[str]:
    """Lay out long sequences beside what their operations or their bytes take at the rates that were measured."""
    ceilings = next((row for row in parts["ceilings"].values() if row["ok"]), None)
    ours = {key: row for key, row in parts["long"].items() if not key.endswith(" flex")}
    if not ours:
        return
    yield from ("## Long sequences", "")
    if ceilings is not None:
        flops, traffic = ceilings["flops_per_second"] / 1e12, ceilings["bytes_per_second"] / 1e12
        yield f"A product of matrices reaches {flops:.0f} TFLOP/s here, and a copy {traffic:.2f} TB/s; `bound` is the"
        yield "longer of the times that operations and bytes take at those rates."
        yield ""
    headings = ("pattern and length", "heads", "mode", "attnc", "bound", "FlexAttention", "its mask")
    yield from cells.table(headings, (), ())
    for key, row in ours.items():
        if not row["ok"]:
            yield cells.line((key, "", "", _reason(row), "", "", ""))
            continue
        flex = parts["long"].get(f"{key} flex", {})
        problem = flex.get("problem") or flex.get("why")
        peer = (cells.time(flex.get("forward")), cells.time(flex.get("build_seconds")))
        peer = (cells.escaped(_line(problem)), cells.NOTHING) if problem else peer
        for mode, seconds in row["seconds"].items():
            own = key, str(row["sizes"]["heads"]), mode, cells.time(seconds), cells.time(_bound(row, mode, ceilings))
            yield cells.line((*own, *(peer if mode == "forward" else [cells.NOTHING] * 2)))
    yield ""


def _bound(row: Row, mode: str, ceilings: Row | None) -> float | None:
    if ceilings is None:
        return None
    flops, traffic = row["flops"][mode], row["bytes"][mode]
    return float(max(flops / ceilings["flops_per_second"], traffic / ceilings["bytes_per_second"]))


def tuning(parts: Row) -> Iterator[str]:
    """Lay out what tuning found."""
    if not parts["tuned"]:
        return
    checked, wrong = len(parts["gates"]), sum(not row["ok"] for row in parts["gates"].values())
    yield from ("## Tuning", "")
    yield f"{checked} configurations were checked, outputs and gradients; {wrong} were wrong or did not run."
    yield "`tuned.json` has those that save at least 2 % of the default's time; `attnc tune --import` takes it."
    yield ""
    yield "| kernel | measured | default | best tried | default / best | tiles |"
    yield "|---|---|---|---|---|---|"
    for key, row in parts["tuned"].items():
        if not row["ok"]:
            yield f"| {key} | | {_reason(row)} | | | |"
            continue
        best = row["trials"][0]
        ratio = row["default_seconds"] / best["seconds"]
        tiles = ", ".join(f"{name} {value}" for name, value in best["tiles"].items() if value)
        mode = "both passes" if row["backward"] else "forward"
        times = f"{cells.time(row['default_seconds'])} | {cells.time(best['seconds'])} | {ratio:.2f}"
        yield f"| {row['identity']} | {mode} | {times} | {tiles} |"
    yield ""


def gluon(parts: Row) -> Iterator[str]:
    """Say how the check of other kernels ended."""
    for name, row in parts["gluon"].items():
        yield from (f"## {name}", "", "It ended well." if row["ok"] else f"It failed: {_reason(row)}", "")
        if row.get("said"):
            yield from ("```", *row["said"].strip().splitlines()[-30:], "```", "")


def _reason(row: Row) -> str:
    wrong = ", ".join(row.get("wrong", ()))
    return cells.escaped(wrong or _line(row.get("why") or row.get("problem") or f"error {row.get('error')}"))


def _line(text: str | None) -> str:
    lines = str(text or "").strip().splitlines()
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    main()
