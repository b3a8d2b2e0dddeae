"""The door to matplotlib, which is an extra."""

from __future__ import annotations

from typing import Any

from attnc.diagnostics import CompileError, Diagnostic


def figure_class() -> Any:
    """Return matplotlib's `Figure`, which needs no display and no global state.

    Raises:
        CompileError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CompileError(
            Diagnostic("missing-extra", "pictures need matplotlib", help="install it: `pip install attnc[plot]`")
        ) from None
    return Figure
