"""Tiles that were tuned: for one kernel on one device, for calls of about one size. They are looked up at each launch.

Nothing is ever measured here, and a length that is new takes what was tuned for the closest one. Entries come from a
generated module that was written with them, or from a source such as the user's cache (`runtime.tuned_store`). Where
there are none, the defaults of the kernel's own table are taken.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from attnc.runtime.tiles import (
    FEW_ROWS,
    Tiles,
    TileTable,
    are_tiles_assumed,
    choose_tiles,
    is_target_assumed,
    padded,
    target_of,
)

PINNED = "ATTNC_PINNED"
"""Environment variable: if it is 1, the user's cache is not asked, so that results do not change when it does."""


@dataclass(frozen=True, slots=True)
class Slabs:
    """How the CPU program cuts rows: what its estimate of the time chooses where nothing is said.

    Attributes:
        rows: of a slab, a power of two from 32 to 1024; 0 for what is estimated to be best.
        alone: whether long stretches of keys that every row sees get calls of their own; None for what is estimated.
    """

    rows: int = 0
    alone: bool | None = None


@dataclass(frozen=True, slots=True)
class LibraryCall:
    """That a library computes a pass, and no kernel of the module's.

    Attributes:
        name: `flash`, PyTorch's FlashAttention, is the only one.
    """

    name: str = "flash"


@dataclass(frozen=True, slots=True)
class ProjectionForm:
    """In which form a projection is computed.

    Attributes:
        name: one of the structure's own (`runtime.structures.forms`); any other is the same as no entry.
    """

    name: str


Tuned = Tiles | Slabs | LibraryCall | ProjectionForm
"""What can be found best."""


@dataclass(frozen=True, slots=True)
class TunedTiles:
    """Tiles that were found best for one kernel.

    Attributes:
        kernel: name of the attention and a digest of what the kernel computes.
        device: as `device_name` gives it, or a target of `runtime.tiles` where nothing was measured.
        versions: of what compiles or runs the kernel, as `versions_of` gives them.
        dtype: of query, key and value, without `torch.`.
        head_size: of query and key, padded.
        value_size: of the value, padded.
        queries: about so many, a power of two.
        keys: the same.
        tiles: of a Triton kernel, or of the CPU program; or that a library takes the place of kernels.
    """

    kernel: str
    device: str
    versions: str
    dtype: str
    head_size: int
    value_size: int
    queries: int
    keys: int
    tiles: Tuned


_Name = tuple[str, str, str, str, int, int]

Source = Callable[[str], Iterable[TunedTiles]]
"""Returns what is known of a device of this name."""


@dataclass(slots=True)
class _Known:
    """What this process knows.

    Attributes:
        written: entries of generated modules.
        sources: asked once for each device.
        remembered: what they said, by device.
        tried: tiles that are being measured, before all others.
        asked: kernels that launches have asked for, in order; None where nobody wants to know.
        version: another one after each change, so that what follows from tiles is not kept for longer.
    """

    written: dict[_Name, dict[tuple[int, int], Tuned]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    remembered: dict[str, dict[_Name, dict[tuple[int, int], Tuned]]] = field(default_factory=dict)
    tried: dict[str, Tuned] = field(default_factory=dict)
    asked: list[str] | None = None
    version: object = field(default_factory=object)


_KNOWN = _Known()


def use_tuned(entries: Iterable[TunedTiles]) -> None:
    """Take tiles that a generated module was written with; they come before what sources say."""
    _add(_KNOWN.written, entries)
    _KNOWN.version = object()


def use_source(source: Source) -> None:
    """Ask a source for tiles from now on."""
    if source not in _KNOWN.sources:
        _KNOWN.sources.append(source)
        forget_tuned()


def forget_tuned() -> None:
    """Ask sources again at the next call: they have changed."""
    _KNOWN.remembered.clear()
    _KNOWN.version = object()


def tuned_version() -> tuple[object, ...]:
    """Return what is equal for as long as the same tiles are taken for the same calls."""
    return (_KNOWN.version, *_KNOWN.tried.items())


def are_kernels_watched() -> bool:
    """Tell whether `watch_kernels` wants to know which kernels are launched."""
    return _KNOWN.asked is not None


@contextmanager
def try_tiles(tiles: Mapping[str, Tuned]) -> Iterator[None]:
    """Take these tiles, by kernel, while the block runs, in every thread: gradients are computed in others."""
    before = _KNOWN.tried
    _KNOWN.tried = before | dict(tiles)
    try:
        yield
    finally:
        _KNOWN.tried = before


@contextmanager
def watch_kernels() -> Iterator[list[str]]:
    """Yield a list that learns which kernels are launched, and which passes of CPU programs run, in their order."""
    before, _KNOWN.asked = _KNOWN.asked, []
    try:
        yield _KNOWN.asked
    finally:
        _KNOWN.asked = before


def tiles_of_launch(
    kernel: str, table: TileTable, tensors: tuple[Tensor, Tensor, Tensor], rows: int, *, descriptors: bool = False
) -> Tiles:
    """Return the tiles of a launch: those that were tuned for such calls, or the defaults.

    Args:
        kernel: see `TunedTiles`.
        table: its defaults.
        tensors: query, key and value.
        rows: of the kernel's, in the sequence or class that has the most.
        descriptors: whether keys and values can be read through tensor descriptors.
    """
    if _KNOWN.asked is not None:
        _KNOWN.asked.append(kernel)
    query, key, value = tensors
    sizes = padded(query.shape[3]), padded(value.shape[3])
    if not are_tiles_assumed():
        found = find_tuned(kernel, query, sizes, (query.shape[2], key.shape[2]))
        if isinstance(found, Tiles) and rows > FEW_ROWS and (descriptors or not found.descriptors):
            return found
    return choose_tiles(table, query, max(sizes), rows, descriptors=descriptors)


def takes_library(kernel: str, query: Tensor, value_size: int, lengths: tuple[int, int]) -> bool:
    """Tell whether a library was found to be faster for such calls; never without having been measured.

    Args:
        kernel: see `TunedTiles`.
        query: on the device.
        value_size: of a head of the value.
        lengths: numbers of queries and keys.
    """
    if _KNOWN.asked is not None:
        _KNOWN.asked.append(kernel)
    sizes = padded(query.shape[3]), padded(value_size)
    return isinstance(find_tuned(kernel, query, sizes, lengths, versions=versions_of_library()), LibraryCall)


def find_tuned(
    kernel: str,
    query: Tensor,
    sizes: tuple[int, int],
    lengths: tuple[int, int],
    *,
    program: bool = False,
    versions: str | None = None,
) -> Tuned | None:
    """Return tiles that were tuned for a kernel and such calls; None where there are none.

    Args:
        kernel: see `TunedTiles`.
        query: on the device, of the type that is computed with.
        sizes: padded head sizes of query and value.
        lengths: numbers of queries and keys.
        program: whether the CPU program runs, and not a kernel.
        versions: on which it depends what is best, if not on those of the program's or the kernel's.
    """
    known = _KNOWN
    if program and known.asked is not None:
        known.asked.append(kernel)
    if kernel in known.tried:
        return known.tried[kernel]
    if not (known.written or known.sources) or is_target_assumed():
        return None
    dtype, versions = str(query.dtype).removeprefix("torch."), versions or versions_of(program)
    devices = [device_name(query.device, program)]
    # what was measured on the device comes before what was ranked for all of its kind
    for device in devices if program else (*devices, target_of(query.device)):
        name = (kernel, device, versions, dtype, *sizes)
        for entries in (known.written, {} if is_pinned() else _remembered(device)):
            if name in entries:
                return _closest(entries[name], *lengths)
    return None


def is_pinned() -> bool:
    """Tell whether the user's cache is left alone."""
    return os.environ.get(PINNED, "") not in ("", "0")


def _remembered(device: str) -> dict[_Name, dict[tuple[int, int], Tuned]]:
    found = _KNOWN.remembered.get(device)
    if found is None:
        found = {}
        for source in _KNOWN.sources:
            _add(found, source(device))
        _KNOWN.remembered[device] = found
    return found


def _add(known: dict[_Name, dict[tuple[int, int], Tuned]], entries: Iterable[TunedTiles]) -> None:
    for one in entries:
        name = (one.kernel, one.device, one.versions, one.dtype, one.head_size, one.value_size)
        known.setdefault(name, {})[one.queries, one.keys] = one.tiles


def _closest(entries: dict[tuple[int, int], Tuned], queries: int, keys: int) -> Tuned:
    """Return what was tuned for lengths whose ratio to these is the least; keys count first."""
    near = _nearest(sorted({of_keys for _, of_keys in entries}), keys)
    return entries[_nearest(sorted(own for own, of_keys in entries if of_keys == near), queries), near]


def _nearest(lengths: list[int], length: int) -> int:
    """Return the closest length; comparisons alone, which is what a length that is traced allows."""
    for low, high in pairwise(lengths):
        if length <= math.isqrt(low * high):
            return low
    return lengths[-1]


def round_length(length: int) -> int:
    """Return the power of two that a length counts as."""
    return 1 << max(0, round(math.log2(max(1, length))))


def versions_of(program: bool) -> str:
    """Return the versions on which it depends which tiles are best: of torch for the CPU program, else of Triton."""
    return f"torch {torch.__version__.partition('+')[0]}" if program else _triton_version()


@cache
def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "no triton"
    return f"triton {triton.__version__}"


def versions_of_library() -> str:
    """Return the versions on which it depends whether a library is faster than kernels: of both."""
    return f"{versions_of(program=True)}, {versions_of(program=False)}"


def device_name(device: torch.device, program: bool = False) -> str:
    """Return what tells devices apart: the GPU's name, or the processor and its threads."""
    if device.type == "cuda":
        return _gpu_name(device.index) if torch.cuda.is_available() else "no device"
    return f"{_processor_name()}, {torch.get_num_threads()} threads" if program else "interpreter"


@cache
def _gpu_name(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


@cache
def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
