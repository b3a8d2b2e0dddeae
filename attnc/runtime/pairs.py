"""What a pattern's own expressions are evaluated on: coordinates of a block of pairs, sizes and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnc.runtime.transforms import may_need_gradient

INT_MAX = 2**63 - 1
INT_MIN = -(2**63)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one call, by the names that patterns use, and the value's own head size.

    Attributes:
        K: keys before they were shortened; 0 where that is not known.
    """

    B: int
    H: int
    N: int
    M: int
    D: int
    g: int
    value_size: int
    K: int = 0

    @property
    def kv_heads(self) -> int:
        """Heads of key and value."""
        return self.H // self.g


@dataclass(frozen=True, slots=True)
class TapedRead:
    """One read of a float table.

    Attributes:
        places: the index, one tensor for each dimension, kept inside of the table.
        value: the gathered elements.
        inside: where the index was inside in truth, and the pair allowed; None for everywhere.
    """

    table: str
    places: tuple[Tensor, ...]
    value: Tensor
    inside: Tensor | None


@dataclass(slots=True)
class Tape:
    """Float elements that a block of scores was computed from, to be differentiated.

    Attributes:
        wanted: names of the tables that need a gradient.
        leaves: whether elements become leaves that require a gradient.
    """

    wanted: frozenset[str]
    leaves: bool = True
    reads: list[TapedRead] = field(default_factory=list)


@dataclass(slots=True)
class Pairs:
    """Coordinates of a block of pairs: int64 tensors that broadcast against each other.

    Attributes:
        i_lo, i_hi, j_lo, j_hi, c: numbers in the order of a pass, and its residue class, for bounds alone.
        tables: inputs and learned tensors by name, `B` and `H` dimensions expanded.
        dtype: what floats are computed in.
        allowed: the mask of the block where gradients must not see masked pairs; None elsewhere.
        tape: collects the reads to be differentiated; None outside of backward passes.
    """

    sizes: Sizes
    tables: Mapping[str, Tensor]
    dtype: torch.dtype
    device: torch.device
    b: Tensor | None = None
    h: Tensor | None = None
    i: Tensor | None = None
    j: Tensor | None = None
    r: Tensor | None = None
    d: tuple[Tensor, ...] = ()
    shift: Tensor | None = None
    c: Tensor | None = None
    i_lo: Tensor | None = None
    i_hi: Tensor | None = None
    j_lo: Tensor | None = None
    j_hi: Tensor | None = None
    allowed: Tensor | None = None
    tape: Tape | None = None

    @property
    def B(self) -> Tensor:  # noqa: N802
        """Batch size."""
        return self.as_int(self.sizes.B)

    @property
    def H(self) -> Tensor:  # noqa: N802
        """Query heads."""
        return self.as_int(self.sizes.H)

    @property
    def N(self) -> Tensor:  # noqa: N802
        """Queries."""
        return self.as_int(self.sizes.N)

    @property
    def M(self) -> Tensor:  # noqa: N802
        """Keys."""
        return self.as_int(self.sizes.M)

    @property
    def D(self) -> Tensor:  # noqa: N802
        """Head size of query and key."""
        return self.as_int(self.sizes.D)

    @property
    def g(self) -> Tensor:
        """Query heads per key head."""
        return self.as_int(self.sizes.g)

    def as_int(self, value: Tensor | int | bool) -> Tensor:
        """Return a number or a bool as an int64 tensor."""
        if isinstance(value, Tensor):
            return value.to(torch.int64)
        return torch.full((), value, dtype=torch.int64, device=self.device)

    def as_float(self, value: Tensor | float) -> Tensor:
        """Return a number as a float tensor of this block's precision."""
        if isinstance(value, Tensor):
            return value.to(self.dtype)
        wide = float(value) if isinstance(value, int) else value
        # `full` refuses what the narrower type has as infinity
        return torch.full((), wide, dtype=torch.float64, device=self.device).to(self.dtype)

    def as_bool(self, value: Tensor | bool) -> Tensor:
        """Return a truth value as a tensor."""
        return value if isinstance(value, Tensor) else torch.full((), value, device=self.device)

    def read(self, name: str, *index: Tensor | int) -> Tensor:
        """Return the elements of a table; 0 (or false) where the index is outside, which touches no memory there."""
        table = self.tables[name]
        places, inside = [], self.allowed if table.is_floating_point() and self.allowed is not None else None
        for size, given in zip(table.shape, index, strict=True):
            place = self.as_int(given)
            within = (place >= 0) & (place < size)
            inside = within if inside is None else inside & within
            places.append(place.clamp(0, max(size - 1, 0)))
        if table.numel() == 0:
            return torch.zeros_like(sum(places, self.as_int(0)), dtype=self._read_type(table))
        value = table[tuple(places)] if places else table
        value = value.to(self._read_type(table))
        if self.tape is not None and name in self.tape.wanted:
            value = value.detach().requires_grad_() if self.tape.leaves else value
            self.tape.reads.append(TapedRead(name, tuple(places), value, inside))
        return value if inside is None else torch.where(inside, value, value.new_zeros(()))

    def any_of(self, count: int, body: Callable[[Tensor], Tensor]) -> Tensor:
        """Tell where the body holds for some `t < count`."""
        result = self.as_bool(False)
        for t in range(count):
            result = result | body(self.as_int(t))
        return result

    def all_of(self, count: int, body: Callable[[Tensor], Tensor]) -> Tensor:
        """Tell where the body holds for every `t < count`."""
        result = self.as_bool(True)
        for t in range(count):
            result = result & body(self.as_int(t))
        return result

    def sum_of(self, count: int, body: Callable[[Tensor], Tensor], zero: Tensor) -> Tensor:
        """Add the body up over `t < count`, starting at `zero`."""
        result = zero
        for t in range(count):
            result = result + body(self.as_int(t))
        return result

    def _read_type(self, table: Tensor) -> torch.dtype:
        if table.is_floating_point():
            return self.dtype
        return torch.bool if table.dtype is torch.bool else torch.int64


def only(condition: Tensor, value: Tensor) -> Tensor:
    """Return `value`, letting gradients through where the condition holds alone.

    An operand that `where` does not select may have an infinite derivative, and 0 * inf is NaN: gradients are selected
    before they are multiplied.
    """
    return torch.where(condition, value, value.detach()) if may_need_gradient(value) else value


def hyperbolic_tangent(value: Tensor) -> Tensor:
    """Return the hyperbolic tangent: of float32 on a CPU by `expm1`, as exact as the library's and twice as fast."""
    if value.dtype is not torch.float32 or value.device.type != "cpu" or may_need_gradient(value):
        return torch.tanh(value)
    grown = (2.0 * value).clamp_(max=40.0).expm1_()  # beyond 20 it is 1, while the exponential would overflow
    return grown.div_(grown + 2.0)


def minimum(*values: Tensor | int | float) -> Tensor:
    """Return the least of two or more operands, at least one a tensor."""
    return _combine(torch.minimum, values)


def maximum(*values: Tensor | int | float) -> Tensor:
    """Return the greatest of two or more operands, at least one a tensor."""
    return _combine(torch.maximum, values)


def _combine(function: Callable[[Tensor, Tensor], Tensor], values: tuple[Tensor | int | float, ...]) -> Tensor:
    like = next(value for value in values if isinstance(value, Tensor))
    tensors = [value if isinstance(value, Tensor) else like.new_tensor(value) for value in values]
    result = tensors[0]
    for tensor in tensors[1:]:
        result = function(result, tensor)
    return result


def floor_divide(left: Tensor | int, right: Tensor) -> Tensor:
    """Divide ints rounding down; 0 where the divisor is 0."""
    zero = right == 0
    return torch.where(zero, 0, left // torch.where(zero, 1, right))


def floor_modulo(left: Tensor | int, right: Tensor) -> Tensor:
    """Return the remainder of `floor_divide`; 0 where the divisor is 0."""
    zero = right == 0
    return torch.where(zero, 0, left % torch.where(zero, 1, right))


def truncate(value: Tensor) -> Tensor:
    """Round toward zero to int64; saturate; 0 for NaN."""
    value = value.detach().double()
    finite = torch.where(value.isnan() | (value.abs() >= 2.0**63), 0.0, value).to(torch.int64)
    finite = torch.where(value >= 2.0**63, INT_MAX, finite)
    return torch.where(value <= -(2.0**63), INT_MIN, finite)


def floor(value: Tensor) -> Tensor:
    """Round down to int64; saturate; 0 for NaN."""
    return truncate(value.detach().floor())


def splitmix(*values: Tensor | int) -> Tensor:
    """Return the language's `hash`: splitmix64's finaliser over the arguments in turn, as an int >= 0.

    Follows Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014). int64 wraps around as
    unsigned arithmetic does; only the right shifts need care.
    """
    return _shift_right(splitmix_state(*values), 1)


def splitmix_state(*values: Tensor | int) -> Tensor:
    """Return all 64 bits of the hash."""
    like = next((value for value in values if isinstance(value, Tensor)), torch.zeros((), dtype=torch.int64))
    x = like.new_zeros(())
    for value in values:
        x = _mix(x + value + (0x9E3779B97F4A7C15 - 2**64))
    return x


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
