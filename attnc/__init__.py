"""A compiler for attention patterns: a `.attn` file in, Triton kernels and a PyTorch module out.

    module = attnc.load("streaming.attn", window=512)     # compile, cache, import
    module = attnc.loads(text)                            # the same from source text
    path = attnc.compile("streaming.attn", out="streaming.py", params={"window": 512})
    text = attnc.from_flex(mask_mod, score_mod)           # FlexAttention's functions as a pattern's text

Importing the package imports no stage: each name is looked up when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnc.compiler import check, compile, explain, load, loads
    from attnc.diagnostics import CompileError
    from attnc.flex.pattern import from_flex

__all__ = ["CompileError", "check", "compile", "explain", "from_flex", "load", "loads"]

__version__ = "0.1.0"

_HOMES = {
    "CompileError": "attnc.diagnostics",
    "check": "attnc.compiler",
    "compile": "attnc.compiler",
    "explain": "attnc.compiler",
    "from_flex": "attnc.flex.pattern",
    "load": "attnc.compiler",
    "loads": "attnc.compiler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attnc' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
