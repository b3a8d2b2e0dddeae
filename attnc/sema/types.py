"""Types by their names in the text."""

from __future__ import annotations

from attnc.ir.types import Type

TYPE_NAMES = tuple(kind.value for kind in Type)


def type_named(name: str) -> Type | None:
    """Return the type of that name; None if there is none."""
    return Type(name) if name in TYPE_NAMES else None
