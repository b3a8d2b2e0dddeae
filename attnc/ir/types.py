"""The three types of the language and how they convert."""

from __future__ import annotations

from enum import Enum


class Type(Enum):
    """Type of an expression. `INT` is a 64-bit integer, `FLOAT` at least float32 at run time."""

    __hash__ = object.__hash__  # a member is part of every expression that is hashed

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"

    @property
    def is_number(self) -> bool:
        """Whether arithmetic is defined on it."""
        return self is not Type.BOOL

    def with_article(self) -> str:
        """Return `a bool`, `an int` or `a float`, for messages."""
        return f"an {self.value}" if self is Type.INT else f"a {self.value}"


def common_number(left: Type, right: Type) -> Type:
    """Return the type that two numbers meet in: `int` widens to `float`."""
    return Type.FLOAT if Type.FLOAT in (left, right) else Type.INT
