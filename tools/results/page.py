"""`docs/results.md` and the pages behind it, out of the files in `docs/results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attnc.files import write_bytes, write_text
from results import efficiency_text, performer_text, schemes_text, structures_text
from results.schemes import ONE_THREAD, TWO_THREADS
from results.text import machine_line, paragraph

TEXTS = {
    "performer": performer_text,
    "efficiency": efficiency_text,
    "schemes": schemes_text,
    "structures": structures_text,
}

FILES = {"schemes": ONE_THREAD, "structures": "structured_layers"}
"""Files of parts that have another name: that of `structures` belongs to `tools/time_structures.py`."""

MINUTES = 20
"""What `make study` takes, about, on the machine that the pages are from while it does nothing else."""


def write(docs: Path) -> None:
    """Write every page and picture that there are results for."""
    found = results(docs)
    for name, data in found.items():
        text = TEXTS[name]
        place = docs / "results" / (name if name == "schemes" else FILES.get(name, name))
        write_bytes(place.with_suffix(".png"), text.draw(data))
        if name != "schemes":
            write_text(place.with_suffix(".md"), joined(text.details(data)))
    write_text(docs / "results.md", page(docs))


def results(docs: Path) -> dict[str, dict[str, Any]]:
    """Read what was measured, by part; those that are missing are left out."""
    found = {name: read(docs, FILES.get(name, name)) for name in TEXTS}
    return {name: data for name, data in found.items() if data is not None}


def read(docs: Path, name: str) -> dict[str, Any] | None:
    """Read a file of results; None where there is none."""
    path = docs / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def page(docs: Path) -> str:
    """Return `results.md`."""
    lines = [
        "# Reproduced results",
        "",
        *paragraph(
            "What papers say of forms that attnc compiles, held against measurements. `make study` measures "
            f"everything anew, in about {MINUTES} minutes of one core, and writes this page, tables and pictures "
            "from what it found (`tools/reproduce.py` has its parts: performer, efficiency, schemes, structures). An "
            "interrupted run goes on where it stopped. Sentences about figures are written from the figures as well."
        ),
    ]
    for name, data in results(docs).items():
        text = TEXTS[name]
        lines += [f"## {text.TITLE}", "", f"{machine_line(data['machine'])}.", ""]
        lines += text.section(data, read(docs, TWO_THREADS)) if name == "schemes" else text.section(data)
    return joined(lines)


def joined(lines: list[str]) -> str:
    """Return lines as the text of a file."""
    return "\n".join(lines).rstrip() + "\n"
