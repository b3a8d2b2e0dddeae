"""Checking a layer (LANGUAGE.md section 9)."""

from __future__ import annotations

from collections.abc import Mapping

from attnc.ir.program import Layer
from attnc.sema.context import Context
from attnc.sema.declarations import ParameterValue
from attnc.syntax import tree


def check_layer(
    declaration: tree.Layer, context: Context, values: Mapping[str, ParameterValue], required: bool
) -> Layer | None:
    """Check a layer."""
    return None
