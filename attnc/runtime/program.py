"""What a generated module says of one attention: its tensors, and its expressions as small torch functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from attnc.runtime.pairs import Pairs, Sizes
from attnc.runtime.summaries import Summary

Formula = Callable[[Pairs], Tensor]
"""An expression of the pattern over the coordinates of a block of pairs."""


@dataclass(frozen=True, slots=True)
class TensorArgument:
    """An input or learned tensor as callers see it.

    Attributes:
        type: `bool`, `int` or `float`.
        dims: each dimension's length as a function of the sizes; None is any length. Empty for a scalar.
        labels: the dimensions as the pattern writes them, for messages.
        initial: the initial value of a learned tensor, over `at.h` and `at.d`; None for an input.
        broadcast: whether a length of 1 is accepted in a dimension, as it is for `B` and `H`.
        sorted: whether the caller promises that it never decreases along its last dimension.
    """

    name: str
    type: str
    dims: tuple[Callable[[Sizes], int] | None, ...] = ()
    labels: tuple[str, ...] = ()
    broadcast: tuple[bool, ...] = ()
    initial: Formula | None = None
    sorted: bool = False


@dataclass(frozen=True, slots=True)
class Far:
    """What a mask or residual comes to away from fixed positions, where it repeats.

    Attributes:
        near: true where the condition may differ from that. It is made of straight lines: false at the corners of a
            rectangle, it is false inside.
        period: as that of `Interval`.
    """

    condition: Formula
    near: Formula
    period: int


@dataclass(frozen=True, slots=True)
class Interval:
    """Key positions `start <= j < stop` of a tile of query rows, to be walked in order.

    Attributes:
        full: every pair is allowed.
        residual: what remains to be tested there; None if that is the whole mask.
        period: the residual does not change when query and key move by so many positions together; 0 if it may.
        far: simpler away from fixed positions; None if it is not.
        test: whether a tile of rows and keys may hold an allowed pair; None where nothing is known of tiles.
        whole: whether it holds no other pair, as far as data tells; None where it does not.
    """

    start: Formula
    stop: Formula
    full: bool = False
    residual: Formula | None = None
    period: int = 0
    far: Far | None = None
    test: Formula | None = None
    whole: Formula | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """Positions in the order in which a pass numbers them; without arguments, each by itself.

    Attributes:
        period: positions repeat after so many.
        first: of runs, the first position of each; of residue classes, what is added to the class.
        length: positions in each run; 0 for residue classes.
    """

    period: int = 1
    first: int = 0
    length: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether numbers are positions."""
        return self.period == 1 and self.length == 1

    @property
    def is_residue(self) -> bool:
        """Whether each class is numbered apart."""
        return self.length == 0


@dataclass(frozen=True, slots=True)
class GridAxis:
    """One coordinate of the points of a grid: `position // stride % extent`.

    Attributes:
        stride: positions from one point to the next along the axis.
        extent: points along the axis; 0 for the outermost one, which has no end.
        tile: points of a tile of queries along the axis.
        lead: points of the first tile that lie before the first one of the axis.
        low, high: coordinate of the first and last key that a tile sees, over its own first and last coordinate `i_lo`
            and `i_hi`; None for the first and last one that there is.
    """

    stride: int
    extent: int
    tile: int
    lead: int = 0
    low: Formula | None = None
    high: Formula | None = None


@dataclass(frozen=True, slots=True)
class QueryGrid:
    """Tiles of queries in a grid, each with a box of keys.

    Attributes:
        axes: the outermost first.
        alike: whether tiles around which boxes lie alike see alike, key by key.
        tested: whether some key of a box may be masked.
    """

    axes: tuple[GridAxis, ...]
    alike: bool = False
    tested: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """Pairs that are computed together; no pair is in two passes.

    Attributes:
        intervals: over numbers in the order of the pass; what they test is over positions.
        query_tile: rows of the largest tile for which residuals hold.
        key_tile: keys of the largest tile for which tests hold.
        mask: of the pairs of this pass; None if every pair is allowed.
        period: the mask does not change when query and key move by so many positions together; 0 if it may.
        far: what the mask is away from fixed positions; None if it is no simpler there.
        query, key: the order; both are residue classes with one period, or neither is.
        by_batch: whether batch entries may differ in which pairs they allow or in their bias.
        grid: in which the queries lie, of passes that have no intervals; the mask holds for boxes alone then, and is
            false for key `M`.
        causal_from: position from which on, for as many keys as queries, the pass is plain causal attention and
            nothing else; None where it is not.
    """

    intervals: tuple[Interval, ...]
    query_tile: int
    mask: Formula | None = None
    period: int = 0
    far: Far | None = None
    query: Order = Order()
    key: Order = Order()
    by_batch: bool = False
    grid: QueryGrid | None = None
    key_tile: int = 128
    causal_from: int | None = None

    @property
    def covers_rows(self) -> bool:
        """Whether it has every row, be it without keys."""
        return self.query.is_plain or self.query.is_residue


@dataclass(frozen=True, slots=True)
class TableRead:
    """A read of a float table whose gradient is summed up.

    Attributes:
        table: its name.
        axes: which pairs read the same element: `head` and `row`, those of a query; `column`, those of a key;
            `diagonal`, those as far apart; `pair`.
        element: reads it.
        slope: what the gradient of the expression is multiplied by; None for 1, or where kernels do so.
    """

    table: str
    axes: str
    element: Formula
    slope: Formula | None = None


@dataclass(frozen=True, slots=True)
class Short:
    """What computes short sequences in place of a program's own passes.

    Attributes:
        limit: most queries and most keys that it is for.
        launch, gradients: run the Triton kernels of these passes; None where triton is missing.
    """

    limit: int
    passes: tuple[Pass, ...]
    launch: Callable[..., None] | None = field(default=None, compare=False)
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class LibraryPart:
    """A pass whose pairs are a window or a rectangle, which a library may compute on a GPU, and what computes the rest.

    Attributes:
        number: of the pass, from 1.
        rows: its first query, and the first one past its last; None where that is the end of the sequence.
        keys: the same of its keys; those of a window are as many as its rows.
        window: as that of a program, of these rows and keys.
        launch, gradients: run the Triton kernels of the other passes; None where triton is missing.
    """

    number: int
    rows: tuple[int, int | None]
    keys: tuple[int, int | None]
    window: tuple[int, int]
    launch: Callable[..., None] | None = field(default=None, compare=False)
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """One attention, ready to run on a CPU.

    Attributes:
        key: identifies the text that the program was generated from.
        identity: what tuned slabs know it by: the name and a digest of what is computed.
        normalize: `softmax`, `sigmoid`, `relu`, `rows` or `none`.
        shift: `i - r`.
        mask: None if every pair is allowed.
        score: maps the block and `scale * dot` to the score; None if it is the score.
        factor, bias: where `linear`, the score is `factor * scale * dot + bias`, the bias free of the dot product.
        scale: None is `1 / sqrt(D)`.
        passes: what computes the mask's pairs.
        short: what computes them where there are few queries and few keys, by rising limits.
        bias_period: as the `period` of a pass, of the bias.
        bound_tables: tables that the bounds and tests of intervals or the shift read, summaries among them.
        summaries: what is summarised before the passes run.
        mask_tables: tables that the mask or the shift reads.
        pair_tables: float tables that the score, the sigmoid's bias or the weight of a pair reads.
        reads: of float tables for pairs, as kernels of gradients number them.
        scale_reads, sink_reads: of float tables in the scale and the sink.
        launch, gradients: run the Triton kernels; None where triton is missing.
        library: `full` or `causal` where one call of `scaled_dot_product_attention` does it all.
        window: keys before and behind a query that it sees for as many keys as queries, -1 for all, where that is all
            that the attention is; None where it is anything else.
        part: the pass that a library may compute, of as many keys as queries; None without one.
    """

    name: str
    key: str
    identity: str
    tensors: tuple[TensorArgument, ...]
    normalize: str
    shift: Formula
    passes: tuple[Pass, ...]
    short: tuple[Short, ...] = ()
    mask: Formula | None = None
    score: Callable[[Pairs, Tensor], Tensor] | None = None
    linear: bool = True
    factor: float = 1.0
    bias: Formula | None = None
    scale: Formula | None = None
    weight: Formula | None = None
    sink: Formula | None = None
    sigmoid_bias: Formula | None = None
    power: float = 1.0
    dropped: Formula | None = None
    bias_period: int = 0
    bound_tables: tuple[str, ...] = ()
    summaries: tuple[Summary, ...] = ()
    mask_tables: tuple[str, ...] = ()
    pair_tables: tuple[str, ...] = ()
    reads: tuple[TableRead, ...] = ()
    scale_reads: tuple[TableRead, ...] = ()
    sink_reads: tuple[TableRead, ...] = ()
    launch: Callable[..., None] | None = field(default=None, compare=False)
    gradients: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = field(default=None, compare=False)
    library: str | None = None
    window: tuple[int, int] | None = None
    part: LibraryPart | None = None

    @property
    def has_lse(self) -> bool:
        """Whether a log-sum-exp is defined."""
        return self.normalize == "softmax"

    @property
    def kept(self) -> str:
        """What is kept of each row for gradients: `lse`; `peak` and the total beside it; the `total`; or nothing.

        The total of weights that have a factor may be negative, so that its logarithm would not do.
        """
        if self.normalize == "softmax":
            return "lse" if self.weight is None else "peak"
        return "total" if self.normalize == "rows" else ""

    def state_shape(self, batch: int, heads: int, queries: int) -> tuple[int, ...]:
        """Return the shape of what is kept of all rows."""
        match self.kept:
            case "peak":
                return (2, batch, heads, queries)
            case "lse" | "total":
                return (batch, heads, queries)
            case _:
                return (0,)

    def at(self, queries: int, keys: int) -> Program:
        """Return the program with the passes that are for these lengths, and no others.

        Lengths that `torch.compile` traces with become guards on which side of a limit they are.
        """
        for short in self.short:
            if queries <= short.limit and keys <= short.limit:
                return replace(
                    self, passes=short.passes, launch=short.launch, gradients=short.gradients, short=(), part=None
                )
        return replace(self, short=()) if self.short else self

    def is_library_call(self, queries: int, keys: int) -> bool:
        """Tell whether one call of `scaled_dot_product_attention`, aligned at the start, computes these lengths."""
        return self.library == "full" or (self.library == "causal" and queries == keys)
