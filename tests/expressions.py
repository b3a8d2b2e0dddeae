"""Random well-typed expressions of the IR, and random points to evaluate them at, for property tests.

Strategies: `masks()`, `scores()`, `ints()`, `points()`, `attentions()`. Tables are `doc: int[B, M]`,
`keep: bool[B, M]`, `bias: float[H, 5]`, `length: int[B]` and the scalar `cut: int`; `tables_for(...)` makes values for
them as nested lists.
"""

import random
from functools import cache

from hypothesis import strategies as st

from attnc.ir.evaluate import Environment
from attnc.ir.nodes import (
    FALSE,
    TRUE,
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Function,
    Index,
    IndexName,
    Or,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    SizeName,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.program import Align, AlignKind, Attention, Normalize, NormalizeKind, Tensor, TensorKind
from attnc.ir.types import Type

B, H, I, J, R = (  # noqa: E741
    Index(name) for name in list(IndexName)[:5]
)
N, M = Size(SizeName.QUERIES), Size(SizeName.KEYS)
BIAS_WIDTH = 5

TENSORS = (
    Tensor("doc", TensorKind.INPUT, Type.INT, (Size(SizeName.BATCH), M)),
    Tensor("keep", TensorKind.INPUT, Type.BOOL, (Size(SizeName.BATCH), M)),
    Tensor("length", TensorKind.INPUT, Type.INT, (Size(SizeName.BATCH),)),
    Tensor("cut", TensorKind.INPUT, Type.INT),
    Tensor(
        "bias",
        TensorKind.LEARNED,
        Type.FLOAT,
        (Size(SizeName.HEADS), Const(BIAS_WIDTH, Type.INT)),
        initial=Const(0.0, Type.FLOAT),
    ),
)

COMPARISONS = (BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE)


def integer(value):
    return Const(value, Type.INT)


def real(value):
    return Const(float(value), Type.FLOAT)


def add(left, right):
    return Binary(BinaryOp.ADD, left, right, left.type)


def sub(left, right):
    return Binary(BinaryOp.SUB, left, right, left.type)


def mul(left, right):
    return Binary(BinaryOp.MUL, left, right, left.type)


def compare(op, left, right):
    return Binary(BinaryOp(op), left, right, Type.BOOL)


def negate(operand):
    return Unary(UnaryOp.NEG, operand, operand.type)


def invert(operand):
    return Unary(UnaryOp.NOT, operand, Type.BOOL)


def call(function, *args):
    return Call(Function(function), args, Type.INT if function in ("floor", "hash") else args[0].type)


CAUSAL = compare("<=", J, I)


@cache
def ints(*, tables=True, hashes=True, variables=(), depth=3):
    """Ints over indices, sizes, small constants, `//` and `%` by positive constants, min, max, abs, where."""
    leaves = [I, J, I, J, R, N, M, H, B, *(Bound(name) for name in variables)]
    small = st.integers(-4, 9).map(integer)
    base = st.one_of(st.sampled_from(leaves), small, st.just(sub(I, J)))
    if tables:
        base = st.one_of(
            base,
            st.sampled_from([Read("doc", (B, J), Type.INT), Read("length", (B,), Type.INT), Read("cut", (), Type.INT)]),
        )
    if depth == 0:
        return base
    deeper = ints(tables=tables, hashes=hashes, variables=variables, depth=depth - 1)
    divisor = st.integers(1, 5).map(integer)
    options = [
        base,
        st.builds(add, deeper, deeper),
        st.builds(sub, deeper, deeper),
        st.builds(mul, deeper, small),
        st.builds(lambda a, n: Binary(BinaryOp.FLOORDIV, a, n, Type.INT), deeper, divisor),
        st.builds(lambda a, n: Binary(BinaryOp.MOD, a, n, Type.INT), deeper, divisor),
        st.builds(lambda f, a, c: call(f, a, c), st.sampled_from(["min", "max"]), deeper, deeper),
        st.builds(lambda a: call("abs", a), deeper),
        st.builds(negate, deeper),
        st.builds(
            lambda op, a, c, t, e: Where(compare(op, a, c), t, e, Type.INT),
            st.sampled_from(COMPARISONS),
            deeper,
            small,
            deeper,
            deeper,
        ),
    ]
    if hashes:
        options.append(st.builds(lambda a, n: Binary(BinaryOp.MOD, call("hash", a, H), n, Type.INT), deeper, divisor))
    return st.one_of(options)


@cache
def atoms(*, tables=True, hashes=True, variables=()):
    """Comparisons of ints; with `tables`, also equal documents, kept keys and reads that may leave their table."""
    number = ints(tables=tables, hashes=hashes, variables=variables, depth=2)
    affine = st.builds(compare, st.sampled_from(COMPARISONS), number, number)
    options = [affine, affine, st.just(CAUSAL), st.just(compare("<", sub(I, J), integer(3)))]
    if tables:
        same = compare("==", Read("doc", (B, I), Type.INT), Read("doc", (B, J), Type.INT))
        options += [st.just(same), st.builds(lambda at: Read("keep", (B, at), Type.BOOL), number)]
    return st.one_of(options)


@cache
def masks(*, tables=True, hashes=True, quantifiers=True, depth=3, variables=()):
    """Bools over atoms, `and`, `or`, `not`, `where`, `==` of bools, and `any`/`all` with up to 4 instances.

    With `tables=False, hashes=False` every atom is affine with constant moduli.
    """
    base = st.one_of(
        atoms(tables=tables, hashes=hashes, variables=variables),
        atoms(tables=tables, hashes=hashes, variables=variables),
        st.sampled_from([TRUE, FALSE]),
    )
    if depth == 0:
        return base
    deeper = masks(tables=tables, hashes=hashes, quantifiers=quantifiers, depth=depth - 1, variables=variables)
    several = st.lists(deeper, min_size=2, max_size=3).map(tuple)
    options = [
        base,
        several.map(And),
        several.map(Or),
        several.map(And),
        several.map(Or),
        deeper.map(invert),
        st.builds(lambda c, t, e: Where(c, t, e, Type.BOOL), deeper, deeper, deeper),
        st.builds(compare, st.sampled_from(["==", "!="]), deeper, deeper),
    ]
    if quantifiers:
        name = f"t{len(variables)}"
        inside = masks(tables=tables, hashes=hashes, quantifiers=False, depth=depth - 1, variables=(*variables, name))
        options.append(
            st.builds(
                lambda kind, count, body: Quantifier(kind, name, count, body, Type.BOOL),
                st.sampled_from([QuantifierKind.ANY, QuantifierKind.ALL]),
                st.integers(0, 4),
                inside,
            )
        )
    return st.one_of(options)


@cache
def scores(*, tables=True, wild=False, depth=3):
    """Floats over `s`, positions, `bias` and smooth functions; with `wild`, also what may be infinite or NaN."""
    constant = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, -0.25, 3.0]).map(real)
    whole = ints(tables=tables, hashes=False, depth=1).map(lambda a: Cast(a, Type.FLOAT))
    base = st.one_of(st.just(Score()), st.just(Score()), constant, whole)
    if tables:
        at = ints(tables=False, hashes=False, depth=1)
        base = st.one_of(base, st.builds(lambda a: Read("bias", (H, a), Type.FLOAT), at))
    if depth == 0:
        return base
    deeper = scores(tables=tables, wild=wild, depth=depth - 1)
    tests = masks(tables=tables, quantifiers=False, depth=0)
    options = [
        base,
        st.builds(add, deeper, deeper),
        st.builds(sub, deeper, deeper),
        st.builds(mul, deeper, constant),
        st.builds(mul, deeper, deeper),
        deeper.map(negate),
        st.builds(lambda c, t, e: Where(c, t, e, Type.FLOAT), tests, deeper, deeper),
        st.builds(call, st.sampled_from(["abs", "tanh", "sigmoid", "sin", "cos", "erf"]), deeper),
        st.builds(call, st.sampled_from(["min", "max"]), deeper, deeper),
    ]
    if wild:
        binary = st.sampled_from([BinaryOp.DIV, BinaryOp.MOD, BinaryOp.FLOORDIV, BinaryOp.POW])
        options += [
            st.builds(lambda op, a, c: Binary(op, a, c, Type.FLOAT), binary, deeper, deeper),
            st.builds(call, st.sampled_from(["exp", "exp2", "log", "log2", "sqrt"]), deeper),
            deeper.map(lambda a: Cast(call("floor", a), Type.FLOAT)),
            deeper.map(lambda a: Cast(Cast(a, Type.INT), Type.FLOAT)),
        ]
    return st.one_of(options)


def tables_for(batch, heads, keys, seed=0):
    """Values of all tables: `doc` may repeat and decrease, `length` and `cut` may be negative or past the end."""
    draw = random.Random(seed)
    return {
        "doc": [[draw.randint(-2, 3) for _ in range(keys)] for _ in range(batch)],
        "keep": [[draw.random() < 0.6 for _ in range(keys)] for _ in range(batch)],
        "length": [draw.randint(-1, keys + 1) for _ in range(batch)],
        "cut": draw.randint(-2, 6),
        "bias": [[draw.uniform(-2, 2) for _ in range(BIAS_WIDTH)] for _ in range(heads)],
    }


@st.composite
def points(draw):
    """One environment: sizes up to 9, a pair inside them under `align end`, tables and a score."""
    batch, heads, keys = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    queries = draw(st.integers(1, 9))
    row = draw(st.integers(0, queries - 1))
    indices = {
        IndexName.BATCH: draw(st.integers(0, batch - 1)),
        IndexName.HEAD: draw(st.integers(0, heads - 1)),
        IndexName.ROW: row,
        IndexName.QUERY: row + keys - queries,
        IndexName.SHIFT: keys - queries,
        IndexName.KEY: draw(st.integers(0, keys - 1)),
    }
    sizes = {
        SizeName.BATCH: batch,
        SizeName.HEADS: heads,
        SizeName.QUERIES: queries,
        SizeName.KEYS: keys,
        SizeName.HEAD_SIZE: 8,
        SizeName.GROUP: 1,
    }
    tables = tables_for(batch, heads, keys, draw(st.integers(0, 50)))
    return Environment(indices, sizes, tables, draw(st.sampled_from([0.0, 1.0, -1.0, 0.5, -3.25, 20.0])))


ALIGN_END = Align(AlignKind.END, sub(M, N))
ALIGN_START = Align(AlignKind.START, integer(0))


def attention(
    *, mask=TRUE, score=None, scale=None, weight=None, normalize=None, align=ALIGN_END, tensors=TENSORS, assertions=()
):
    """Build an attention by hand; everything that is not given is the language's default."""
    return Attention(
        "pattern",
        (),
        tuple(tensors),
        mask,
        Score() if score is None else score,
        scale,
        weight,
        Normalize(NormalizeKind.SOFTMAX) if normalize is None else normalize,
        align,
        tuple(assertions),
    )


@cache
def attentions(*, tables=True):
    """Whole attentions: a random mask and score, a normaliser without further expressions, both alignments."""
    kinds = [*[NormalizeKind.SOFTMAX] * 3, NormalizeKind.SIGMOID, NormalizeKind.RELU, NormalizeKind.NONE]
    return st.builds(
        lambda mask, score, kind, align: attention(mask=mask, score=score, normalize=Normalize(kind), align=align),
        masks(tables=tables),
        scores(tables=tables),
        st.sampled_from(kinds),
        st.sampled_from([ALIGN_END, ALIGN_START]),
    )
