"""Where the grammar, the templates and the schemes lie, in a source checkout and in an installed wheel alike."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from attnc.diagnostics import InternalError

_PACKAGE = Path(__file__).resolve().parent


@cache
def grammar_text() -> str:
    """Return the grammar of the language, in Lark's notation. Raises InternalError if the installation lacks it."""
    return (_directory("grammar") / "attn.lark").read_text(encoding="utf-8")


@cache
def templates_directory() -> Path:
    """Return the folder of the code templates. Raises InternalError if the installation lacks it."""
    return _directory("templates")


@cache
def schemes_directory() -> Path:
    """Return the folder of the bilinear schemes. Raises InternalError if the installation lacks it."""
    return _directory("schemes")


def _directory(name: str) -> Path:
    """Look inside the package first (a wheel), then beside it (a checkout)."""
    for candidate in (_PACKAGE / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise InternalError(f"this installation of attnc lacks its `{name}` folder")
