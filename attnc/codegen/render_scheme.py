"""Bilinear schemes to the text of a Python module with fused kernels: of the product and of both its gradients."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import metadata

from attnc.algebra.bilinear.scheme import Scheme, left_gradient, right_gradient
from attnc.codegen.expr_torch import printable
from attnc.codegen.render import _environment
from attnc.codegen.scheme_text import scheme_lines
from attnc.codegen.scheme_view import ONE_WALK, SchemeKernelView, scheme_kernel_view
from attnc.diagnostics import InternalError


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


@dataclass(frozen=True, slots=True)
class SchemeModuleView:
    """What the template of a module lays out.

    Attributes:
        name: of the scheme in the module.
        kernels: of the product, of the left factor's gradient and of the right one's.
        tiles: target, bytes of a number and tile.
        scheme: lines that make the scheme.
    """

    title: str
    name: str
    kernels: tuple[SchemeKernelView, ...]
    tiles: tuple[tuple[str, int, TileText], ...]
    scheme: tuple[str, ...]


def render_scheme_module(scheme: Scheme, name: str) -> str:
    """Write a module that defines a scheme with fused kernels, for `scheme_linear` and `scheme_matmul`.

    Args:
        scheme: proven exact.
        name: what the module calls it, in capitals.
    """
    stem = name.lower()
    functions = ((scheme, ""), (left_gradient(scheme), "_left_gradient"), (right_gradient(scheme), "_right_gradient"))
    view = SchemeModuleView(
        f"The scheme {printable(scheme.name or stem)} {scheme.title}, written by attnc {metadata.version('attnc')}.",
        name,
        tuple(scheme_kernel_view(one, f"_{stem}{suffix}_kernel") for one, suffix in functions),
        tile_table(scheme),
        scheme_lines(scheme, name, fused="_FUSED"),
    )
    text: str = _environment().get_template("scheme_module.py.jinja").render(module=view)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise InternalError(f"generated code is not Python: {error}") from error
    return text
