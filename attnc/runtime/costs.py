"""What rectangles of pairs cost on a CPU: a model of PyTorch's flash operator, fitted to measurements of it.

Times are nanoseconds of one core (an AMD EPYC of the fifth generation, float32); only what they are to each other
matters. Over 1 to 1024 rows, 16 to 2048 keys and head sizes 32 to 128 the model is within 3 % of the operator in most
places, and within 10 % where a rectangle has 16 rows and keys or more.
"""

from __future__ import annotations

from dataclasses import dataclass

from attnc.runtime.bands import FULL, Band, is_shared, is_shared_by_classes, mask_period
from attnc.runtime.sections import Frame
from attnc.runtime.tuned import Slabs

RESULT_ELEMENTS = 1 << 20
"""Most elements of what one call gives: 4 MiB stay in the cache until merged, and more would be new pages each time."""
KEPT_KEYS = 1 << 21
"""Elements of keys and values, 8 MiB in float32, that stay in the cache while several bands read them."""
KEYS_AT_ONCE = 512
"""Keys that the operator takes at once."""
PRODUCT = 0.0186
"""Time of a multiply-add of the two products."""
EXPONENTIAL, MASKED = 0.3, 0.15
"""Time of a pair beside its products, and what a mask adds to it."""
TILE_START = 280.0
"""Time of starting on a tile of rows and up to `KEYS_AT_ONCE` keys."""
KEY, ROW, ROW_AGAIN = 0.035, 0.08, 0.14
"""Time of a key for each tile of rows that reads it, of a row, and of a row for each `KEYS_AT_ONCE` keys, by each
element of key and value."""
FRESH_KEY = 0.045
"""Time of an element of a key and its value that the block before did not read."""
COPY, MERGE = 0.35, 0.9
"""Time of copying an element of a row's result to its place, and of merging it into what is there."""
BACKWARD, KEY_GRADIENT = 2.5, 1.3
"""How many times as long a backward pass takes, and the time of adding an element of the gradients of a key up."""
CALL = 100_000.0
"""Time between two calls, in which all cores but one wait: about half of that on a quiet machine, and much more where
another program has one of the cores when the others are done."""
MASK_PAIR = 7.5
"""Time of evaluating the mask at a pair."""
REMEMBERED_PAIRS = 1 << 20
"""Most elements of a mask that is remembered."""
KEPT_MASKS = 1 << 23
"""Most elements of all masks that are remembered."""
REMEMBERED = 16
"""Calls that use a mask which is remembered."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What decides on a schedule.

    Attributes:
        heads: query heads, over all entries.
        members: query heads of a key head.
        entries: how many calls of the operator it takes for one block: 1 where entries and heads lie as one dimension.
        elements: of a key and its value.
        threads: cores that compute together.
        splits: unmasked keys from which on they get a call of their own, by what tells which keys beside them are
            allowed; dearer masks are kept smaller.
        widest: most keys of a masked rectangle of as many rows as the smallest slab has.
        masks_everything: full rectangles need an additive term as well.
        remembers: masks are kept for later calls.
        backward: gradients are computed: five products where there were two, and gradients of the keys of each block.
        masks: entries and heads that have masks of their own; 0 where no mask of pairs is made.
        slabs: how rows are cut, as far as that was tuned.
    """

    heads: int
    members: int
    entries: int
    elements: int
    threads: int
    splits: tuple[tuple[int, int], ...]
    widest: int
    masks_everything: bool
    remembers: bool
    backward: bool
    slabs: Slabs
    masks: int = 1

    @property
    def pair(self) -> float:
        """Time of one pair, all entries and heads."""
        return self.heads * (PRODUCT * self.elements + EXPONENTIAL)

    @property
    def copies(self) -> int:
        """Masks that are made for one rectangle."""
        return min(self.masks, self.heads)

    @property
    def mask_pair(self) -> float:
        """Time of evaluating the mask at a pair, all entries and heads, all cores."""
        return MASK_PAIR * self.threads * self.copies

    @property
    def call(self) -> float:
        """Time of one call more, all cores."""
        return CALL * self.threads


def band_time(frame: Frame, band: Band, cost: Cost) -> float:
    """Estimate the time of a band, all cores."""
    masked = band.masked or cost.masks_everything
    block = band if masked else band.as_one_block()
    rows, count = block.rows, block.count
    at_once = rows_at_once(rows)
    tiles, rounds = -(-rows // at_once), -(-band.width // KEYS_AT_ONCE)
    pair = PRODUCT * cost.elements + EXPONENTIAL + (MASKED if masked else 0.0)
    of_tiles = tiles * (TILE_START * rounds + KEY * cost.elements * band.width)
    of_rows = rows * cost.elements * (ROW + ROW_AGAIN * rounds + (COPY if band.first else MERGE) / 2)
    fresh = band.width if band.key_step == 0 else count * min(band.width, band.key_step)
    calls = _calls(cost, band, rows, count)
    units = max(1, cost.heads * count * tiles // calls)
    idle = -(-units // cost.threads) * cost.threads / units
    each = of_tiles + of_rows + rows * band.width * pair
    if cost.backward:
        each = BACKWARD * each + band.width * cost.elements * KEY_GRADIENT
    products = count * each + fresh * cost.elements * FRESH_KEY
    return cost.heads * products * idle + calls * cost.call + _mask_time(frame, band, cost)


def rows_at_once(rows: int) -> int:
    """Return how many rows the operator takes at once, of so many."""
    return 256 if rows >= 768 else 64 if rows >= 192 else 32


def _calls(cost: Cost, band: Band, rows: int, count: int) -> int:
    """Estimate the calls of the operator that so many blocks of so many rows take."""
    if cost.entries > 1:
        return cost.members * min(cost.entries, count)
    if count == 1:
        return 1
    groups = cost.heads // cost.members
    pieces = groups * count * rows * cost.elements // 2 // RESULT_ELEMENTS
    if band.key_step >= band.width:  # bands of the same blocks take turns
        pieces = max(pieces, groups * count * band.key_step * cost.elements // KEPT_KEYS)
    return cost.members * max(1, pieces)


def _mask_time(frame: Frame, band: Band, cost: Cost) -> float:
    made, kept = 0, cost.remembers
    for width, kind in band.pieces:
        if kind != FULL:
            period = mask_period(frame, kind)
            blocks = 1 if is_shared(frame, band, period) else band.count
            classes = 1 if is_shared_by_classes(frame, period) else frame.rows.classes
            made += band.rows * width * blocks * classes
            kept = kept and band.rows * band.width * blocks * classes * cost.copies <= REMEMBERED_PAIRS
    return made * cost.mask_pair / (REMEMBERED if kept else 1)
