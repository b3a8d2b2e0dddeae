"""Values of the emulated Gluon: blocks with layouts, pointers, and the functions over them that kernels call."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


class EmulatorError(Exception):
    """A kernel did what a device would punish: a race, a wrong layout, an address outside of memory."""


@dataclass(frozen=True)
class DType:
    torch: torch.dtype

    def is_ptr(self):
        return False

    @property
    def itemsize(self):
        return self.torch.itemsize


DTYPES = {
    "int1": torch.bool, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip
NAMED = {name: DType(dtype) for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class SliceLayout:
    dim: int
    parent: Any


@dataclass(frozen=True)
class NVMMADistributedLayout:
    version: tuple
    warps_per_cta: tuple
    instr_shape: tuple

    def __post_init__(self):
        for name in ("version", "warps_per_cta", "instr_shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class DotOperandLayout:
    operand_index: int
    parent: Any
    k_width: int


@dataclass(frozen=True)
class BlockedLayout:
    size_per_thread: tuple
    threads_per_warp: tuple
    warps_per_cta: tuple
    order: tuple

    def __init__(self, *parts):
        for name, part in zip(self.__dataclass_fields__, parts, strict=True):
            object.__setattr__(self, name, tuple(part))
        if self.threads_per_warp[0] * self.threads_per_warp[1] != 32:
            raise EmulatorError(f"a warp has 32 threads, not {self.threads_per_warp}")


class Value:
    """A scalar, or a block with a layout; None stands for Gluon's AutoLayout."""

    def __init__(self, data, layout=None):
        self.data, self.layout = data, layout

    @property
    def dtype(self):
        return DType(self.data.dtype)

    @property
    def shape(self):
        return list(self.data.shape)

    @property
    def type(self):
        return SimpleNamespace(layout=self.layout)

    def to(self, dtype, bitcast=False):
        return Value(self.data.view(dtype.torch) if bitcast else self.data.to(dtype.torch), self.layout)

    def __bool__(self):
        if self.data.dim():
            raise EmulatorError("a block of values decides no branch")
        return bool(self.data)

    def __index__(self):
        return int(self.data)

    def __getitem__(self, key):
        axis = key.index(None)
        if self.data.dim() != 1 or len(key) != 2:
            raise EmulatorError("only rows become blocks")
        layout = self.layout
        if layout is not None:
            if not isinstance(layout, SliceLayout) or layout.dim != axis:
                raise EmulatorError(f"{layout} has no dimension {axis} to add")
            layout = layout.parent
        return Value(self.data.unsqueeze(axis), layout)

    def __neg__(self):
        return Value(-self.data, self.layout)

    def __invert__(self):
        return Value(~self.data, self.layout)


def scalar(x):
    """Return a number as a kernel has it."""
    if isinstance(x, bool):
        return Value(torch.tensor(x))
    if isinstance(x, int):
        return Value(torch.tensor(x, dtype=torch.int32 if -(2**31) <= x < 2**31 else torch.int64))
    return Value(torch.tensor(x, dtype=torch.float32))


def joined(*values):
    """Return blocks of one type and layout as tensors, and their layout; numbers take the type of the others."""
    known = [value for value in values if isinstance(value, Value)]
    blocks = [value for value in known if value.data.dim()]
    if len({value.data.dim() for value in blocks}) > 1:
        raise EmulatorError("blocks have different ranks")
    layouts = {value.layout for value in blocks if value.layout is not None}
    if len(layouts) > 1:
        raise EmulatorError(f"layouts differ: {' and '.join(map(str, layouts))}")
    dtype = known[0].data.dtype
    for value in known[1:]:
        dtype = torch.promote_types(dtype, value.data.dtype)
    if any(isinstance(value, float) for value in values) and not dtype.is_floating_point:
        dtype = torch.float32
    tensors = [(value if isinstance(value, Value) else scalar(value)).data.to(dtype) for value in values]
    return tensors, next(iter(layouts), None)


def _binary(function, *, swapped=False):
    def method(self, other):
        if isinstance(other, Pointer):
            return NotImplemented
        (left, right), layout = joined(self, other)
        return Value(function(right, left) if swapped else function(left, right), layout)

    return method


def _divided(left, right):
    return torch.div(left, right, rounding_mode="trunc")


_OPERATORS = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": _divided, "mod": torch.fmod, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    setattr(Value, f"__{_name}__", _binary(_function))
    setattr(Value, f"__r{_name}__", _binary(_function, swapped=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _binary(getattr(operator, _name)))
Value.__hash__ = None


class Pointer:
    """Addresses of elements in the memory of a tensor."""

    def __init__(self, memory, offset):
        self.memory, self.offset = memory, offset

    @classmethod
    def of(cls, tensor):
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return cls(memory, Value(torch.tensor(tensor.storage_offset(), dtype=torch.int64)))

    @property
    def dtype(self):
        return SimpleNamespace(element_ty=DType(self.memory.dtype), is_ptr=lambda: True)

    def __add__(self, other):
        return Pointer(self.memory, self.offset + other)

    def at(self, mask):
        """Return the places that are read or written, which of them are, and the layout."""
        mask = Value(torch.tensor(True)) if mask is None else mask
        (places, _), layout = joined(self.offset, Value(mask.data.to(torch.int64), mask.layout))
        places, inside = torch.broadcast_tensors(places, mask.data)
        wrong = inside & ((places < 0) | (places >= self.memory.numel()))
        if bool(wrong.any()):
            raise EmulatorError("an address lies outside of its tensor")
        return places, inside, layout


def load(pointer, mask=None, other=None):
    places, inside, layout = pointer.at(mask)
    found = pointer.memory[torch.where(inside, places, 0)] if pointer.memory.numel() else torch.zeros_like(places)
    found = found.to(pointer.memory.dtype)
    missing = torch.tensor(0 if other is None else other).to(found.dtype)
    return Value(torch.where(inside, found, missing), layout)


def store(pointer, value, mask=None):
    places, inside, layout = pointer.at(mask)
    if value.layout is not None and layout is not None and value.layout != layout:
        raise EmulatorError(f"layouts differ: {value.layout} and {layout}")
    data = torch.broadcast_to(value.data, places.shape).to(pointer.memory.dtype)
    pointer.memory[places[inside]] = data[inside]


def where(condition, then, otherwise):
    condition = to_tensor(condition)
    if not isinstance(then, Value) and not isinstance(otherwise, Value):
        then, otherwise = scalar(then), scalar(otherwise)
    (left, right), layout = joined(then, otherwise)
    left, right = (part.expand(torch.broadcast_shapes(left.shape, right.shape)) for part in (left, right))
    _, layout = joined(Value(condition.data.to(torch.int32), condition.layout), Value(left.to(torch.int32), layout))
    return Value(torch.where(condition.data.bool(), left, right), layout)


def _extremum(of_floats, of_ints):
    def function(left, right, propagate_nan=None):
        if not isinstance(left, Value) and not isinstance(right, Value):
            left = scalar(left)
        (left, right), layout = joined(left, right)
        if propagate_nan is not None or not left.dtype.is_floating_point:
            return Value(of_ints(left, right), layout)
        return Value(of_floats(left, right), layout)

    return function


def reduced(function):
    def reduce(value, axis=None):
        if axis is None:
            return Value(function(value.data.reshape(-1), 0))
        return Value(function(value.data, axis), None if value.layout is None else SliceLayout(axis, value.layout))

    return reduce


def _greatest(data, axis):
    if not data.dtype.is_floating_point:
        return data.amax(axis)
    known = torch.where(data.isnan(), float("-inf"), data).amax(axis)
    return torch.where(data.isnan().all(axis), float("nan"), known)


def elementwise(function):
    return lambda value: Value(function(value.data), value.layout)


def to_tensor(x):
    return x if isinstance(x, Value | Pointer) else scalar(x)


def full(shape, value, dtype, layout=None):
    number = value.data if isinstance(value, Value) else torch.tensor(value)
    return Value(number.to(dtype.torch).expand(shape).clone(), layout)


def convert_layout(value, layout):
    return Value(value.data, layout)


def arange(start, end, layout=None):
    return Value(torch.arange(int(start), int(end), dtype=torch.int32), layout)


def cdiv(x, y):
    return (x + (y - 1)) // y


def numbers(*bounds):
    """Stand in for `range`: the numbers are scalars of the kernel."""
    return (scalar(number) for number in range(*map(int, bounds)))


FUNCTIONS = {
    "constexpr": object, "SliceLayout": SliceLayout, "NVMMADistributedLayout": NVMMADistributedLayout,
    "DotOperandLayout": DotOperandLayout, "BlockedLayout": BlockedLayout, "load": load, "store": store,
    "where": where, "maximum": _extremum(torch.fmax, torch.maximum), "minimum": _extremum(torch.fmin, torch.minimum),
    "max": reduced(_greatest), "sum": reduced(torch.sum), "to_tensor": to_tensor, "full": full,
    "zeros": lambda shape, dtype, layout=None: full(shape, 0, dtype, layout), "convert_layout": convert_layout,
    "arange": arange, "cdiv": cdiv, "static_range": range, "PropagateNan": SimpleNamespace(ALL="all"),
    **{name: elementwise(getattr(torch, name)) for name in ("abs", "exp", "exp2", "log", "log2", "sqrt", "floor")},
    "erf": elementwise(torch.erf), "sigmoid": elementwise(torch.sigmoid), **NAMED,
}  # fmt: skip
"""What the emulated `gl` and `tl` have in common."""
