"""Layouts of grids for the tests: which axes, and as sides how far the mask at hand reaches along them."""

from attnc.algebra.boxes import Reaches
from attnc.algebra.congruences import PairSet
from attnc.algebra.coordinates import boxed
from attnc.algebra.grids import Axis
from attnc.algebra.simplify import simplify_attention
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source


def grid_of(attention, *axes):
    """Return the layout of an attention's mask in a grid; axes are stride, extent, tile and perhaps lead."""
    reaches = Reaches(PairSet.of(attention), attention.mask)
    cuts = tuple(Axis(*axis) for axis in axes)
    return boxed(cuts, tuple(reaches.side(axis.stride, axis.extent) for axis in cuts))


def in_grid(mask, *axes, statements=""):
    """Return a mask, as text, with the layout of a grid that holds its pairs."""
    text = f"attention grid {{ {statements}; mask {mask} }}"
    attention = check_program(parse_source(SourceFile("grid.attn", text)), params={}).attentions[0]
    return mask, grid_of(simplify_attention(attention)[0], *axes)
