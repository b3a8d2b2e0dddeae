"""The bilinear schemes of a module's layers: each is written once, with its fused kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attnc.algebra.bilinear.leveled import LeveledScheme
from attnc.algebra.bilinear.scheme import Scheme, left_gradient, right_gradient
from attnc.codegen.scheme_text import scheme_lines
from attnc.codegen.scheme_tiles import TileText, tile_table
from attnc.codegen.scheme_view import SchemeKernelView, scheme_kernel_view
from attnc.plan.layer_plan import LayerPlan

SCHEME_ROOTS = ("bilinear", "scheme_kernels")
"""Modules of the runtime that generated code with schemes imports."""


@dataclass(frozen=True, slots=True)
class LayerSchemeView:
    """A scheme as a part of a module.

    Attributes:
        stem: what its names begin with.
        kernels: of the product, of the left factor's gradient and of the right one's.
        tiles: target, bytes of a number and tile.
        lines: that make the scheme.
    """

    stem: str
    kernels: tuple[SchemeKernelView, ...]
    tiles: tuple[tuple[str, int, TileText], ...]
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the module calls it."""
        return f"{self.stem}_scheme"


def scheme_names(plans: Iterable[LayerPlan]) -> dict[Scheme, str]:
    """Return a stem for the names of each scheme that layers use."""
    schemes = dict.fromkeys(one.scheme.scheme for plan in plans for one in plan.projections if one.scheme is not None)
    names: dict[Scheme, str] = {}
    for scheme in schemes:
        base = "_" + (re.sub(r"\W+", "_", scheme.name, flags=re.ASCII).strip("_").lower() or "given")
        tried = (base, *(f"{base}_{number}" for number in range(2, len(schemes) + 1)))
        names[scheme] = next(name for name in tried if name not in names.values())
    return names


def scheme_views(names: Mapping[Scheme, str]) -> tuple[LayerSchemeView, ...]:
    """Decide how the schemes of a module are written."""
    return tuple(_view(scheme, stem) for scheme, stem in names.items())


def product_text(found: LeveledScheme, names: Mapping[Scheme, str]) -> str:
    """Return what a projection takes its products by, as Python."""
    levels = f", levels={found.levels}" if found.levels != 1 else ""
    return f"SchemeProduct({names[found.scheme]}_scheme{levels})"


def _view(scheme: Scheme, stem: str) -> LayerSchemeView:
    functions = ((scheme, ""), (left_gradient(scheme), "_left_gradient"), (right_gradient(scheme), "_right_gradient"))
    return LayerSchemeView(
        stem,
        tuple(scheme_kernel_view(one, f"{stem}_scheme{suffix}_kernel") for one, suffix in functions),
        tile_table(scheme),
        scheme_lines(scheme, f"{stem}_scheme", fused=f"{stem}_fused"),
    )
