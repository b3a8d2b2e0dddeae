"""What a product by a scheme costs beside the library's: operations, traffic, time, and where it breaks even."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.bilinear.scheme import Scheme

SUM_BYTES = 4
"""Least bytes of a number in a sum of blocks: those of half precision are float32."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second, for one type of numbers.

    Attributes:
        flops: additions and multiplications in a product of matrices.
        bandwidth: bytes to and from memory.
        element: bytes of a number.
    """

    name: str
    flops: float
    bandwidth: float
    element: int


DEVICES = (
    Rates("NVIDIA A100 SXM, bfloat16", 312e12, 2.04e12, 2),
    Rates("NVIDIA A100 SXM, float32", 19.5e12, 2.04e12, 4),
    Rates("NVIDIA H100 SXM, bfloat16", 989e12, 3.35e12, 2),
    Rates("NVIDIA H100 SXM, float32", 67e12, 3.35e12, 4),
    Rates("NVIDIA H200 SXM, bfloat16", 989e12, 4.8e12, 2),
    Rates("NVIDIA H200 SXM, float32", 67e12, 4.8e12, 4),
    Rates("AMD MI300X, bfloat16", 1307e12, 5.3e12, 2),
    Rates("AMD MI300X, float32", 163.4e12, 5.3e12, 4),
)
"""Published peaks; float32 without reduced precision."""


@dataclass(frozen=True, slots=True)
class LevelCost:
    """What one level adds to the products of its blocks.

    Attributes:
        level: from 1, the outermost.
        products: how many products the level above asks it for.
        flops: additions, of all of these together.
        bytes: traffic of those additions: two blocks read and one written each.
    """

    level: int
    products: int
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ProductCost:
    """A product of a `p x q` by a `q x s` matrix.

    Attributes:
        flops: operations in products of blocks and in the rim.
        rim: those of them that the levels do not divide.
        levels: additions of each level.
        least_bytes: both matrices read and the result written, once.
    """

    flops: int
    rim: int
    levels: tuple[LevelCost, ...]
    least_bytes: int

    @property
    def addition_bytes(self) -> int:
        """Traffic of all additions of blocks."""
        return sum(level.bytes for level in self.levels)

    def seconds_on(self, rates: Rates) -> float:
        """Return the expected time: products at full rate, additions at full bandwidth, one after the other."""
        products = max(self.flops / rates.flops, self.least_bytes / rates.bandwidth)
        return products + self.addition_bytes / rates.bandwidth


def cost_of(
    scheme: Scheme,
    additions: tuple[int, int, int],
    sizes: tuple[int, int, int],
    levels: int,
    element: int,
) -> ProductCost:
    """Price a product by a scheme; `levels` = 0 is the library's.

    Args:
        scheme: what each level applies.
        additions: of blocks of the left factor, of the right factor and of the result, in one level.
        sizes: `p`, `q`, `s`: rows, inner size, columns.
        levels: how often the scheme is applied.
        element: bytes of a number.
    """
    p, q, s = sizes
    bases = scheme.m, scheme.k, scheme.n
    core = [size - size % base**levels for size, base in zip(sizes, bases, strict=True)]
    whole = 2 * p * q * s
    inside = 2 * core[0] * core[1] * core[2]
    products = 2 * scheme.rank**levels
    for size, base in zip(core, bases, strict=True):
        products *= size // base**levels
    found = []
    for level in range(1, levels + 1):
        rows, inner, columns = (size // base**level for size, base in zip(core, bases, strict=True))
        count = scheme.rank ** (level - 1)
        added = count * (additions[0] * rows * inner + additions[1] * inner * columns + additions[2] * rows * columns)
        found.append(LevelCost(level, count, added, 3 * max(element, SUM_BYTES) * added))
    least = element * (p * q + q * s + p * s)
    return ProductCost(whole - inside + products, whole - inside, tuple(found), least)


def break_even(scheme: Scheme, additions: tuple[int, int, int], levels: int, rates: Rates) -> float:
    """Return the size from which on square products by the scheme are faster than the library's; infinite: never.

    Operations grow with the cube and traffic with the square of the size `x`: the scheme saves `2 x^3 (1 - saving^L)`
    operations and moves `c x^2` bytes more.
    """
    saved = 2.0 * (1 - float(scheme.saving) ** levels) / rates.flops
    if saved <= 0:
        return float("inf")
    moved = 0.0
    for level in range(1, levels + 1):
        m, k, n = (base**level for base in (scheme.m, scheme.k, scheme.n))
        parts = additions[0] / (m * k) + additions[1] / (k * n) + additions[2] / (m * n)
        moved += scheme.rank ** (level - 1) * parts * 3 * max(rates.element, SUM_BYTES) / rates.bandwidth
    return moved / saved
