"""Reads of the user's tensors in Triton's terms: 0 outside of the table, and never an address outside of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attnc.codegen.kernel_text import ATOM, INDENT, SUFFIX, SUM, Fragment, Names, Shape, extent, place
from attnc.ir.nodes import Const, Expr, Index, IndexName, Read, Size, SizeName
from attnc.ir.program import Tensor
from attnc.ir.types import Type

if TYPE_CHECKING:
    from attnc.codegen.expr_triton import Writer

_BROADCAST = {IndexName.BATCH: SizeName.BATCH, IndexName.HEAD: SizeName.HEADS}


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of the kernel.

    Attributes:
        name: of the parameter.
        value: Python expression for it in the launcher.
        specialize: whether Triton may compile for the value's divisibility (strides) or not (sizes, numbers).
        constant: whether it is a compile-time constant.
    """

    name: str
    value: str
    specialize: bool = True
    constant: bool = False

    @property
    def declaration(self) -> str:
        """The parameter as the kernel declares it."""
        return f"{self.name}: tl.constexpr" if self.constant else self.name


@dataclass(slots=True)
class Table:
    """One of the user's tensors in a kernel.

    Attributes:
        position: in the launcher's `inputs`.
        local: what the launcher calls it.
        stem: what names in the kernel begin with.
    """

    tensor: Tensor
    position: int
    local: str
    stem: str
    used: bool = False
    arguments: dict[str, Argument] = field(default_factory=dict)


class Tables:
    """The user's tensors, and which of their pointers, strides and sizes a kernel uses."""

    def __init__(self, names: Names, tensors: tuple[Tensor, ...]) -> None:
        self._names = names
        self._tables = {
            tensor.name: Table(tensor, position, names.fresh(_identifier(tensor.name)), _identifier(tensor.name)[:14])
            for position, tensor in enumerate(tensors)
        }

    def __getitem__(self, name: str) -> Table:
        table = self._tables[name]
        table.used = True
        return table

    @property
    def all(self) -> tuple[Table, ...]:
        """Every tensor, in the order of declaration."""
        return tuple(self._tables.values())

    def argument(self, table: Table, kind: str, axis: int = 0) -> str:
        """Return the kernel's name for a `number`, a `pointer`, a `stride` or a `size` of a table."""
        key = f"{kind}{axis}"
        if key not in table.arguments:
            suffix, value, specialize = {
                "number": ("", table.local, False),
                "pointer": ("_ptr", table.local, True),
                "stride": (f"_stride_{axis}", f"{table.local}.stride({axis})", True),
                "size": (f"_size_{axis}", f"{table.local}.size({axis})", False),
            }[kind]
            stem = table.local if kind == "number" else table.stem + suffix
            name = stem if kind == "number" else self._names.fresh(stem)
            table.arguments[key] = Argument(name, value, specialize)
        return table.arguments[key].name


def _identifier(name: str) -> str:
    """Return a name of a kernel's for a tensor; summaries have a point in theirs."""
    return name.replace(".", "_")


def read_table(writer: Writer, expr: Read) -> Fragment:
    """Write a read. Scalar inputs come as numbers or as pointers, tensors as pointers with strides and sizes."""
    table = writer.tables[expr.table]
    if not expr.index:
        return _read_number(writer, table, expr)
    indices = [writer.write_named(index, "at") for index in expr.index]
    shape, depth = Shape.SCALAR, 0
    for fragment in indices:
        shape, depth = shape.join(fragment.shape), max(depth, fragment.depth)
    guard = _guard(writer, table, expr, indices, shape, depth)
    address = _address(writer, table, indices, shape, depth)
    stem = f"{table.stem}_value" if shape is Shape.SCALAR else table.stem + SUFFIX[shape]
    name = writer.names.fresh(stem, depth)
    cast = ".to(tl.float32)" if expr.type is Type.FLOAT else ""
    comment = place(expr.span)
    if guard:
        other = "0.0" if expr.type is Type.FLOAT else "0"
        opening = f"{name} = tl.load(" + (f"  # {comment}" if comment else "")
        lines = [opening, f"{INDENT}{address},", f"{INDENT}mask={guard},", f"{INDENT}other={other},", f"){cast}"]
        for line in lines:
            writer.emit(line, depth)
    else:
        writer.emit(f"{name} = tl.load({address}){cast}", depth, comment)
    return Fragment(name, ATOM, shape, depth)


def _read_number(writer: Writer, table: Table, expr: Read) -> Fragment:
    argument = writer.tables.argument(table, "number")
    text = f"{writer.use('read_scalar')}({argument})"
    match expr.type:
        case Type.FLOAT:
            text = f"{text}.to(tl.float32)"
        case Type.BOOL:
            text = f"{text} != 0"
        case Type.INT:
            pass
    return writer.name(Fragment(text, ATOM), f"{table.stem}_value", place(expr.span))


def _guard(writer: Writer, table: Table, expr: Read, indices: list[Fragment], shape: Shape, depth: int) -> str:
    """Return a condition for all indices being inside; empty where that is certain."""
    single: list[str] = []
    conditions: list[str] = []
    for axis, (index, fragment, dim) in enumerate(zip(expr.index, indices, table.tensor.dims, strict=True)):
        if _is_own_dimension(index, dim):
            continue
        found = writer.range_of(index)
        text = writer.text(fragment, shape)
        chosen = single if fragment.shape is Shape.SCALAR and shape is not Shape.SCALAR else conditions
        if found.low < 0:
            chosen.append(f"{text} >= 0")
        if not (isinstance(dim, Const) and found.high < dim.value):
            chosen.append(f"{text} < {writer.tables.argument(table, 'size', axis)}")
    guard = _conjunction(writer, table, conditions, shape, depth)
    if not single:
        return guard
    # A block takes on a condition of the whole program by `tl.where`, as in `Writer`'s connectives.
    outer = writer.named(Fragment(_conjunction(writer, table, single, Shape.SCALAR, depth), SUM, depth=depth), "inside")
    return f"tl.where({outer.text}, {guard or f'tl.full({extent(shape, writer.aliases)}, 1, tl.int1)'}, False)"


def _conjunction(writer: Writer, table: Table, conditions: list[str], shape: Shape, depth: int) -> str:
    if len(conditions) < 2:
        return "".join(conditions)
    guard = f"({conditions[0]})"
    for condition in conditions[1:]:
        text = f"{guard} & ({condition})"
        if not writer.fits(text, depth):
            text = f"{writer.name(Fragment(guard, ATOM, shape, depth), f'{table.stem}_inside').text} & ({condition})"
        guard = text
    return guard


def _is_own_dimension(index: Expr, dim: Expr | None) -> bool:
    """Tell whether an index is plain `b` or `h` into a dimension `B` or `H`."""
    return isinstance(index, Index) and isinstance(dim, Size) and _BROADCAST.get(index.name) is dim.name


def _address(writer: Writer, table: Table, indices: list[Fragment], shape: Shape, depth: int) -> str:
    """Return pointers: the part that all rows and keys share is computed before the loops."""
    base = Fragment(writer.tables.argument(table, "pointer"), ATOM)
    scalars = [(axis, f) for axis, f in enumerate(indices) if f.shape is Shape.SCALAR and f.depth == 0]
    others = [(axis, f) for axis, f in enumerate(indices) if f.shape is not Shape.SCALAR or f.depth > 0]
    key = ("base", table.tensor.name, tuple((axis, f.text) for axis, f in scalars))
    known = writer.blocks[0].written.get(key)
    if known is None:
        for axis, fragment in scalars:
            term = _term(writer, table, axis, fragment, Shape.SCALAR)
            if term:
                base = writer.name(Fragment(f"{base.text} + {term}", ATOM), f"{table.stem}_base")
        known = writer.blocks[0].written[key] = base
    text = known.text
    for axis, fragment in others:
        term = _term(writer, table, axis, fragment, shape)
        if not writer.fits(f"{text} + {term}", depth):
            text = writer.name(Fragment(text, ATOM, shape, depth), f"{table.stem}_at").text
        text = f"{text} + {term}"
    return text


def _term(writer: Writer, table: Table, axis: int, index: Fragment, shape: Shape) -> str:
    """Return one index times its stride, in as many bits as the tables of this call need."""
    if index.text == "0":
        return ""
    stride = writer.tables.argument(table, "stride", axis)
    wide = writer.use("index_type")
    if index.constant:
        return f"tl.full([], {index.text}, {wide}) * {stride}"
    return f"{writer.text(index, shape)}.to({wide}) * {stride}"
