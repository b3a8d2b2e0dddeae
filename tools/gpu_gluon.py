"""The kernels in Gluon that the GPU bundle checks: modules that stand alone, written beside `gluon_check.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

from attnc.compiler import plan_source, render
from attnc.files import read_pattern

ROOT = Path(__file__).resolve().parent.parent

PATTERNS = ("causal", "standard/full", "window", "sinks_window", "documents", "standard/alibi", "standard/softcap")
"""Of `attnc/bench/patterns`: what the benchmark standard measures and Gluon can run."""


def write_gluon(out: Path, patterns: tuple[str, ...] = PATTERNS) -> None:
    """Write the modules and the script that checks them to a folder."""
    for name in patterns:
        compiled = plan_source(read_pattern(ROOT / "attnc" / "bench" / "patterns" / f"{name}.attn"))
        text = render(compiled, standalone=True, template="gluon")
        (out / f"gluon_{Path(name).name}.py").write_text(text)
    shutil.copyfile(ROOT / "tools" / "gpu" / "gluon_check.py", out / "gluon_check.py")
