"""What kernels of gradients do with a tile of pairs: weights again, and the derivatives that multiply them."""

from __future__ import annotations

from dataclasses import dataclass

from attnc.algebra.gradients import ONE, ZERO, Axes, ReadGradient, differentiate, read_gradients, write_out_sums
from attnc.codegen.expr_triton import Writer
from attnc.codegen.functions_triton import fold
from attnc.codegen.kernel_text import Fragment, Shape, extent, places
from attnc.codegen.loops import Weighing
from attnc.ir.nodes import TRUE, Binary, BinaryOp, Const, Expr, Score
from attnc.ir.types import Type
from attnc.ir.walk import walk

_LN_2 = Const(0.6931471805599453, Type.FLOAT, name="log(2)")


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives of what a pair is weighed by.

    Attributes:
        weighing: sums over elements of tables are written out in it.
        dot: of the score, or of the weight itself, by the scaled dot product; `ZERO` where that has no say.
        reads: by elements of tables, in natural units: of the score or weight, and of the factor if there is one.
    """

    weighing: Weighing
    dot: Expr
    reads: tuple[ReadGradient, ...]


def slopes_of(weighing: Weighing, *, softmax: bool) -> Slopes:
    """Differentiate what a pair is weighed by."""
    score = write_out_sums(weighing.score)
    factor = None if weighing.factor is None else write_out_sums(weighing.factor)
    whole = Weighing(score, factor, weighing.comment, weighing.factor_comment)
    exprs = (score,) if factor is None else (score, factor)
    reads = read_gradients(*exprs)
    if softmax:  # the score is in base 2
        reads = tuple(ReadGradient(one.read, one.axes, (_natural(one.slopes[0]), *one.slopes[1:])) for one in reads)
    return Slopes(whole, differentiate(score, Score()), reads)


def _natural(slope: Expr) -> Expr:
    return slope if slope == ZERO else Binary(BinaryOp.MUL, slope, _LN_2, Type.FLOAT)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a tile adds to the gradient of a read.

    Attributes:
        number: of the read among all.
        text: of a tile of pairs, over `dx`, the gradient of the score or of the weight, and `df`, that of the factor.
    """

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class GradientBody:
    """What one loop does with a tile of pairs.

    Attributes:
        uses_dot: whether the score depends on the dot product at all.
        lines: statements that compute the texts below.
        score: text of the score in base 2, or of the weight, of every pair.
        mask: text of a condition; empty where every pair is allowed.
        factor: text of the factor; empty without one.
        slope: text of the derivative by the dot product; empty where it is 1.
        contributions: to the gradients of tables.
        scale_lines: statements that compute the scale of each query of a tile, where loops go over queries.
    """

    uses_dot: bool
    lines: tuple[str, ...]
    score: str
    mask: str
    factor: str
    slope: str
    contributions: tuple[Contribution, ...]
    scale_lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Everything that is written here."""
        own = (self.score, self.mask, self.factor, self.slope, *(one.text for one in self.contributions))
        return "\n".join((*self.lines, *own))

    @property
    def uses_factor(self) -> bool:
        """Whether the gradient of the factor is needed."""
        return any("df" in one.text for one in self.contributions)


def write_gradient_body(writer: Writer, mask: Expr, slopes: Slopes, wanted: tuple[Axes, ...]) -> GradientBody:
    """Write a tile of pairs into the writer's innermost block.

    Args:
        writer: of the kernel.
        mask: what is to be tested.
        slopes: of the attention, or of the transposed one.
        wanted: which reads this kernel takes the gradients of.
    """
    weighing = slopes.weighing
    score = _pairs(writer, writer.root(fold(weighing.score), "x", weighing.comment))
    factor = ""
    if weighing.factor is not None:
        factor = writer.text(writer.root(weighing.factor, "factor", weighing.factor_comment), Shape.PAIR)
    slope = ""
    uses_dot = any(isinstance(node, Score) for node in walk(weighing.score))
    if uses_dot and slopes.dot != ONE:
        slope = writer.text(writer.root(slopes.dot, "slope"), Shape.PAIR)
    contributions = tuple(
        Contribution(number, _contribution(writer, one))
        for number, one in enumerate(slopes.reads)
        if one.axes in wanted
    )
    folded, condition = fold(mask), ""
    if folded != TRUE:
        comment = places(node.span for node in walk(folded))
        condition = writer.text(writer.root(folded, "allowed", comment), Shape.PAIR)
    return GradientBody(uses_dot, tuple(writer.blocks[1].lines), score, condition, factor, slope, contributions)


def _pairs(writer: Writer, fragment: Fragment) -> str:
    """Return a value of every pair as a whole tile."""
    whole = extent(Shape.PAIR, writer.aliases)
    if fragment.constant:
        return f"tl.full({whole}, {fragment.text}, tl.float32)"
    if fragment.shape is not Shape.PAIR:
        return f"tl.broadcast_to({writer.text(fragment, Shape.PAIR)}, {whole})"
    return fragment.text


def _contribution(writer: Writer, one: ReadGradient) -> str:
    terms = []
    for name, slope in zip(("dx", "df"), one.slopes, strict=False):
        if slope == ZERO:
            continue
        text = writer.text(writer.root(slope, "by_read"), Shape.PAIR)
        terms.append(name if fold(slope) == ONE else f"{name} * {text}")
    return " + ".join(terms)
