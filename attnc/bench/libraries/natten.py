"""NATTEN: causal windows with or without gaps, and squares of images that are moved inside at the border.

https://natten.org/operations
"""

from __future__ import annotations

import torch

from attnc.bench.contender import Case, Contender, Unavailable
from attnc.bench.forms import Form, find_form, of_positions, proven_equal, seen_keys
from attnc.bench.libraries.packing import positions_first
from attnc.ir.nodes import Score
from attnc.ir.program import Attention

LINES = 64
"""Lines of the image whose middle pixel is looked at, were it a square."""


def contender(case: Case) -> Contender:
    """Return NATTEN for a case.

    Raises:
        Unavailable: it cannot express it.
    """
    try:
        form = find_form(case.attention)
    except Unavailable:
        return _image(case)
    form.without(window=True, gap=True, full=True)
    return _sequence(case, form)


def _sequence(case: Case, form: Form) -> Contender:
    """Return the attention of a sequence: `kernel_size` keys, `dilation` positions apart, the last the query itself."""
    length = case.shape.keys
    if not form.causal:
        raise Unavailable("its windows of both sides are moved inside at the ends, and this pattern cuts them off")
    far = length - 1 if form.left is None else min(form.left, length - 1)
    kernel = far // form.gap + 1
    if kernel > 1 and kernel * form.gap > length and length % form.gap == 0:
        kernel = length // form.gap  # the largest that it takes; nothing lies farther away
    if kernel < 2 or kernel * form.gap > length:
        raise Unavailable("its windows must have two keys or more, and fit into the sequence")
    from natten import na1d

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        three = (positions_first(tensor) for tensor in (query, key, value))
        out = na1d(*three, kernel_size=kernel, dilation=form.gap, is_causal=True, scale=form.scale)
        return positions_first(out)

    return Contender("natten", run, heads_last=True)


def _image(case: Case) -> Contender:
    """Return the attention of an image."""
    attention, shape = case.attention, case.shape
    width, radius = _square(attention)
    if shape.keys % width or shape.keys // width < 2 * radius + 1:
        raise Unavailable("its windows must fit into the image")
    from natten import na2d

    def image(tensor: torch.Tensor) -> torch.Tensor:
        tensor = positions_first(tensor)
        return tensor.view(tensor.shape[0], -1, width, *tensor.shape[2:])

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = na2d(*(image(tensor) for tensor in (query, key, value)), kernel_size=2 * radius + 1)
        return positions_first(out.flatten(1, 2))

    return Contender("natten", run, heads_last=True)


def _square(attention: Attention) -> tuple[int, int]:
    """Return the width of the image and the radius of the squares.

    Raises:
        Unavailable: the pattern is none of those.
    """
    plain = isinstance(attention.score, Score) and attention.scale is None and attention.weight is None
    if not of_positions(attention.mask) or not plain or attention.normalize.sink is not None:
        raise Unavailable("it has no such pattern")
    for width in (16, 32, 64, 128, 256):
        seen = seen_keys(attention.mask, LINES // 2 * width + width // 2, LINES * width)
        lines = sorted({key // width for key in seen})
        columns = sorted({key % width for key in seen})
        radius = len(lines) // 2
        if not seen or len(seen) != len(lines) * len(columns) or len(lines) != len(columns) or radius < 1:
            continue
        line = f"min(max(i // {width}, {radius}), M // {width} - {radius + 1})"
        column = f"min(max(i % {width}, {radius}), {width - 1 - radius})"
        inside = f"abs(j // {width} - {line}) <= {radius} and abs(j % {width} - {column}) <= {radius}"
        if proven_equal(attention, inside):
            return width, radius
        if proven_equal(attention, f"grid_near({width}, {radius})"):
            raise Unavailable("its squares are moved inside at the border, and this pattern cuts them off")
    raise Unavailable("it has no such pattern")
