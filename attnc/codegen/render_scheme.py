"""Bilinear schemes to the text of a Python module with fused kernels: of the product and of both its gradients."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib import metadata

from attnc.algebra.bilinear.scheme import Scheme, left_gradient, right_gradient
from attnc.codegen.expr_torch import printable
from attnc.codegen.render import _environment
from attnc.codegen.scheme_text import scheme_lines
from attnc.codegen.scheme_tiles import TileText, tile_table
from attnc.codegen.scheme_view import SchemeKernelView, scheme_kernel_view
from attnc.diagnostics import InternalError


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
