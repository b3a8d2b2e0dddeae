"""The typed IR of a whole file: its attentions and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from attnc.diagnostics import Diagnostic
from attnc.ir.nodes import Const, Expr
from attnc.ir.types import Type
from attnc.source import SourceFile, Span


class TensorKind(Enum):
    """Who owns a tensor: the caller gives an `input` at each call, the module holds a `learned` one."""

    INPUT = "input"
    LEARNED = "learned"


ORIGINAL_KEYS = "K"
"""Name of the hidden scalar that says how many keys there were before they were shortened."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An `input` or `learned` declaration.

    Attributes:
        dims: one int expression over sizes and constants per dimension; None is `?` (any length). Empty for a scalar.
        sorted: the caller promises that it never decreases along its last dimension.
        initial: the initial value of a learned tensor, over `h` and `Index(DIM, axis)`; None for an input.
        hidden: whether the compiled module gives it by itself: a size that the arguments no longer show.
    """

    name: str
    kind: TensorKind
    type: Type
    dims: tuple[Expr | None, ...] = ()
    sorted: bool = False
    initial: Expr | None = None
    hidden: bool = False
    span: Span | None = field(default=None, compare=False, kw_only=True)


class AlignKind(Enum):
    """Where the first query row stands among the keys: `i = r + shift`."""

    END = "end"
    START = "start"
    AT = "at"


@dataclass(frozen=True, slots=True)
class Align:
    """`shift` is an int expression over sizes, `b`, `h` and inputs: `M - N`, `0` or the user's."""

    kind: AlignKind
    shift: Expr
    span: Span | None = field(default=None, compare=False, kw_only=True)


class NormalizeKind(Enum):
    """LANGUAGE.md section 6."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    RELU = "relu"
    ROWS = "rows"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Normalize:
    """How scores become weights.

    Attributes:
        sink: softmax only: an extra score in the denominator, a float over `b`, `h`, `i`, inputs and learned tensors.
        bias: sigmoid only: added to the score; 0 unless said. May use anything that a score may, but `s`.
        power: relu only: a constant number > 0; 1 unless said.
    """

    kind: NormalizeKind
    sink: Expr | None = None
    bias: Expr | None = None
    power: Const | None = None
    span: Span | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Assertion:
    """`assert EXPR`, or `assert nonempty` where `condition` is None."""

    condition: Expr | None
    span: Span | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Deferred:
    """A statement of LANGUAGE.md sections 7, 8 or 10, kept as it is written until an attention is planned.

    Attributes:
        statement: `prepare`, `feature`, `keys` or `decompose`.
        form: its form, `favor` in `feature favor(256)`.
        arguments: names (empty for positional ones) and typed expressions or strings.
    """

    statement: str
    form: str
    arguments: tuple[tuple[str, Expr | str], ...] = ()
    span: Span | None = field(default=None, compare=False, kw_only=True)

    def number(self, name: str) -> int | float:
        """Return an argument that is a constant number. Raises KeyError if there is none."""
        for own, value in self.arguments:
            if own == name and isinstance(value, Const):
                return value.value
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention operation, specialised to the values of its parameters.

    Attributes:
        params: name and value of each parameter, in the order of declaration.
        mask: bool; the conjunction of all `mask` lines; `TRUE` if there are none.
        score: float over `Score()`; all `score` lines composed; `Score()` if there are none.
        scale: the factor on the dot product, a float over `b`, `h`, `i`, sizes, inputs, learned; None is `1 / sqrt(D)`.
        weight: float; the product of all `weight` lines; None if there are none.
        deferred: what happens to queries, keys and values before pairs are weighed, and how the user wants it computed.
        transposed: whether `i` is the position of a key and `j` that of a query: see `algebra.transposition`.
        statements: span of each statement that the user wrote, in order, for comments in generated code.
    """

    name: str
    params: tuple[tuple[str, Const], ...]
    tensors: tuple[Tensor, ...]
    mask: Expr
    score: Expr
    scale: Expr | None
    weight: Expr | None
    normalize: Normalize
    align: Align
    assertions: tuple[Assertion, ...] = ()
    deferred: tuple[Deferred, ...] = ()
    transposed: bool = False
    span: Span | None = field(default=None, compare=False, kw_only=True)
    statements: tuple[Span, ...] = field(default=(), compare=False, kw_only=True)

    @property
    def decompose(self) -> Deferred | None:
        """How the user wants the operation computed; None leaves it to the compiler."""
        return self._only("decompose")

    @property
    def feature(self) -> Deferred | None:
        """The feature map whose inner product takes the place of the dot product; None if there is none."""
        return self._only("feature")

    @property
    def prepare(self) -> tuple[Deferred, ...]:
        """What is done to queries and keys before their products, in order."""
        return tuple(one for one in self.deferred if one.statement == "prepare")

    @property
    def shorten(self) -> Deferred | None:
        """How keys and values are shortened; None if they are not."""
        return self._only("keys")

    def _only(self, statement: str) -> Deferred | None:
        return next((one for one in self.deferred if one.statement == statement), None)

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of that name. Raises KeyError if there is none."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors and scalars that the caller gives, in the order of declaration."""
        return tuple(t for t in self.tensors if t.kind is TensorKind.INPUT)

    @property
    def learned(self) -> tuple[Tensor, ...]:
        """Trainable parameters, in the order of declaration."""
        return tuple(t for t in self.tensors if t.kind is TensorKind.LEARNED)


@dataclass(frozen=True, slots=True)
class Via:
    """How the product with a projection matrix is computed: `strassen`, `winograd` or `bilinear`."""

    form: str
    arguments: tuple[tuple[str, Expr | str], ...] = ()
    span: Span | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Projection:
    """The structure of a projection matrix.

    Attributes:
        structure: `dense`, `low_rank`, `block_diagonal`, `monarch`, `banded`, `masked`, `conv` or `conv2d`.
        arguments: names and constants; for `masked` a bool over the matrix's row `i` and column `j`.
        via: None is the plain product.
    """

    structure: str = "dense"
    arguments: tuple[tuple[str, Expr | str], ...] = ()
    via: Via | None = None
    span: Span | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward part of a layer: `gelu` or `swiglu`, with `hidden` (a constant int) features inside."""

    form: str
    hidden: Expr
    weight: Projection
    span: Span | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Layer:
    """A `layer` declaration, checked for names and types; compiled by a later stage of the project.

    Attributes:
        params: name and value of each parameter that has one, in the order of declaration; `width` is among them.
        attention: name of the attention that it attends with.
        norm: `rms`, `layer` or `none`.
        heads: a constant int >= 1, as `kv_heads` and `head_size`.
        projections: those of `query`, `key`, `value` and `output`, in this order.
        theta: base of the rotary embedding; None: there is none.
        attend: the attention, specialised to the arguments that the layer gives.
        feedforward: None: there is none.
    """

    name: str
    params: tuple[tuple[str, Const], ...]
    attention: str
    norm: str = "none"
    heads: Expr | None = None
    kv_heads: Expr | None = None
    head_size: Expr | None = None
    projections: tuple[tuple[str, Projection], ...] = ()
    theta: Expr | None = None
    attend: Attention | None = None
    feedforward: FeedForward | None = None
    span: Span | None = field(default=None, compare=False, kw_only=True)

    @property
    def vias(self) -> tuple[Via, ...]:
        """How products of its projections are computed, where it says so."""
        weights = [projection for _, projection in self.projections]
        weights += [] if self.feedforward is None else [self.feedforward.weight]
        return tuple(weight.via for weight in weights if weight.via is not None)


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that one file declares, and what was remarked on the way."""

    source: SourceFile
    attentions: tuple[Attention, ...]
    layers: tuple[Layer, ...] = ()
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False)


def expressions(attention: Attention) -> Iterator[Expr]:
    """Yield every expression of an attention: what it computes, then its assertions and declarations."""
    normalize = attention.normalize
    computed = (attention.mask, attention.score, attention.scale, attention.weight, attention.align.shift)
    asserted = (assertion.condition for assertion in attention.assertions)
    initial = (tensor.initial for tensor in attention.tensors)
    dims = (dim for tensor in attention.tensors for dim in tensor.dims)
    stated = (value for one in attention.deferred for _, value in one.arguments if not isinstance(value, str))
    for expr in (*computed, normalize.sink, normalize.bias, *asserted, *initial, *dims, *stated):
        if expr is not None:
            yield expr


def map_expressions(attention: Attention, change: Callable[[Expr], Expr]) -> Attention:
    """Return an attention with each of its expressions changed."""

    def optional(expr: Expr | None) -> Expr | None:
        return None if expr is None else change(expr)

    def argument(value: Expr | str) -> Expr | str:
        return value if isinstance(value, str) else change(value)

    normalize, align = attention.normalize, attention.align
    return replace(
        attention,
        mask=change(attention.mask),
        score=change(attention.score),
        scale=optional(attention.scale),
        weight=optional(attention.weight),
        normalize=replace(normalize, sink=optional(normalize.sink), bias=optional(normalize.bias)),
        align=replace(align, shift=change(align.shift)),
        assertions=tuple(replace(one, condition=optional(one.condition)) for one in attention.assertions),
        tensors=tuple(
            replace(one, dims=tuple(map(optional, one.dims)), initial=optional(one.initial))
            for one in attention.tensors
        ),
        deferred=tuple(
            replace(one, arguments=tuple((name, argument(value)) for name, value in one.arguments))
            for one in attention.deferred
        ),
    )
