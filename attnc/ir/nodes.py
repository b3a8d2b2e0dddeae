"""The typed intermediate representation: what a pattern means, free of names, scopes and syntax.

An expression is a tree of frozen nodes. Every node knows its `type`; conversions are explicit (`Cast`); parameters are
constants (which remember their name), `let`s and `def`s are inlined, chained comparisons are conjunctions, `clamp` is
`min` of `max`, `softcap` is written out. Equality and hashing ignore spans and remembered names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar, dataclass_transform

from attnc.ir.types import Type
from attnc.source import Span


class _Name(Enum):
    """An enumeration whose members hash by identity: they are keys wherever expressions are evaluated or compared."""

    __hash__ = object.__hash__


class IndexName(_Name):
    """Coordinates of a pair of positions, and bounds of tiles in the results of the set analysis."""

    BATCH = "b"
    HEAD = "h"
    QUERY = "i"
    """Absolute position of the query."""
    KEY = "j"
    """Absolute position of the key."""
    ROW = "r"
    """Row of the query in the query tensor: `i = r + shift`."""
    SHIFT = "shift"
    """`i - r`: `M - N` under `align end`, 0 under `align start`, the user's expression under `align at`.

    It appears in bounds of tile sets only, never in a user's expression.
    """
    QUERY_LOW = "i_lo"
    """First query of a query tile, in the order of its pass (bounds of tile sets only)."""
    QUERY_HIGH = "i_hi"
    """Last query of a query tile that is a real row, inclusive, in that order (bounds of tile sets only)."""
    KEY_LOW = "j_lo"
    """First key of a key tile, in the order of its pass (tile tests only)."""
    KEY_HIGH = "j_hi"
    """Last key of a key tile that is a real key, inclusive, in that order (tile tests only)."""
    LOCAL_QUERY = "u"
    """Number of the query in the order of a pass (coordinate maps only)."""
    LOCAL_KEY = "v"
    """Number of the key in the order of a pass (coordinate maps only)."""
    CLASS = "c"
    """Residue class that a part of a pass works on (coordinate maps and bounds only)."""
    DIM = "d"
    """Index along a dimension of a learned tensor, in its initial value (`d0`, `d1`, ...): `Index(DIM, axis)`."""


class SizeName(_Name):
    """Sizes known when the module is called."""

    BATCH = "B"
    HEADS = "H"
    QUERIES = "N"
    KEYS = "M"
    HEAD_SIZE = "D"
    GROUP = "g"


class UnaryOp(_Name):
    """Operators of one operand."""

    NEG = "-"
    NOT = "not"


class BinaryOp(_Name):
    """Operators of two operands. Arithmetic operands have the result's type, comparison operands each other's.

    `FLOORDIV` and `MOD` round toward minus infinity and are defined on two ints (0 where the divisor is 0) and on two
    floats; `DIV` is always a float; `POW` is an int only for an int base and a constant int exponent >= 0.
    """

    ADD = "+"
    SUB = "-"
    MUL = "*"
    DIV = "/"
    FLOORDIV = "//"
    MOD = "%"
    POW = "**"
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    EQ = "=="
    NE = "!="

    @property
    def is_comparison(self) -> bool:
        """Whether the result is a bool."""
        return self in _COMPARISONS


_COMPARISONS = frozenset({BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE})


class Function(_Name):
    """Functions that stay calls in the IR. All but `ABS`, `MIN`, `MAX`, `FLOOR`, `HASH` take and give floats."""

    ABS = "abs"
    MIN = "min"
    """Two or more operands of the result's type."""
    MAX = "max"
    """Two or more operands of the result's type."""
    EXP = "exp"
    EXP2 = "exp2"
    LOG = "log"
    LOG2 = "log2"
    SQRT = "sqrt"
    TANH = "tanh"
    SIGMOID = "sigmoid"
    ERF = "erf"
    SIN = "sin"
    COS = "cos"
    FLOOR = "floor"
    """float -> int, rounding down, saturating, 0 for NaN."""
    HASH = "hash"
    """One or more ints -> int; LANGUAGE.md section 5."""


class QuantifierKind(_Name):
    """How a bounded quantifier combines its instances."""

    ANY = "any"
    ALL = "all"
    SUM = "sum"


class _Node:
    """What keeps the hash of a node: a tree is hashed wherever something is remembered for it."""

    __slots__ = ("_hash",)
    _hash: int


_NodeType = TypeVar("_NodeType", bound=_Node)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _node(cls: type[_NodeType]) -> type[_NodeType]:
    """Make a class of nodes: a frozen dataclass that hashes its fields once."""
    made = dataclass(frozen=True, slots=True)(cls)
    hash_fields = made.__hash__

    def hash_once(self: _Node) -> int:
        try:
            return self._hash
        except AttributeError:
            found = hash_fields(self)
            object.__setattr__(self, "_hash", found)
            return found

    made.__hash__ = hash_once  # type: ignore[assignment]
    return made


@_node
class Const(_Node):
    """A constant. `name` is the parameter or prelude constant that it came from, for readable output."""

    value: bool | int | float
    type: Type
    name: str | None = field(default=None, compare=False, kw_only=True)
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Parameter(_Node):
    """A compile-time parameter whose value is not given: only `attnc check` sees one. No later stage accepts it."""

    name: str
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Index(_Node):
    """A coordinate; an int. `axis` is used by `DIM` alone."""

    name: IndexName
    axis: int = 0
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always an int."""
        return Type.INT


@_node
class Size(_Node):
    """A size; an int >= 1."""

    name: SizeName
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always an int."""
        return Type.INT


@_node
class Bound(_Node):
    """The variable of an enclosing `Quantifier`; an int. Names are unique within one attention."""

    name: str
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always an int."""
        return Type.INT


@_node
class Score(_Node):
    """The score so far: `scale * dot(query, key)`. A float; appears in `Attention.score` only."""

    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always a float."""
        return Type.FLOAT


@_node
class Read(_Node):
    """An element of an input or learned tensor; a scalar input is a `Read` with an empty index.

    Outside its table (a negative index included) it gives 0 (or false) and touches no memory. `inside` says that the
    index was proven inside the table at every allowed pair.
    """

    table: str
    index: tuple[Expr, ...]
    type: Type
    inside: bool = field(default=False, compare=False, kw_only=True)
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Unary(_Node):
    """`NEG` of a number, or `NOT` of a bool."""

    op: UnaryOp
    operand: Expr
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Binary(_Node):
    """Arithmetic or a comparison of two operands of one type (two bools for `==`, `!=`)."""

    op: BinaryOp
    left: Expr
    right: Expr
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class And(_Node):
    """Conjunction of two or more bools. False decides: other operands never matter then."""

    operands: tuple[Expr, ...]
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always a bool."""
        return Type.BOOL


@_node
class Or(_Node):
    """Disjunction of two or more bools. True decides: other operands never matter then."""

    operands: tuple[Expr, ...]
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def type(self) -> Type:
        """Always a bool."""
        return Type.BOOL


@_node
class Where(_Node):
    """`then if condition else otherwise`; the operand that is not selected never matters, NaN or not."""

    condition: Expr
    then: Expr
    otherwise: Expr
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Call(_Node):
    """A built-in function."""

    function: Function
    args: tuple[Expr, ...]
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Cast(_Node):
    """A conversion: int -> float, bool -> int (0 or 1), float -> int (truncates, saturates, 0 for NaN)."""

    operand: Expr
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


@_node
class Quantifier(_Node):
    """`any`, `all` or `sum` of `body` over `0 <= variable < count`; `count` from 0 to 1024."""

    kind: QuantifierKind
    variable: str
    count: int
    body: Expr
    type: Type
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


Expr = (
    Const
    | Parameter
    | Index
    | Size
    | Bound
    | Score
    | Read
    | Unary
    | Binary
    | And
    | Or
    | Where
    | Call
    | Cast
    | Quantifier
)
"""Any expression. Match on it with `assert_never` in the last case."""

TRUE = Const(True, Type.BOOL)
FALSE = Const(False, Type.BOOL)
