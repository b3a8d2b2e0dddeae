"""What was found so far, on disk after every step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent

PARTS = (
    "ceilings",
    "correct",
    "graphs",
    "prepared",
    "standard",
    "profiles",
    "gluon",
    "kernels",
    "gates",
    "tuned",
    "long",
)

FORMAT = "attnc tuned tiles, 1"
"""What `attnc tune --import` takes."""

SHOWN = 40
"""Lines of each part in the summary."""

Row = dict[str, Any]


class Results:
    """Rows by part and key; what another bundle or another machine has left is put aside."""

    def __init__(self, out: Path, machine: Row, settings: Row) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        same = {"machine": machine, "bundle": digest()}
        self.data: dict[str, Any] = {**same, "settings": settings, "parts": {part: {} for part in PARTS}}
        old = self._read()
        if old is not None and all(old.get(name) == value for name, value in same.items()):
            self.data["parts"] |= old["parts"]
        elif old is not None:
            (out / "results.json").replace(out / "results-of-another-run.json")
        self.write()

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.out / "results.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found.get("parts"), dict) else None

    def part(self, name: str) -> dict[str, Row]:
        """Return the rows of a part by key."""
        rows: dict[str, Row] = self.data["parts"][name]
        return rows

    def forget_failures(self) -> None:
        """Leave out what failed, so that it is done again."""
        for part, rows in self.data["parts"].items():
            self.data["parts"][part] = {key: row for key, row in rows.items() if row["ok"]}

    def put(self, part: str, key: str, row: Row) -> None:
        """Enter a row, and write all files."""
        self.data["parts"][part][key] = row
        self.write()

    def write(self) -> None:
        """Write each file to a temporary name first, so that there is never half of one."""
        texts = {
            "results.json": json.dumps(self.data, indent=1) + "\n",
            "results.md": summary(self.data),
            "tuned.json": tuned_text(list(self.part("tuned").values())),
        }
        for name, text in texts.items():
            temporary = self.out / f".{name}.tmp"
            temporary.write_text(text)
            temporary.replace(self.out / name)

    @property
    def wrong(self) -> list[str]:
        """Return what was compared and found wrong, or could not be compared."""
        return [key for part in ("correct", "graphs") for key, row in self.part(part).items() if not row["ok"]]


def digest() -> str:
    """Identify the bundle by all of its files; results and what was compiled may lie beside them."""
    folders = (HERE / name for name in ("bundle", "examples", "standard"))
    modules = (path for folder in folders for path in folder.glob("*.py"))
    files = sorted((HERE / "manifest.json", *HERE.glob("*.py"), *modules))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def tuned_text(rows: list[Row]) -> str:
    """Return what tuning has entered, as `attnc tune --import` takes it."""
    lines = [f"    {json.dumps(row['entry'])}" for row in rows if row.get("entry")]
    body = ",\n".join(lines)
    return f'{{\n  "format": {json.dumps(FORMAT)},\n  "entries": [\n{body}\n  ]\n}}\n'


def summary(data: dict[str, Any]) -> str:
    """Lay out the most important results as Markdown; `tools/gpu_report.py` writes the tables for the repository."""
    parts = data["parts"]
    lines = ["# Results", "", ", ".join(f"{key} {value}" for key, value in data["machine"].items()), ""]
    for part in ("correct", "graphs"):
        wrong = {key: row for key, row in parts[part].items() if not row["ok"]}
        lines += [f"{part}: {len(parts[part]) - len(wrong)} of {len(parts[part])} are right."]
        reasons = {key: row.get("wrong") or _line(row.get("why") or row.get("error")) for key, row in wrong.items()}
        lines += [f"- wrong: {key}: {reason}" for key, reason in reasons.items()]
    lines += ["", *standard_lines(list(parts["standard"].values()))[:SHOWN]]
    lines += ["", *(f"- long: {key}: {_long(row)}" for key, row in parts["long"].items())]
    lines += [f"- gluon: {row.get('code', row.get('why'))}" for row in parts["gluon"].values()]
    entered = sum(1 for row in parts["tuned"].values() if row.get("entry"))
    lines += ["", f"{len(parts['tuned'])} kernels tuned, {entered} with faster tiles than the default."]
    return "\n".join(lines) + "\n"


def standard_lines(rows: list[Row]) -> list[str]:
    """Return a table of cases: times in milliseconds, and FlexAttention's and the fastest peer's for one of attnc's."""
    headings = ("case", "attnc, ms", "TFLOP/s", "x floor", "flex / attnc", "fastest / attnc", "fastest")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        asked = row if "sizes" in row else {"pattern": row["given"]["key"], **row["given"]}
        sizes = asked["sizes"]
        label = f"{asked['pattern']} N{sizes['length']} D{sizes['head_size']} {sizes['mode']}"
        found = {one["name"]: one for one in (row.get("comparison") or {}).get("results", ())}
        ours = found.pop("attnc", row)
        if "timing" not in ours:
            lines.append(f"| {label} | {_line(ours.get('problem') or ours.get('why'))} | | | | | |")
            continue
        own = ours["timing"]["median"]
        others = {name: one["timing"]["median"] / own for name, one in found.items() if "timing" in one}
        fastest = min(others, key=lambda name: others[name], default="")
        cells = [f"{own * 1e3:.3f}", f"{ours['flops_per_second'] / 1e12:.0f}", f"{ours['times_floor']:.2f}"]
        cells += [f"{others[name]:.2f}" if name in others else "" for name in ("flex 128", fastest)]
        lines.append(f"| {label} | {' | '.join(cells)} | {fastest} |")
    return lines


def _long(row: Row) -> str:
    if row.get("seconds"):
        return ", ".join(f"{mode} {taken * 1e3:.2f} ms" for mode, taken in row["seconds"].items())
    times = f"mask build {row.get('build_seconds')} s, forward {row.get('forward')} s"
    return _line(row.get("problem") or row.get("why") or times)


def _line(text: object) -> str:
    """Return the last line of a text, which of a traceback is the error."""
    lines = str(text).strip().splitlines()
    return lines[-1][:240] if lines else ""
