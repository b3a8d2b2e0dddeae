"""How kernels are cut: tiles by device, type and head size, and how many programs share the keys of the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FEW_ROWS = 16
"""Queries for which kernels have tiles of their own."""

MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_90": 132, "sm_100": 148, "gfx942": 304, "cpu": 8}
"""Of targets for which kernels are compiled ahead of time, and of the device that Triton's interpreter stands for."""

BY_HEADS, IN_TURNS = "heads", "turns"
ORDERS = (BY_HEADS, IN_TURNS)
"""In which programs are started: one head after the other, or the longest rows of several heads first."""

CACHE_SIZES = {
    "sm_80": 40 << 20,
    "sm_86": 6 << 20,
    "sm_90": 50 << 20,
    "sm_100": 126 << 20,
    "gfx942": 32 << 20,
    "cpu": 1 << 15,
}
"""Bytes of the last cache of the same targets, all of its parts; little for the interpreter, so that heads matter."""

SAME_KEYS = 4
"""Programs that read the same keys at the same time: main memory sends those often enough for them all."""

LEAST_SHARE = 4
"""Tiles of keys that are worth a program of their own."""

MOST_SHARES = 32
"""Programs that share keys: one program joins what they leave, one after the other."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a kernel is cut and compiled: rows of a query tile, keys of a key tile, warps, pipeline stages.

    Attributes:
        descriptors: whether tiles of keys and values are read through tensor descriptors (sm_90 and later).
        chunk: keys that a second walk takes at once; 0 for what suits the head size.
        order: one of `ORDERS`: whether one head is computed after the other, or heads take turns at their longest rows;
            empty for what suits the lengths of the kernel's rows.
        fused: whether keys are walked in fewer loops, as far as the kernel can.
        persistent: programs that are started for each multiprocessor, and get tiles of rows for as long as there are
            any; 0 for a program for each tile.
    """

    query: int
    key: int
    warps: int
    stages: int
    descriptors: bool = False
    chunk: int = 0
    order: str = ""
    fused: bool = False
    persistent: int = 0


_TARGET: ContextVar[str | None] = ContextVar("attnc_target", default=None)
_TILES: ContextVar[Tiles | None] = ContextVar("attnc_tiles", default=None)
_SHARES: ContextVar[int] = ContextVar("attnc_shares", default=0)

TileTable = Mapping[tuple[str, int, int], tuple[Tiles, ...]]
"""Tiles by target, bytes of an element, and the largest padded head size that they are for.

Best first; the last ones are without descriptors, so that they suit every call.
"""


def choose_tiles(table: TileTable, query: Tensor, head_size: int, queries: int, *, descriptors: bool = False) -> Tiles:
    """Return the tiles for a device, an element type and a padded head size; fewer rows for a few queries.

    Args:
        table: of the kernel.
        query: on the device.
        head_size: the greater of key's and value's, padded.
        queries: number of them.
        descriptors: whether keys and values can be read through tensor descriptors.
    """
    assumed = _TILES.get()
    if assumed is not None:
        return replace(assumed, descriptors=assumed.descriptors and descriptors)
    target = target_of(query.device)
    if target == "cpu":
        return Tiles(query=64, key=32 if head_size > 64 else 64, warps=4, stages=1)
    size = max(2, query.element_size())
    fitting = [limit for name, width, limit in table if (name, width) == (target, size) and head_size <= limit]
    suitable = [tiles for tiles in table[target, size, min(fitting)] if descriptors or not tiles.descriptors]
    if queries <= FEW_ROWS < suitable[-1].query:
        return replace(suitable[-1], query=FEW_ROWS, warps=4)
    return suitable[0]


def target_of(device: torch.device) -> str:
    """Return the target whose tiles suit a device, `cpu` for Triton's interpreter."""
    assumed = _TARGET.get()
    if assumed is not None:
        return assumed
    if device.type != "cuda":
        return "cpu"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    match major, minor:
        case (9, _):
            return "sm_90"
        case (10 | 11, _):
            return "sm_100"
        case (8, 0 | 7):
            return "sm_80"
        case _:
            return "sm_86"


@contextmanager
def assume_target(target: str, tiles: Tiles | None = None, *, shares: int = 0) -> Iterator[None]:
    """Choose tiles as for a target while the block runs, whatever the device; or take these `tiles`.

    Args:
        target: of the tables of tiles.
        tiles: instead of those.
        shares: programs that share the keys of the same rows; 0 for what suits the target and the call.
    """
    tokens = _TARGET.set(target), _TILES.set(tiles), _SHARES.set(shares)
    try:
        yield
    finally:
        _TARGET.reset(tokens[0])
        _TILES.reset(tokens[1])
        _SHARES.reset(tokens[2])


def assumptions() -> tuple[str | None, Tiles | None, int]:
    """Return what `assume_target` says here: target, tiles, shares."""
    return _TARGET.get(), _TILES.get(), _SHARES.get()


def are_tiles_assumed() -> bool:
    """Tell whether `assume_target` says which tiles to take."""
    return _TILES.get() is not None


def is_target_assumed() -> bool:
    """Tell whether kernels are made for another device than that of the tensors."""
    return _TARGET.get() is not None


def padded(head_size: int) -> int:
    """Return the power of two, at least 16, that a head size is padded to."""
    return max(16, 1 << (head_size - 1).bit_length())


def count_shares(tiles: Tiles, programs: int, keys: int, device: torch.device) -> int:
    """Return how many programs share the keys of the same rows, so that a few rows keep the whole device busy.

    Sizes and the device alone decide, and a power of two is taken, so that a kernel is compiled for few numbers.

    Args:
        tiles: of the kernel.
        programs: that there would be without sharing.
        keys: the most that a row can have.
        device: of the call.
    """
    if assumed := _SHARES.get():
        return assumed
    room = multiprocessors(device) * (2 if tiles.warps <= 4 else 1)
    shares = 1
    while 2 * shares * programs <= room and 2 * shares * LEAST_SHARE * tiles.key <= keys and shares < MOST_SHARES:
        shares *= 2
    return shares


def count_programs(tiles: Tiles, needed: int, device: torch.device) -> int:
    """Return how many programs are started for so many tiles of rows."""
    if not tiles.persistent:
        return needed
    room = multiprocessors(device) * tiles.persistent
    return room if room < needed else needed


def count_turn(order: str, sequences: int, together: int, walked: int, device: torch.device, *, dealt: int = 0) -> int:
    """Return how many heads, or classes of their rows, take turns at starting a tile of rows each.

    Taking turns, the longest rows of all of them come first, and short ones are left for the end. But what they walk
    should fit into the cache together, in half of it, for it is read again by every tile. They are a power of two,
    times those that share keys: of as many heads as models have, none are then left whose long rows would come last.

    What tiles are dealt to persistent programs is even only where rows become shorter from the first tile to the last,
    or nearly so. There more sequences take turns, of which `SAME_KEYS` programs walk each one's keys at the same time.

    Args:
        order: one of `ORDERS`.
        sequences: of rows: heads of all batch entries, or their classes.
        together: how many of them, one after the other, walk the same keys, or parts of them.
        walked: bytes of those.
        device: of the call.
        dealt: persistent programs; 0 where each tile has a program of its own.
    """
    if order != IN_TURNS:
        return 1
    fitting = 1
    while 2 * fitting * walked <= cache_size(device) // 2 and fitting * together < sequences:
        fitting *= 2
    return min(sequences, max(fitting * together, dealt // SAME_KEYS))


def cache_size(device: torch.device) -> int:
    """Return the bytes of a device's last cache; fixed as `multiprocessors` is."""
    assumed = _TARGET.get()
    if assumed is None and device.type == "cuda":
        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(device).L2_cache_size)
        return CACHE_SIZES["sm_90"]
    return CACHE_SIZES[assumed or "cpu"]


def multiprocessors(device: torch.device) -> int:
    """Return how many programs with large tiles run at the same time.

    It is a fixed number for a target that is assumed, for the interpreter, and where a call is traced without a device.
    """
    assumed = _TARGET.get()
    if assumed is None and device.type == "cuda":
        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(device).multi_processor_count)
        return MULTIPROCESSORS["sm_90"]
    return MULTIPROCESSORS[assumed or "cpu"]
