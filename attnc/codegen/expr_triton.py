"""IR expressions as Triton source text, each part computed as far out and in as few bits as it can be.

A value has a shape (one of a program, of a query row, of a key, of a pair) and a depth (0 before the loops over keys,
1 in one of them, more in a quantifier's own loop). An operand of lesser shape or depth than its operation gets a name
in its own block: `bias[h, i]` is read once per row before the loops, `j // 64` is computed once per tile of keys.
"""

from __future__ import annotations

from typing import assert_never

from attnc.codegen.functions_triton import CALLS, constant_text, factors_of, fold, neutral, product
from attnc.codegen.int_ranges import IntRange, int_range
from attnc.codegen.kernel_text import (
    AND,
    ATOM,
    COMPARISON,
    INDENT,
    INDEX_NAMES,
    LINE_WIDTH,
    OR,
    PRODUCT,
    SUFFIX,
    SUM,
    UNARY,
    Block,
    Fragment,
    Names,
    Shape,
    extent,
    place,
    with_comment,
)
from attnc.codegen.reads_triton import Tables, read_table
from attnc.diagnostics import InternalError
from attnc.ir.nodes import (
    And,
    Binary,
    BinaryOp,
    Bound,
    Call,
    Cast,
    Const,
    Expr,
    Function,
    Index,
    IndexName,
    Or,
    Parameter,
    Quantifier,
    QuantifierKind,
    Read,
    Score,
    Size,
    Unary,
    UnaryOp,
    Where,
)
from attnc.ir.types import Type
from attnc.ir.walk import children, substitute

_NAME_WIDTH = 20
"""What a name and an assignment take of a line."""

UNROLLED = 16
"""Quantifiers up to this count are written out, longer ones become loops."""

_SHAPES = {
    IndexName.QUERY: Shape.ROW,
    IndexName.ROW: Shape.ROW,
    IndexName.KEY: Shape.KEY,
    IndexName.LOCAL_QUERY: Shape.ROW,
}
_LOOP_INDICES = frozenset({IndexName.KEY, IndexName.KEY_LOW, IndexName.KEY_HIGH})
_SYMBOLS = {BinaryOp.ADD: "+", BinaryOp.SUB: "-", BinaryOp.MUL: "*", BinaryOp.DIV: "/"}


class Writer:
    """Writes the expressions of one kernel.

    Attributes:
        used: fixed names (`q_idx`, `N`, ...) and functions of `kernel_math` that the text mentions, in order.
        aliases: fixed names that this kernel calls otherwise.
        base: number of indents that everything has more than usual.
        margin: number of indents before a statement of block 0 in the generated file.
        transposed: whether expressions are those of a transposed attention.
        blocks: from the outermost to the innermost that is open; the one at a depth holds values of that depth.
    """

    def __init__(self, names: Names, tables: Tables, aliases: dict[str, str], *, transposed: bool = False) -> None:
        self.names = names
        self.tables = tables
        self.aliases = aliases
        self.used: dict[str, None] = {}
        self.base = 0
        self.margin = 1
        self.transposed = transposed
        self.blocks: list[Block] = [Block()]
        self._counts: dict[str, int] = {}
        self._variables: dict[str, Fragment] = {}

    def use(self, name: str) -> str:
        """Note that the text mentions a fixed name, and return what this kernel calls it."""
        name = self.aliases.get(name, name)
        self.used[name] = None
        return name

    def emit(self, line: str, depth: int, comment: str = "") -> None:
        """Append a statement to the block at a depth."""
        self.blocks[depth].lines.extend(with_comment(line, comment, self.base + self.margin + depth))

    def fits(self, text: str, depth: int) -> bool:
        """Tell whether an expression leaves room for a name and the indents."""
        return len(text) + len(INDENT) * (self.base + self.margin + depth) + _NAME_WIDTH <= LINE_WIDTH

    def name(self, fragment: Fragment, stem: str, comment: str = "") -> Fragment:
        """Give a value a name in the block of its depth."""
        name = self.names.fresh(stem, fragment.depth)
        self.emit(f"{name} = {fragment.text}", fragment.depth, comment)
        return Fragment(name, ATOM, fragment.shape, fragment.depth, fragment.bits)

    def named(self, fragment: Fragment, stem: str = "part") -> Fragment:
        """Return the value itself if it is a name or a literal, else one with a name."""
        return fragment if fragment.simple else self.name(fragment, stem + SUFFIX[fragment.shape])

    def root(self, expr: Expr, stem: str, comment: str = "") -> Fragment:
        """Write a whole expression as a name or a literal.

        Args:
            expr: what to write.
            stem: what the value is called, numbered where that is taken.
            comment: where the user wrote it.
        """
        fragment = self.write(expr)
        return fragment if fragment.simple else self.name(fragment, stem, comment)

    def write(self, expr: Expr) -> Fragment:
        """Return the text of an expression; statements that it needs go to their blocks, once."""
        expr = fold(expr)
        for block in self.blocks:
            if expr in block.written:
                return block.written[expr]
        fragment = self._write(expr)
        if not self.fits(fragment.text, fragment.depth):
            fragment = self.named(fragment, "value")
        self.blocks[fragment.depth].written[expr] = fragment
        return fragment

    def range_of(self, expr: Expr) -> IntRange:
        """Return the values that an int expression may take here."""
        return int_range(expr, self._counts, transposed=self.transposed)

    def _write(self, expr: Expr) -> Fragment:
        match expr:
            case Const():
                return _constant(expr)
            case Index(name=name):
                depth = 1 if name in _LOOP_INDICES else 0
                return Fragment(self.use(INDEX_NAMES[name]), ATOM, _SHAPES.get(name, Shape.SCALAR), depth, 32)
            case Size(name=size):
                return Fragment(self.use(size.value), ATOM, bits=32)
            case Bound(name=variable):
                return self._variables[variable]
            case Score():
                return Fragment(self.use("s"), ATOM, Shape.PAIR, 1)
            case Read():
                return read_table(self, expr)
            case Unary():
                return self._unary(expr)
            case And(operands=operands) | Or(operands=operands):
                return self._connective(type(expr), operands)
            case Binary():
                return self._binary(expr)
            case Where():
                return self._where(expr)
            case Call():
                return self._call(expr)
            case Cast(operand=operand):
                return self._cast(operand, expr.type)
            case Quantifier():
                return self._quantifier(expr)
            case Parameter(name=parameter):
                raise InternalError(f"parameter `{parameter}` without a value reached code generation")
            case _:
                assert_never(expr)

    # Operands and their text.

    def joint(self, *operands: Expr) -> tuple[Shape, int, list[Fragment]]:
        """Write the operands of one operation; return its shape and depth, and them, lesser ones by name."""
        shape, depth = Shape.SCALAR, 0
        for operand in operands:
            fragment = self.write(operand)
            shape, depth = shape.join(fragment.shape), max(depth, fragment.depth)
        return shape, depth, [self._operand(operand, shape, depth) for operand in operands]

    def _operand(self, expr: Expr, shape: Shape, depth: int) -> Fragment:
        fragment = self.write(expr)
        return fragment if fragment.shape is shape and fragment.depth == depth else self.write_named(expr, "value")

    def write_named(self, expr: Expr, stem: str) -> Fragment:
        """Write an expression as a name or a literal; later uses of it take the same."""
        fragment = self.named(self.write(expr), stem)
        self.blocks[fragment.depth].written[fold(expr)] = fragment
        return fragment

    def text(self, fragment: Fragment, shape: Shape, binding: int = COMPARISON) -> str:
        """Return text that broadcasts against `shape` as an operand of an operator of that strength."""
        if shape is Shape.PAIR and fragment.shape in (Shape.ROW, Shape.KEY):
            axis = "[:, None]" if fragment.shape is Shape.ROW else "[None, :]"
            return self.atom(fragment) + axis
        return fragment.text if fragment.binding >= binding else f"({fragment.text})"

    def atom(self, fragment: Fragment) -> str:
        """Return text to which an index or a method call can be appended."""
        return fragment.text if fragment.binding == ATOM else f"({fragment.text})"

    def wide(self, fragment: Fragment) -> Fragment:
        """Return an int as 64 bits; literals adapt by themselves."""
        if fragment.constant or fragment.bits == 64:
            return fragment
        return Fragment(f"{self.atom(fragment)}.to(tl.int64)", ATOM, fragment.shape, fragment.depth, 64)

    def _wide_tensor(self, fragment: Fragment) -> Fragment:
        """Return an int as 64 bits, a literal as a tensor."""
        if fragment.constant:
            return Fragment(f"tl.full([], {fragment.text}, tl.int64)", ATOM, bits=64)
        return self.wide(fragment)

    def _narrow(self, expr: Expr, *operands: Fragment) -> bool:
        """Tell whether an int operation on these operands is exact in 32 bits."""
        return self.range_of(expr).fits_int32 and all(f.constant or f.bits == 32 for f in operands)

    def _infix(self, symbol: str, binding: int, operands: tuple[Expr, Expr], *, cast: bool = False) -> Fragment:
        shape, depth, (left, right) = self.joint(*operands)
        if cast:
            left, right = self.wide(left), self.wide(right)
        bits = max(left.bits, right.bits)
        inner = SUM if binding == COMPARISON else binding
        text = f"{self.text(left, shape, inner)} {symbol} {self.text(right, shape, inner + 1)}"
        if not self.fits(text, depth):
            left, right = self.named(left), self.named(right)
            text = f"{self.text(left, shape)} {symbol} {self.text(right, shape)}"
        return Fragment(text, binding, shape, depth, bits)

    def _apply(self, function: str, operands: tuple[Expr, ...], *, cast: bool = False, tail: str = "") -> Fragment:
        """Write a call of operands that broadcast against each other."""
        shape, depth, fragments = self.joint(*operands)
        if "." not in function:
            self.use(function)
        if cast:
            fragments = [self.wide(f) for f in fragments]
        text = f"{function}({', '.join(self.text(f, shape) for f in fragments)}{tail})"
        if not self.fits(text, depth):
            fragments = [self.named(f) for f in fragments]
            text = f"{function}({', '.join(self.text(f, shape) for f in fragments)}{tail})"
        return Fragment(text, ATOM, shape, depth, max((f.bits for f in fragments), default=0))

    # Operators.

    def _connective(self, kind: type[And] | type[Or], operands: tuple[Expr, ...]) -> Fragment:
        """Join bools. Operands of one shape come together first, so that they are joined in their own block."""
        groups: dict[tuple[Shape, int], list[Expr]] = {}
        for operand in operands:
            fragment = self.write(operand)
            groups.setdefault((fragment.shape, fragment.depth), []).append(operand)
        if len(groups) > 1 and len(groups) < len(operands):
            parts = tuple(group[0] if len(group) == 1 else kind(tuple(group)) for group in groups.values())
            return self._connective(kind, parts)
        symbol, binding = ("&", AND) if kind is And else ("|", OR)
        shape, depth, fragments = self.joint(*operands)
        single = [f for f in fragments if f.shape is Shape.SCALAR] if shape is not Shape.SCALAR else []
        result, *others = [f for f in fragments if f not in single]
        for fragment in others:
            text = f"{self.text(result, shape, binding)} {symbol} {self.text(fragment, shape, binding + 1)}"
            if not self.fits(text, depth):
                result = self.named(result)
                text = f"{self.text(result, shape)} {symbol} {self.text(fragment, shape, binding + 1)}"
            if not self.fits(text, depth):
                text = f"{self.text(result, shape)} {symbol} {self.text(self.named(fragment), shape)}"
            result = Fragment(text, binding, shape, depth)
        for fragment in single:
            result = self._choose(fragment, result, conjunction=kind is And)
        return result

    def _choose(self, condition: Fragment, rest: Fragment, *, conjunction: bool) -> Fragment:
        """Join one bool with a block of them. Triton's interpreter keeps no bools where `&` would widen the one."""
        if not self.fits(f"tl.where({condition.text}, {rest.text}, False)", rest.depth):
            condition, rest = self.named(condition), self.named(rest)
        chosen = f"{rest.text}, False" if conjunction else f"True, {rest.text}"
        return Fragment(f"tl.where({condition.text}, {chosen})", ATOM, rest.shape, rest.depth)

    def _unary(self, expr: Unary) -> Fragment:
        inner = self.write(expr.operand)
        if expr.type is Type.INT and not self._narrow(expr, inner):
            inner = self.wide(inner)
        symbol = "-" if expr.op is UnaryOp.NEG else "~"
        return Fragment(symbol + self.atom(inner), UNARY, inner.shape, inner.depth, inner.bits)

    def _binary(self, expr: Binary) -> Fragment:
        operands = (expr.left, expr.right)
        if expr.op.is_comparison:
            result = self._infix(expr.op.value, COMPARISON, operands)
            return Fragment(result.text, COMPARISON, result.shape, result.depth)
        if expr.op is BinaryOp.POW:
            return self._power(expr)
        if expr.op in (BinaryOp.FLOORDIV, BinaryOp.MOD):
            return self._division(expr)
        if expr.op is BinaryOp.MUL and expr.type is Type.FLOAT:
            return self._product(expr)
        binding = SUM if expr.op in (BinaryOp.ADD, BinaryOp.SUB) else PRODUCT
        narrow = expr.type is Type.FLOAT or self._narrow(expr, *(self.write(operand) for operand in operands))
        return self._infix(_SYMBOLS[expr.op], binding, operands, cast=not narrow)

    def _product(self, expr: Binary) -> Fragment:
        """Multiply factors of lesser shape first, each in their own block: `slope[h] * log2(e)` once for a program."""
        groups: dict[tuple[int, Shape], Expr] = {}
        for factor in factors_of(expr):
            fragment = self.write(factor)
            place_of = (fragment.depth, fragment.shape)
            known = groups.get(place_of)
            groups[place_of] = factor if known is None else Binary(BinaryOp.MUL, known, factor, Type.FLOAT)
        ordered = [groups[place_of] for place_of in sorted(groups)]
        if len(ordered) == 1:
            return self._infix("*", PRODUCT, (expr.left, expr.right))
        first = ordered[0]
        for factor in ordered[1:-1]:
            first = Binary(BinaryOp.MUL, first, factor, Type.FLOAT)
        return self._infix("*", PRODUCT, (first, ordered[-1]))

    def _division(self, expr: Binary) -> Fragment:
        """Write `//` or `%`, which round toward minus infinity where Triton's operators round toward zero."""
        operands = (expr.left, expr.right)
        suffix = "mod" if expr.op is BinaryOp.MOD else "div"
        if expr.type is Type.FLOAT:
            return self._apply(f"floor_{suffix}_float", operands)
        left, right = self.range_of(expr.left), self.range_of(expr.right)
        wide = not all(f.constant or f.bits == 32 for f in map(self.write, operands))
        if left.low >= 0 and right.low > 0:
            result = self._infix(expr.op.value, PRODUCT, operands, cast=wide)
        else:
            result = self._apply(f"{'floor' if right.low > 0 else 'checked'}_{suffix}", operands, cast=wide)
        if wide and self.range_of(expr).fits_int32:
            return Fragment(f"{self.atom(result)}.to(tl.int32)", ATOM, result.shape, result.depth, 32)
        return result

    def _power(self, expr: Binary) -> Fragment:
        """Write `**`: products where the exponent is a small constant."""
        exponent = fold(expr.right)
        if isinstance(exponent, Const) and (expr.type is Type.INT or exponent.value in range(65)):
            self.write_named(expr.left, "base")
            return self.write(product(expr.left, int(exponent.value), expr.type))
        return self._apply("power", (expr.left, expr.right))

    def _where(self, expr: Where) -> Fragment:
        if expr.type is Type.BOOL:
            inverse = Unary(UnaryOp.NOT, expr.condition, Type.BOOL)
            return self.write(Or((And((expr.condition, expr.then)), And((inverse, expr.otherwise)))))
        shape, depth, (condition, then, otherwise) = self.joint(expr.condition, expr.then, expr.otherwise)
        bits = 0
        if expr.type is Type.INT:
            bits = 32 if self._narrow(expr, then, otherwise) else 64
        if bits == 64:
            then, otherwise = self._wide_tensor(then), self._wide_tensor(otherwise)
        parts = [condition, then, otherwise]
        text = f"tl.where({', '.join(self.text(part, shape) for part in parts)})"
        if not self.fits(text, depth):
            text = f"tl.where({', '.join(self.text(self.named(part), shape) for part in parts)})"
        return Fragment(text, ATOM, shape, depth, bits)

    def _cast(self, operand: Expr, to: Type) -> Fragment:
        inner = self.write(operand)
        match to, operand.type:
            case Type.FLOAT, Type.INT:
                return Fragment(f"{self.atom(inner)}.to(tl.float32)", ATOM, inner.shape, inner.depth)
            case Type.INT, Type.BOOL:
                return Fragment(f"{self.atom(inner)}.to(tl.int32)", ATOM, inner.shape, inner.depth, 32)
            case Type.INT, Type.FLOAT:
                self.use("float_to_int")
                return Fragment(f"float_to_int({inner.text})", ATOM, inner.shape, inner.depth, 64)
            case _:
                raise InternalError(f"a cast from {operand.type.value} to {to.value}")

    # Functions.

    def _call(self, expr: Call) -> Fragment:
        match expr.function:
            case Function.ABS:
                narrow = expr.type is Type.FLOAT or self._narrow(expr, self.write(expr.args[0]))
                return self._apply("tl.abs", expr.args, cast=not narrow)
            case Function.MIN | Function.MAX:
                return self._extremum(expr)
            case Function.FLOOR:
                inner = self._apply("tl.floor", expr.args)
                self.use("float_to_int")
                return Fragment(f"float_to_int({inner.text})", ATOM, inner.shape, inner.depth, 64)
            case Function.HASH:
                state = self._hash_state(expr.args)
                return Fragment(f"({state.text} >> 1).to(tl.int64)", ATOM, state.shape, state.depth, 64)
            case _:
                return self._apply(CALLS[expr.function], expr.args)

    def _extremum(self, expr: Call) -> Fragment:
        """Write `min` or `max`; of floats, NaN stays NaN."""
        if len(expr.args) > 2:
            inner = Call(expr.function, expr.args[:-1], expr.type)
            return self.write(Call(expr.function, (inner, expr.args[-1]), expr.type))
        function = "tl.minimum" if expr.function is Function.MIN else "tl.maximum"
        if expr.type is Type.FLOAT:
            return self._apply(function, expr.args, tail=", propagate_nan=tl.PropagateNan.ALL")
        narrow = self._narrow(expr, *(self.write(arg) for arg in expr.args))
        return self._apply(function, expr.args, cast=not narrow)

    def _hash_state(self, args: tuple[Expr, ...]) -> Fragment:
        """Write a hash step by step, each in the block of the arguments so far."""
        if not args:
            return Fragment("tl.full([], 0, tl.uint64)", ATOM)
        key = ("hash", args)
        for block in self.blocks:
            if key in block.written:
                return block.written[key]
        before, value = self._hash_state(args[:-1]), self.named(self._wide_tensor(self.write(args[-1])), "hashed")
        shape, depth = before.shape.join(value.shape), max(before.depth, value.depth)
        text = f"{self.use('hash_mix')}({self.text(before, shape)}, {self.text(value, shape)})"
        state = self.name(Fragment(text, ATOM, shape, depth), "hash" + SUFFIX[shape])
        self.blocks[depth].written[key] = state
        return state

    # Quantifiers.

    def _quantifier(self, expr: Quantifier) -> Fragment:
        if expr.count == 0:
            return self.write(neutral(expr))
        if expr.count > UNROLLED:
            return self._loop(expr)
        bound = Bound(expr.variable)
        bodies = tuple(substitute(expr.body, {bound: Const(t, Type.INT)}) for t in range(expr.count))
        if len(bodies) == 1:
            return self.write(bodies[0])
        match expr.kind:
            case QuantifierKind.ANY:
                return self.write(Or(bodies))
            case QuantifierKind.ALL:
                return self.write(And(bodies))
            case QuantifierKind.SUM:
                total = bodies[0]
                for body in bodies[1:]:
                    total = Binary(BinaryOp.ADD, total, body, expr.type)
                return self.write(total)
            case _:
                assert_never(expr.kind)

    def _loop(self, expr: Quantifier) -> Fragment:
        """Write a loop over the variable; what does not depend on it is computed outside of it, as everywhere."""
        shape, depth = self._extent(expr)
        counter, step = self.names.fresh("t", depth), self.names.fresh("step", depth)
        result = self.names.fresh(expr.kind.value + SUFFIX[shape], depth)
        outer, self.blocks = self.blocks, [*self.blocks[: depth + 1], Block()]
        self._counts[expr.variable] = expr.count
        self._variables[expr.variable] = Fragment(counter, ATOM, depth=depth + 1, bits=32)
        body = self.write(expr.body)
        bits = 0
        if expr.type is Type.INT:
            bits = 32 if self._narrow(expr, body) else 64
            body = self.wide(body) if bits == 64 else body
        del self._variables[expr.variable]  # outside of the loop it has no depth
        lines, self.blocks = self.blocks[-1].lines, outer
        dtype = {Type.BOOL: "tl.int1", Type.FLOAT: "tl.float32", Type.INT: f"tl.int{bits}"}[expr.type]
        symbol, start = {"any": ("|", 0), "all": ("&", 1), "sum": ("+", 0)}[expr.kind.value]
        self.emit(f"{result} = tl.full({extent(shape, self.aliases)}, {start}, {dtype})", depth, place(expr.span))
        self.emit(f"for {step} in range({expr.count}):", depth)
        self.emit(f"{INDENT}{counter} = tl.core.to_tensor({step})", depth)
        for line in (*lines, f"{result} = {result} {symbol} {self.text(body, shape, UNARY)}"):
            self.emit(INDENT + line, depth)
        return Fragment(result, ATOM, shape, depth, bits)

    def _extent(self, expr: Expr) -> tuple[Shape, int]:
        """Return shape and depth of an expression without writing it."""
        match expr:
            case Index(name=name):
                return _SHAPES.get(name, Shape.SCALAR), 1 if name in _LOOP_INDICES else 0
            case Score():
                return Shape.PAIR, 1
            case Bound(name=variable):
                return Shape.SCALAR, self._variables[variable].depth if variable in self._variables else 0
            case _:
                shape, depth = Shape.SCALAR, 0
                for child in children(expr):
                    inner, level = self._extent(child)
                    shape, depth = shape.join(inner), max(depth, level)
                return shape, depth


def _constant(expr: Const) -> Fragment:
    text = constant_text(expr)
    if expr.type is Type.INT and not -(2**31) <= expr.value < 2**31:
        return Fragment(text, ATOM, bits=64)
    return Fragment(text, UNARY if text.startswith("-") else ATOM, constant=expr.type is not Type.BOOL)
