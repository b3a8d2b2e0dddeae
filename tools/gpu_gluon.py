"""The kernels in Gluon that the GPU bundle checks: modules that stand alone, written beside `gluon_check.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnc.compiler import plan_source, render
from attnc.files import read_pattern

ROOT = Path(__file__).resolve().parent.parent

PATTERNS = ("causal", "standard/full", "window", "sinks_window", "documents", "standard/alibi", "standard/softcap")
"""Of `attnc/bench/patterns`: what the benchmark standard measures and Gluon can run."""


def write_gluon(out: Path, only: Sequence[str] | None = None) -> None:
    """Write the modules to the bundle's folder, or those of some patterns; `gluon_check.py` there finds them."""
    for pattern in PATTERNS:
        name = Path(pattern).name
        if only and name not in only:
            continue
        compiled = plan_source(read_pattern(ROOT / "attnc" / "bench" / "patterns" / f"{pattern}.attn"))
        (out / f"gluon_{name}.py").write_text(render(compiled, standalone=True, template="gluon"))
