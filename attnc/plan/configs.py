"""Default tile shapes of the Triton kernels, per target, element size and head size.

They were chosen by compiling every example ahead of time for sm_80, sm_90, sm_100 and gfx942
(`tools/sweep_tiles.py`): no spills, matrix instructions, shared memory within the target's. Those for sm_80 and sm_90
up to head size 128 are what `tools/derive_tiles.py` finds, which ranks what may be tried by estimated times and takes
the first with which no example spills; rows that were there stay where nothing saves more than estimates can tell. A
class of patterns that spills with the tiles of others has rows of its own. The other rows were chosen by the
instructions that a loop takes for each key (`tools/compare_reads.py`). On sm_86 some kernels spill, and float32 kernels
spill everywhere. Nothing was measured on a device: other tiles may be faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import compress
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How a kernel is cut and compiled.

    Attributes:
        query: rows of a query tile, a power of two >= 16.
        key: keys of a key tile, a power of two >= 16.
        warps: per program.
        stages: depth of the software pipeline.
        descriptors: whether keys and values are read through tensor descriptors (sm_90 and later).
        chunk: keys that the walk for spoiled values takes at once; 0 for what suits the head size.
        order: one of `ORDERS`: in which programs are started; empty for what suits the lengths of the kernel's rows.
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


@dataclass(frozen=True, slots=True)
class SlabConfig:
    """How the CPU program cuts rows.

    Attributes:
        rows: of a slab; 0 for what is estimated to be best.
        alone: whether long stretches of keys that every row sees get calls of their own; None for what is estimated.
    """

    rows: int
    alone: bool | None


@dataclass(frozen=True, slots=True)
class LibraryConfig:
    """That a library computes a pass, and no kernel.

    Attributes:
        name: as the runtime calls it.
    """

    name: str


@dataclass(frozen=True, slots=True)
class FormConfig:
    """In which form a projection of a layer is computed.

    Attributes:
        name: as the runtime calls it.
    """

    name: str


@dataclass(frozen=True, slots=True)
class TunedConfig:
    """A configuration that a generated module is written with: for one kernel, on one device, for calls of one size.

    Attributes:
        kernel: what the module knows it by.
        device: its name, or a target of `TARGETS` where nothing was measured.
        versions: of what compiles or runs the kernel.
        dtype: of query, key and value.
        head_size, value_size: padded.
        queries, keys: powers of two.
        config: of a kernel, or of the CPU program; or a library in the place of kernels.
        note: how it was found.
    """

    kernel: str
    device: str
    versions: str
    dtype: str
    head_size: int
    value_size: int
    queries: int
    keys: int
    config: TileConfig | SlabConfig | LibraryConfig | FormConfig
    note: str


@dataclass(frozen=True, slots=True)
class Traits:
    """What a kernel is, as far as its defaults depend on it: of several, the last one that has defaults decides.

    Attributes:
        heavy: it computes much for each pair, or has many loops.
        gathered: it walks rows out of plain order, so that there are no descriptors.
        adds: it adds to gradients that other kernels have left.
        tested: its tiles are tested by hashes or tables.
    """

    heavy: bool = False
    gathered: bool = False
    adds: bool = False
    tested: bool = False

    @property
    def kinds(self) -> tuple[bool, bool, bool, bool, bool]:
        """Which of a kernel's tables apply, in the order in which later ones decide."""
        return True, self.heavy, self.gathered, self.adds, self.tested


@dataclass(frozen=True, slots=True)
class TileRow:
    """The defaults for one target, element size in bytes, and padded head sizes up to `head_size`.

    Attributes:
        configs: best first; the last one is without descriptors, for tensors that cannot have them.
    """

    target: str
    element_size: int
    head_size: int
    configs: tuple[TileConfig, ...]


TARGETS = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
"""`sm_86` stands for every NVIDIA device with 99 KiB of shared memory."""

SHARED_MEMORY = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}
"""What one program may use, in KiB."""

ORDERS = ("heads", "turns")
"""One head after the other, or the longest rows of several heads first."""

_Config = TypeVar("_Config", TileConfig, TileConfig | None)

_Table = dict[tuple[str, int], dict[int, TileConfig]]
_Described = dict[tuple[str, int], dict[int, TileConfig | None]]


@dataclass(frozen=True, slots=True)
class _Tables:
    """The defaults of a kind of kernels: for all of them, and for those with each of the traits.

    Attributes:
        pointers: for tensors that cannot have descriptors.
        described: for those that can, in which None says that pointers take fewer registers.
    """

    pointers: tuple[_Table, _Table, _Table, _Table, _Table]
    described: tuple[_Described, _Described, _Described, _Described, _Described]


_DEFAULTS: _Table = {
    ("sm_80", 2): {
        32: TileConfig(128, 64, 8, 2, chunk=16),
        64: TileConfig(128, 64, 8, 2, chunk=64),
        128: TileConfig(128, 32, 8, 3),
        256: TileConfig(64, 32, 8, 2),
    },
    ("sm_86", 2): {64: TileConfig(128, 64, 8, 2), 128: TileConfig(64, 64, 8, 2), 256: TileConfig(64, 32, 8, 2)},
    ("sm_90", 2): {64: TileConfig(128, 64, 8, 3), 128: TileConfig(128, 64, 8, 3), 256: TileConfig(64, 32, 8, 2)},
    ("sm_100", 2): {64: TileConfig(128, 64, 8, 2), 128: TileConfig(128, 32, 8, 2), 256: TileConfig(64, 32, 8, 2)},
    ("gfx942", 2): {64: TileConfig(128, 64, 4, 1), 128: TileConfig(128, 32, 8, 1), 256: TileConfig(64, 32, 4, 1)},
    ("sm_80", 4): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(32, 32, 4, 2), 256: TileConfig(16, 32, 4, 1)},
    ("sm_86", 4): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(32, 32, 4, 2), 256: TileConfig(16, 32, 4, 1)},
    ("sm_90", 4): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(32, 32, 4, 2), 256: TileConfig(16, 32, 4, 1)},
    ("sm_100", 4): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(32, 32, 4, 2), 256: TileConfig(16, 32, 4, 1)},
    ("gfx942", 4): {64: TileConfig(64, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
}


_HEAVY: _Table = {
    ("sm_80", 2): {
        32: TileConfig(128, 64, 8, 2),
        64: TileConfig(128, 64, 8, 2),
        128: TileConfig(64, 64, 8, 2),
        256: TileConfig(64, 16, 8, 2, chunk=16),
    },
    ("sm_90", 2): {64: TileConfig(128, 64, 8, 3), 128: TileConfig(128, 32, 8, 3), 256: TileConfig(64, 16, 8, 2)},
    ("gfx942", 2): {64: TileConfig(64, 32, 4, 1), 128: TileConfig(64, 32, 4, 1), 256: TileConfig(64, 32, 4, 1)},
}
"""For patterns with much arithmetic for each pair; float32 has small tiles anyway."""

_DESCRIBED: _Described = {
    ("sm_90", 2): {
        64: TileConfig(128, 64, 8, 3, descriptors=True),
        128: TileConfig(128, 128, 8, 2, descriptors=True, chunk=64),
        256: TileConfig(64, 64, 8, 2, descriptors=True),
    },
    ("sm_100", 2): {
        32: TileConfig(128, 64, 8, 2, descriptors=True, chunk=32),
        64: TileConfig(128, 64, 8, 2, descriptors=True, chunk=64),
        128: TileConfig(128, 64, 8, 2, descriptors=True, chunk=64),
        256: TileConfig(64, 64, 8, 2, descriptors=True, chunk=64),
    },
}
"""Where tensors can have descriptors: they free the registers of addresses, and so allow larger tiles."""

_DESCRIBED_HEAVY: _Described = {
    ("sm_90", 2): {
        64: TileConfig(128, 64, 8, 3, descriptors=True),
        128: TileConfig(128, 64, 8, 3, descriptors=True),
        256: TileConfig(64, 32, 8, 2, descriptors=True, chunk=32),
    },
    ("sm_100", 2): {
        32: TileConfig(128, 64, 8, 2, descriptors=True, chunk=32),
        64: TileConfig(128, 64, 8, 2, descriptors=True, chunk=64),
        128: TileConfig(128, 32, 8, 2, descriptors=True),
        256: TileConfig(64, 32, 8, 2, descriptors=True),
    },
}
"""The same for patterns with much arithmetic for each pair."""


_GATHERED: _Table = {
    ("sm_80", 2): {256: TileConfig(64, 16, 8, 2, chunk=16)},
    ("sm_86", 2): {256: TileConfig(64, 16, 8, 2, chunk=16)},
    ("sm_90", 2): {256: TileConfig(64, 16, 8, 2, chunk=16)},
    ("gfx942", 2): {256: TileConfig(64, 16, 4, 1, chunk=16)},
}
"""For kernels that read keys out of plain order, by pointers then, whose addresses take registers."""


_TESTED: _Table = {
    ("sm_80", 2): {64: TileConfig(64, 32, 8, 2), 128: TileConfig(32, 32, 8, 2), 256: TileConfig(32, 32, 8, 2)},
    ("sm_90", 2): {256: TileConfig(32, 32, 8, 2)},
}
"""For kernels whose tile tests compute much for each program, and keep it in registers through all loops."""

_DESCRIBED_TESTED: _Described = {
    ("sm_90", 2): {256: None},
    ("sm_100", 2): {256: TileConfig(64, 32, 8, 1, descriptors=True, chunk=32)},
}
"""The same with descriptors; None where pointers take fewer registers."""


_FORWARD = _Tables(
    (_DEFAULTS, _HEAVY, _GATHERED, {}, _TESTED), (_DESCRIBED, _DESCRIBED_HEAVY, {}, {}, _DESCRIBED_TESTED)
)


_QUERY_GRADIENTS: _Table = {
    ("sm_80", 2): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(64, 64, 8, 2), 256: TileConfig(32, 32, 8, 1)},
    ("sm_86", 2): {64: TileConfig(64, 32, 4, 2), 128: TileConfig(64, 32, 8, 2), 256: TileConfig(32, 32, 8, 1)},
    ("sm_90", 2): {64: TileConfig(128, 64, 8, 2), 128: TileConfig(128, 64, 8, 2), 256: TileConfig(32, 32, 8, 1)},
    ("sm_100", 2): {64: TileConfig(64, 32, 8, 2), 128: TileConfig(64, 32, 8, 2), 256: TileConfig(32, 32, 8, 1)},
    ("gfx942", 2): {64: TileConfig(32, 64, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 32, 4, 1)},
    ("sm_80", 4): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
    ("sm_86", 4): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
    ("sm_90", 4): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
    ("sm_100", 4): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
    ("gfx942", 4): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 4, 1), 256: TileConfig(16, 16, 4, 1)},
}
"""For kernels of gradients whose rows are queries."""

_DESCRIBED_QUERY_GRADIENTS: _Described = {
    ("sm_90", 2): {
        64: TileConfig(128, 64, 8, 3, descriptors=True),
        128: TileConfig(128, 64, 8, 3, descriptors=True),
    },
    ("sm_100", 2): {128: TileConfig(128, 64, 8, 2, descriptors=True)},
}
"""The same where keys and values are read through descriptors."""

_KEY_GRADIENTS: _Table = _QUERY_GRADIENTS | {
    ("sm_80", 2): {64: TileConfig(32, 128, 8, 2), 128: TileConfig(64, 64, 8, 2), 256: TileConfig(32, 16, 8, 1)},
    ("sm_86", 2): {64: TileConfig(32, 32, 4, 2), 128: TileConfig(32, 32, 8, 2), 256: TileConfig(16, 32, 8, 2)},
    ("sm_90", 2): {64: TileConfig(32, 128, 8, 2), 128: TileConfig(16, 128, 8, 2), 256: TileConfig(32, 16, 8, 1)},
    ("sm_100", 2): {64: TileConfig(32, 32, 8, 2), 128: TileConfig(32, 32, 8, 1), 256: TileConfig(16, 32, 8, 2)},
    ("gfx942", 2): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(16, 64, 4, 1), 256: TileConfig(16, 32, 4, 1)},
}
"""For those whose rows are keys. They have two sums of rows, and so fewer registers for tiles of queries; the more keys
a program has, the less often queries are read."""

_DESCRIBED_KEY_GRADIENTS: _Described = {
    ("sm_90", 2): {
        64: TileConfig(32, 128, 8, 3, descriptors=True),
        128: TileConfig(32, 128, 8, 3, descriptors=True),
        256: None,
    },
    ("sm_100", 2): {128: TileConfig(32, 64, 8, 2, descriptors=True)},
}
"""The same where queries are read through descriptors."""


_HEAVY_QUERY_GRADIENTS: _Table = {("sm_90", 2): {128: TileConfig(64, 32, 8, 2)}}
_DESCRIBED_HEAVY_KEY_GRADIENTS: _Described = {("sm_90", 2): {128: TileConfig(16, 128, 8, 2, descriptors=True)}}
"""For patterns with much arithmetic for each pair, and for many loops."""

_ADDED_KEY_GRADIENTS: _Table = {
    ("sm_80", 2): {64: TileConfig(32, 32, 4, 2), 128: TileConfig(32, 64, 8, 2)},
    ("sm_90", 2): {128: TileConfig(16, 32, 4, 2)},
}
_DESCRIBED_ADDED_KEY_GRADIENTS: _Described = {
    ("sm_90", 2): {128: TileConfig(32, 32, 4, 2, descriptors=True)},
    ("sm_100", 2): {128: None},
}
"""For kernels that add to what others have left, and read all of it at their end."""

_TESTED_QUERY_GRADIENTS: _Table = {
    ("sm_80", 2): {64: TileConfig(32, 32, 4, 1), 128: TileConfig(32, 32, 8, 1)},
    ("sm_90", 2): {128: TileConfig(64, 32, 8, 1)},
}
_DESCRIBED_TESTED_QUERY_GRADIENTS: _Described = {("sm_90", 2): {128: TileConfig(128, 64, 8, 2, descriptors=True)}}
_TESTED_KEY_GRADIENTS: _Table = {
    ("sm_80", 2): {64: TileConfig(32, 32, 4, 2)},
    ("sm_90", 2): {64: TileConfig(32, 32, 4, 2), 128: TileConfig(16, 32, 4, 2)},
}
_DESCRIBED_TESTED_KEY_GRADIENTS: _Described = {
    ("sm_90", 2): {64: None, 128: TileConfig(32, 32, 4, 2, descriptors=True)},
    ("sm_100", 2): {128: None},
}
"""For kernels whose tile tests compute much for each program."""


_OF_QUERIES = _Tables(
    (_QUERY_GRADIENTS, _HEAVY_QUERY_GRADIENTS, {}, {}, _TESTED_QUERY_GRADIENTS),
    (_DESCRIBED_QUERY_GRADIENTS, {}, {}, {}, _DESCRIBED_TESTED_QUERY_GRADIENTS),
)
_OF_KEYS = _Tables(
    (_KEY_GRADIENTS, {}, {}, _ADDED_KEY_GRADIENTS, _TESTED_KEY_GRADIENTS),
    (
        _DESCRIBED_KEY_GRADIENTS,
        _DESCRIBED_HEAVY_KEY_GRADIENTS,
        {},
        _DESCRIBED_ADDED_KEY_GRADIENTS,
        _DESCRIBED_TESTED_KEY_GRADIENTS,
    ),
)


def tile_rows(query_limit: int, key_limit: int, traits: Traits) -> tuple[TileRow, ...]:
    """Return the defaults of a kernel of outputs, none larger than the tiles that a plan's residuals hold for.

    Args:
        query_limit: most rows of a query tile.
        key_limit: most keys of a key tile.
        traits: of the kernel.
    """
    return _rows(_FORWARD, traits, query_limit, key_limit)


def gradient_tile_rows(own_limit: int, walked_limit: int, traits: Traits, *, of_keys: bool) -> tuple[TileRow, ...]:
    """Return the defaults of a kernel of gradients.

    Args:
        own_limit: most rows of its own for which residuals hold.
        walked_limit: the same of rows that it walks.
        traits: of the kernel.
        of_keys: whether its own rows are keys.
    """
    if of_keys:
        return _rows(_OF_KEYS, traits, walked_limit, own_limit)
    return _rows(_OF_QUERIES, traits, own_limit, walked_limit)


def _rows(tables: _Tables, traits: Traits, query_limit: int, key_limit: int) -> tuple[TileRow, ...]:
    described = {} if traits.gathered else _overlaid(tables.described, traits)
    rows = []
    for (target, size), by_head in _overlaid(tables.pointers, traits).items():
        by_head_described = described.get((target, size), {})
        for head_size in sorted({*by_head, *by_head_described}):
            first, config = by_head_described.get(head_size), _for_head(by_head, head_size)
            configs = (config,) if first is None else (first, config)
            limited = tuple(_limited(one, query_limit, key_limit) for one in configs)
            rows.append(TileRow(target, size, head_size, limited))
    return tuple(rows)


def _overlaid(
    tables: tuple[Mapping[tuple[str, int], dict[int, _Config]], ...], traits: Traits
) -> dict[tuple[str, int], dict[int, _Config]]:
    """Return one table of those that apply: of each head size, the last one that has a row decides."""
    found: dict[tuple[str, int], dict[int, _Config]] = {}
    for table in compress(tables, traits.kinds):
        for place, by_head in table.items():
            found[place] = found.get(place, {}) | by_head
    return found


def default_config(target: str, element_size: int, head_size: int) -> TileConfig:
    """Return the default for a target of `TARGETS`, 2 or 4 bytes an element, and a head size up to 256.

    It is the one without tensor descriptors.
    """
    return _for_head(_DEFAULTS[target, element_size], head_size)


def _for_head(by_head: Mapping[int, TileConfig], head_size: int) -> TileConfig:
    return by_head[min(limit for limit in by_head if head_size <= limit)]


def _limited(config: TileConfig, query_limit: int, key_limit: int) -> TileConfig:
    return replace(config, query=min(config.query, query_limit), key=min(config.key, key_limit))
