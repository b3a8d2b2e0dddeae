"""What kernels that compute outputs and kernels that compute gradients have in common."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from attnc.codegen.expr_torch import quoted
from attnc.codegen.expr_triton import UNROLLED, Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.kernel_text import INDENT, Block, Shape, places
from attnc.codegen.reads_triton import Argument, Table
from attnc.ir.nodes import Binary, BinaryOp, Call, Const, Expr, Function, IndexName, Quantifier, Read, Size, SizeName
from attnc.ir.program import Attention
from attnc.ir.types import Type
from attnc.ir.walk import children, indices, walk
from attnc.plan.configs import TileConfig, TileRow, Traits

LOG2_E = math.log2(math.e)

_COMMENT = re.compile(r"  # [^'\"]*")
"""A comment behind a line, in the representation of a view."""


@dataclass(frozen=True, slots=True)
class InputView:
    """One of the user's tensors in the launcher.

    Attributes:
        local: the launcher's name for it.
        position: among all inputs.
        broadcast_text: tuple of `B`, `H` or nothing per dimension: what a dimension of size 1 is expanded to.
        used: whether the kernel reads it.
    """

    local: str
    position: int
    broadcast_text: str
    used: bool


def is_unshifted(attention: Attention) -> bool:
    """Tell whether positions of queries are rows of their tensor."""
    return fold(attention.align.shift) == Const(0, Type.INT)


def write_shift(writer: Writer, attention: Attention) -> tuple[tuple[str, ...], str, bool]:
    """Write `i - r`: statements before it, its text (empty where it is 0), and whether positions are clamped."""
    if is_unshifted(attention):
        return (), "", False
    shift = attention.align.shift
    fragment = writer.write(shift)
    end = Binary(BinaryOp.SUB, Size(SizeName.KEYS), Size(SizeName.QUERIES), Type.INT)
    clamped = shift != end
    text = f"{writer.use('clamp_position')}({fragment.text})" if clamped else fragment.text
    if clamped and fragment.constant:
        text = fragment.text
    lines = tuple(writer.blocks[0].lines)
    writer.blocks = [Block()]  # nothing else may read their values: they are left out where no position is used
    return lines, text, clamped


def base_2(expr: Expr | None) -> Expr | None:
    """Return a score in base 2."""
    return None if expr is None else Binary(BinaryOp.MUL, expr, Const(LOG2_E, Type.FLOAT), Type.FLOAT)


def write_scale(writer: Writer, attention: Attention, *, softmax: bool) -> tuple[str, Shape]:
    """Write the pattern's own factor on the dot product, base 2 under softmax; empty where it has none."""
    if attention.scale is None:
        return "", Shape.SCALAR
    scale = base_2(attention.scale) if softmax else attention.scale
    assert scale is not None
    fragment = writer.root(scale, "own_scale", places(node.span for node in walk(attention.scale)))
    return fragment.text, fragment.shape


def header_of(attention: Attention) -> tuple[str, ...]:
    """Return the pattern's statements as comment lines of a kernel."""
    lines = [f"attention {attention.name}"]
    for span in attention.statements:
        lines.extend(f"    {line.strip()}" for line in span.text.splitlines() if line.strip())
    for name, value in attention.params:
        lines.append(f"    with {name} = {value.value}")
    return tuple("".join(c if c.isprintable() else " " for c in line) for line in lines)


def is_long_test(test: Expr | None) -> bool:
    """Tell whether a tile test computes what every program keeps: hashes, or what tables hold."""
    kinds = (node for node in walk(test) if isinstance(node, Call | Read)) if test is not None else ()
    return any(isinstance(node, Read) or node.function is Function.HASH for node in kinds)


def pair_work(expr: Expr) -> int:
    """Count operations on pairs; reads of tables pair by pair, with their addresses, and powers count eightfold."""
    found = indices(expr)
    if not (IndexName.KEY in found and found & {IndexName.QUERY, IndexName.ROW}):
        return 0
    inner = sum(pair_work(child) for child in children(expr))
    match expr:
        case Read() | Binary(op=BinaryOp.POW):
            return inner + 8
        case Quantifier(count=count):
            return inner * min(count, UNROLLED)
        case _:
            return inner + 1


def input_view(table: Table) -> InputView:
    """Return what a launcher says of one of the user's tensors."""
    letters = {SizeName.BATCH: "B", SizeName.HEADS: "H"}
    dims = table.tensor.dims
    texts = [f'"{letters.get(dim.name, "") if isinstance(dim, Size) else ""}"' for dim in dims]
    text = f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
    return InputView(table.local, table.position, text, table.used)


def tile_lines(row: TileRow) -> list[str]:
    """Return the lines of one entry of a table of tiles."""
    key = f'("{row.target}", {row.element_size}, {row.head_size})'
    tiles = [tiles_text(config) for config in row.configs]
    return [f"{key}: ({tiles[0]},),"] if len(tiles) == 1 else [f"{key}: (", *(f"{INDENT}{one}," for one in tiles), "),"]


def tiles_text(config: TileConfig) -> str:
    """Return a configuration as a module says it."""
    sizes = f"{config.query}, {config.key}, warps={config.warps}, stages={config.stages}"
    told = {name: getattr(config, name) for name in ("descriptors", "chunk", "fused", "persistent")}
    more = "".join(f", {name}={value}" for name, value in told.items() if value)
    return f"Tiles({sizes}{more}{f', order={quoted(config.order)}' if config.order else ''})"


def identity_of(view: Any, attention: str) -> str:
    """Return what tuned tiles know a kernel by: the attention's name and a digest of what the kernel computes.

    Args:
        view: of the kernel. Its names, its comments, its default tiles and what decides on them do not count.
        attention: name of the attention.
    """
    bare = replace(view, function="", table="", identity="", header=(), traits=Traits(), tiles=())
    parts = [(field.name, getattr(bare, field.name)) for field in fields(bare)]
    # sets of text have another order in every process
    ordered = [(name, sorted(part) if isinstance(part, frozenset) else part) for name, part in parts]
    text = _COMMENT.sub("", repr(ordered))
    return f"{attention} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def state_tensors(state: str) -> tuple[str, ...]:
    """Return which tensors of a launch hold what is kept of rows."""
    return {"lse": ("lse",), "peak": ("lse", "total"), "total": ("total",)}.get(state, ())


def dropout_arguments(call: str) -> tuple[Argument, ...]:
    """Return the parameters that say which weights are dropped; `call` is what a launcher calls the launch."""
    return (
        Argument("seed_ptr", f"{call}.seed"),
        Argument("drop_below", f"{call}.drop_below", specialize=False),
        Argument("keep_scale", f"{call}.keep_scale", specialize=False),
        Argument("DROPOUT", f"{call}.seed is not None", constant=True),
    )
