"""The tiles of fused kernels of bilinear schemes."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.bilinear.scheme import Scheme
from attnc.codegen.scheme_view import ONE_WALK


@dataclass(frozen=True, slots=True)
class TileText:
    """A tile of a fused kernel, as in `runtime.scheme_kernels.SchemeTiles`."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


_TARGETS = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
_WIDE, _NARROW, _SHORT = TileText(64, 64, 32, 8, 3), TileText(64, 32, 32, 4, 2), TileText(64, 32, 16, 4, 3)
_FEW_HALF = dict(zip(_TARGETS, (_SHORT, _SHORT, _WIDE, _WIDE, _NARROW), strict=True))
_FLOAT = TileText(64, 32, 8, 8, 2)
_MANY_HALF, _MANY_FLOAT = TileText(32, 32, 32, 4, 2), TileText(32, 32, 8, 8, 2)


def tile_table(scheme: Scheme) -> tuple[tuple[str, int, TileText], ...]:
    """Return target, bytes of a number and tile: the largest that was found to compile without spills, or nearly so.

    No device has measured them.
    """
    few = scheme.rank <= ONE_WALK
    halves = [(target, 2, _FEW_HALF[target] if few else _MANY_HALF) for target in _TARGETS]
    floats = [(target, 4, _FLOAT if few else _MANY_FLOAT) for target in _TARGETS]
    interpreter = [("cpu", size, TileText(32, 32, 16, 4, 1)) for size in (2, 4)]
    return (*halves, *floats, *interpreter)
