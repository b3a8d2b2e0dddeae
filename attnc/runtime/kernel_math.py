"""Arithmetic that generated kernels call where Triton's own differs from the language or lacks it.

Every function is inlined by Triton's compiler. They run alike on NVIDIA, on AMD and in the interpreter, and so use no
device library. Where Triton is not installed the functions stay plain Python and are never called.
"""

# ruff: noqa: ANN001, ANN201, D417 - Triton's values have no useful Python types
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:  # no Triton for this platform: only the CPU program runs there
        from types import SimpleNamespace

        triton = SimpleNamespace(jit=lambda *function, **_: function[0] if function else lambda kernel: kernel)
        tl = SimpleNamespace(constexpr=object)


@triton.jit
def load_tile(
    base, first, stride, end, rows: tl.constexpr, columns: tl.constexpr, head_size: tl.constexpr, ragged: tl.constexpr
):
    """Load rows `first .. first + rows - 1` of a matrix of `head_size` columns, 0 outside of it.

    Args:
        stride: elements from one row to the next, below 2**23 so that a tile's own offsets take 32 bits; a row is
            contiguous.
        end: number of rows of the matrix, tested only where `ragged`.
        columns: a power of two, at least `head_size`.
    """
    row = tl.arange(0, rows)
    column = tl.arange(0, columns)
    pointers = base + first.to(tl.int64) * stride + (row[:, None] * stride + column[None, :])
    if ragged:
        if columns == head_size:
            tile = tl.load(pointers, mask=(first + row < end)[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=(first + row < end)[:, None] & (column < head_size)[None, :], other=0.0)
    else:
        if columns == head_size:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(column < head_size)[None, :], other=0.0)
    return tile


@triton.jit
def take_turn(pid, tiles, sequences, turn):
    """Return which tile of which sequence a program computes: that of a head of a batch entry, or a class of its rows.

    `turn` sequences take turns: first tile 0 of each of them, then tile 1, and so on; then come the next ones. With 1
    it is one sequence after the other.
    """
    first = pid // (tiles * turn) * turn
    members = tl.minimum(turn, sequences - first)
    number = pid - first * tiles
    return number // members, first + number % members


@triton.jit
def count_deals(tiles):
    """Return how many of so many tiles this program gets, if they are dealt to all programs of the launch.

    Every deal has a tile for each program, there and back: whoever got the first one of a deal gets the last one of
    the next. Where tiles become smaller and smaller, all programs have about as much of them after every second deal.
    """
    programs = tl.num_programs(0)
    whole = tiles // programs
    return whole + (dealt_tile(whole) < tiles).to(tl.int32)


@triton.jit
def dealt_tile(deal):
    """Return the number of the tile that this program gets in a deal."""
    programs = tl.num_programs(0)
    place = tl.program_id(0)
    return deal * programs + tl.where(deal % 2 == 0, place, programs - 1 - place)


@triton.jit
def read_scalar(argument):
    """Return the value of a scalar input that was given as a number or as a pointer to one element."""
    value = tl.core.to_tensor(argument)
    if value.dtype.is_ptr():
        return tl.load(value)
    else:  # noqa: RET505 - one of the two is compiled
        return value


@triton.jit
def clamp_position(x):
    """Keep a position or a bound of positions in 32 bits; real ones stay below 2**30."""
    return tl.minimum(tl.maximum(x, -1073741823), 1073741823).to(tl.int32)


@triton.jit
def floor_div(x, y):
    """Divide ints, `y > 0`, rounding toward minus infinity (Triton rounds tensors toward zero)."""
    quotient = x // y
    return quotient - tl.where(x % y < 0, 1, 0).to(quotient.dtype)


@triton.jit
def floor_mod(x, y):
    """Remainder of `floor_div`, from 0 to `y - 1`."""
    remainder = x % y
    return tl.where(remainder < 0, remainder + y, remainder)


@triton.jit
def checked_div(x, y):
    """Divide ints of any sign, rounding toward minus infinity; 0 where `y` is 0."""
    safe = tl.where(y == 0, 1, y)
    remainder = x % safe
    crosses = (remainder != 0) & ((remainder < 0) != (safe < 0))
    quotient = x // safe
    return tl.where(y == 0, 0, quotient - tl.where(crosses, 1, 0).to(quotient.dtype))


@triton.jit
def checked_mod(x, y):
    """Remainder of `checked_div`, with the sign of `y`; 0 where `y` is 0."""
    safe = tl.where(y == 0, 1, y)
    remainder = x % safe
    crosses = (remainder != 0) & ((remainder < 0) != (safe < 0))
    return tl.where(y == 0, 0, tl.where(crosses, remainder + safe, remainder))


@triton.jit
def floor_div_float(x, y):
    """Divide floats as Python does, rounding toward minus infinity; by 0 as IEEE 754 does.

    In float64 a quotient of two float32 that is no integer never rounds to one, unless float32 cannot tell anyway.
    """
    wide, divisor = tl.core.to_tensor(x).to(tl.float64), tl.core.to_tensor(y).to(tl.float64)
    quotient = tl.floor(wide / divisor)
    below = tl.where(wide * divisor < 0.0, -1.0, quotient)
    quotient = tl.where(tl.abs(divisor) == float("inf"), below, quotient)
    by_zero = tl.where(divisor == 0.0, quotient, float("nan"))
    return tl.where(tl.abs(wide) == float("inf"), by_zero, quotient).to(tl.float32)


@triton.jit
def floor_mod_float(x, y):
    """Remainder of `floor_div_float`, exact, with the sign of `y`; NaN for an infinite `x` and for `y = 0`.

    Long division by 28 bits of the quotient at a time, as many times as two float32 can need: in float64 each digit is
    off by at most one and each remainder is exact.
    """
    dividend, divisor = tl.broadcast(tl.core.to_tensor(x).to(tl.float64), tl.core.to_tensor(y).to(tl.float64))
    wide, size = tl.abs(dividend), tl.abs(divisor)
    inverse = 1.3817869688151111e-76 / tl.where(size > 0.0, size, 1.0)  # 2**-252
    unit = tl.where(size < float("inf"), size, 1.0) * 7.237005577332262e75
    rest = tl.where(wide < float("inf"), wide, 0.0)
    for _ in tl.static_range(10):
        rest = rest - tl.floor(rest * inverse) * unit
        rest = tl.where(rest < 0.0, rest + unit, tl.where(rest >= unit, rest - unit, rest))
        unit = unit * 3.725290298461914e-09  # 2**-28
        inverse = inverse * 268435456.0
    rest = tl.where(size < float("inf"), rest, wide)
    rest = tl.where(dividend < 0.0, -rest, rest)
    rest = tl.where(rest * divisor < 0.0, rest + divisor, rest)
    rest = tl.where(wide < float("inf"), rest, float("nan"))
    return tl.where(size > 0.0, rest, float("nan")).to(tl.float32)


@triton.jit
def float_to_int(x):
    """Truncate to a 64-bit int, saturating; 0 for NaN."""
    inside = tl.where((x > -9.2e18) & (x < 9.2e18), x, 0.0).to(tl.int64)
    high = tl.where(x >= 9.2e18, 9223372036854775807, inside)
    return tl.where(x <= -9.2e18, -9223372036854775807 - 1, high)


@triton.jit
def hash_mix(state, value):
    """Take one more argument into a hash: splitmix64's finaliser of `state + value + 0x9E3779B97F4A7C15`."""
    x = state + value.to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def draw_rows(seed_ptr, batch, head, position):
    """Return 64 random bits for each row of a head: `runtime.dropout` says how they come about."""
    seed = tl.load(seed_ptr)
    state = hash_mix(tl.full([], 0, tl.uint64), seed.to(tl.int64))
    state = hash_mix(state, batch.to(tl.int64))
    state = hash_mix(state, head.to(tl.int64))
    return hash_mix(state, position.to(tl.int64))


@triton.jit
def keeps_pair(rows, keys, below):
    """Tell which pairs dropout keeps, from the random bits of rows and from the positions of keys."""
    mixed = finalise(rows.to(tl.uint32) + keys.to(tl.uint32) * 0x9E3779B9)
    mixed = finalise(mixed ^ (rows >> 32).to(tl.uint32))
    return mixed >= below.to(tl.uint32)


@triton.jit
def finalise(x):
    """Mix 32 bits."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def tanh(x):
    """Hyperbolic tangent to about 2 units in the last place: a series near 0, exponentials elsewhere."""
    size = tl.abs(x)
    square = x * x
    series = 0.021869488 * square - 0.053968254
    series = series * square + 0.13333334
    series = series * square - 0.33333334
    series = series * square * size + size
    large = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    magnitude = tl.where(size < 0.3, series, large)
    return tl.where(x < 0.0, -magnitude, magnitude)


@triton.jit
def reduce_angle(x):
    """Bring an angle near [-pi, pi] by whole turns, in three steps of Cody and Waite's method."""
    turns = tl.floor(x * 0.15915494 + 0.5)
    return ((x - turns * 6.28125) - turns * 0.001935303211212158) - turns * 3.9742548e-09


@triton.jit
def sin(x):
    """Sine; positions as angles stay accurate, which the hardware's own instruction does not give."""
    return tl.sin(reduce_angle(x))


@triton.jit
def cos(x):
    """Cosine, likewise."""
    return tl.cos(reduce_angle(x))


@triton.jit
def power(x, y):
    """`x ** y` of floats as in IEEE 754's `pow`: NaN for a negative base with an exponent that is no integer."""
    base, exponent = tl.broadcast(tl.core.to_tensor(x), tl.core.to_tensor(y))
    whole = tl.floor(exponent) == exponent
    odd = whole & (tl.abs(exponent - 2.0 * tl.floor(0.5 * exponent)) == 1.0)
    magnitude = tl.exp2(exponent * tl.log2(tl.abs(base)))
    signed = tl.where((base < 0.0) & odd, -magnitude, magnitude)
    result = tl.where((base < 0.0) & ~whole, float("nan"), signed)
    return tl.where((exponent == 0.0) | (base == 1.0), 1.0, result)


@triton.jit
def weighted_exp2(difference, factor):
    """Return `factor * 2 ** difference`. Only where the factor is 0 may a difference be large: no overflow there."""
    large = (difference > 126.0) & (difference < float("inf"))
    return tl.exp2(tl.where(large, 126.0, difference)) * factor


@triton.jit
def is_spoiled(tile):
    """Tell whether a NaN stands anywhere in a tile, as a scalar."""
    return tl.max((tile != tile).to(tl.int32)) > 0


@triton.jit
def finite_part(tile):
    """Return the tile with 0 in place of NaN and infinities."""
    return tl.where(tl.abs(tile) < float("inf"), tile, 0.0)


@triton.jit
def nonfinite_code(tile):
    """Return 1 for infinity, 256 for minus infinity, 32768 for NaN, 0 elsewhere, in the tile's own type.

    Up to 127 of them add up without loss in float32, and the sum tells which kinds took part.
    """
    code = tl.where(tile == float("inf"), 1.0, 0.0) + tl.where(tile == float("-inf"), 256.0, 0.0)
    return tl.where(tile == tile, code, 32768.0).to(tile.dtype)


@triton.jit
def nonfinite_sum(codes):
    """Turn a sum of `nonfinite_code`s into the sum of the values: 0, an infinity, or NaN."""
    value = tl.where(codes < 256.0, float("inf"), float("nan"))
    value = tl.where((codes >= 256.0) & (codes < 32768.0) & (codes % 256.0 == 0.0), float("-inf"), value)
    return tl.where(codes == 0.0, 0.0, value)
