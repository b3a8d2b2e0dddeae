"""Which library stands behind a name, and whether it is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from attnc.bench.contender import Case, Contender, Unavailable, first_line
from attnc.bench.libraries import fla, flash_attn, flashinfer, natten, xformers
from attnc.bench.names import NOT_INSTALLED


@dataclass(frozen=True, slots=True)
class Adapter:
    """A library.

    Attributes:
        module: what is imported.
        make: the contender of a case; raises `Unavailable` where the library cannot express it.
    """

    module: str
    make: Callable[[Case], Contender]


ADAPTERS = {
    "xformers": Adapter("xformers", xformers.contender),
    "flash-attn": Adapter("flash_attn", flash_attn.contender),
    "fla": Adapter("fla", fla.contender),
    "natten": Adapter("natten", natten.contender),
    "flashinfer": Adapter("flashinfer", flashinfer.contender),
}


def library_contender(name: str, case: Case) -> Contender:
    """Return a library's contender.

    Raises:
        Unavailable: it is not installed, does not load, or cannot express the case.
    """
    adapter = ADAPTERS[name]
    if not installed(adapter.module):
        raise Unavailable(NOT_INSTALLED)
    if case.shape.queries != case.shape.keys:
        raise Unavailable("measured for as many queries as keys alone")
    try:
        return adapter.make(case)
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"it fails: {first_line(error)}") from error


def installed(module: str) -> bool:
    """Tell whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
