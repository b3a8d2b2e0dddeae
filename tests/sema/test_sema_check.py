"""What patterns mean: the IR that the checker makes of them, looked at by evaluating it at points."""

from pathlib import Path

import pytest

from attnc.diagnostics import CompileError
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import TRUE, Binary, BinaryOp, Bound, Cast, Const, IndexName, Parameter, Quantifier, Score, SizeName
from attnc.ir.program import AlignKind, Attention, NormalizeKind, Program, TensorKind
from attnc.ir.types import Type
from attnc.ir.walk import walk
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source

ROOT = Path(__file__).parents[2]


def program(text: str, **options) -> Program:
    return check_program(parse_source(SourceFile("test.attn", text)), **options)


def attention(body: str, head: str = "attention a", **options) -> Attention:
    return program(f"{head} {{\n{body}\n}}\n", **options).attentions[0]


def codes(text: str, **options) -> list[str]:
    with pytest.raises(CompileError) as caught:
        program(text, **options)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


def at(expr, i=0, j=0, h=0, b=0, n=8, m=8, heads=4, score=0.0, **tables):
    indices = {IndexName.QUERY: i, IndexName.KEY: j, IndexName.HEAD: h, IndexName.BATCH: b, IndexName.ROW: i}
    sizes = {SizeName.QUERIES: n, SizeName.KEYS: m, SizeName.HEADS: heads, SizeName.HEAD_SIZE: 16, SizeName.GROUP: 1}
    return evaluate(expr, Environment(indices, sizes, tables, score))


PAIRS = [(i, j) for i in range(9) for j in range(9)]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.attn")), ids=lambda path: path.stem)
def test_examples_check(path):
    assert check_program(parse_source(read_source(path))).attentions


def test_examples_of_the_reference_check():
    checked = check_program(parse_source(read_source(ROOT / "tests" / "syntax" / "reference.attn")))
    assert [a.name for a in checked.attentions][:2] == ["streaming", "longformer"]
    assert [layer.name for layer in checked.layers] == ["ssnn_block"]
    performer, retention = checked.attentions[-2:]
    assert (performer.normalize.kind, retention.normalize.kind) == (NormalizeKind.ROWS, NormalizeKind.NONE)
    assert [(d.statement, d.form) for d in performer.deferred] == [("feature", "favor")]


@pytest.mark.parametrize(
    ("mask", "meaning"),
    [
        ("causal", lambda i, j: j <= i),
        ("window(3)", lambda i, j: abs(i - j) < 3),
        ("sinks(2)", lambda i, j: j < 2),
        ("prefix(2.5)", lambda i, j: j < 2.5),
        ("globals(2)", lambda i, j: i < 2 or j < 2),
        ("dilated(2, 3)", lambda i, j: abs(i - j) < 6 and (i - j) % 3 == 0),
        ("chunk(3)", lambda i, j: i // 3 == j // 3),
        ("chunk_causal(3)", lambda i, j: j // 3 <= i // 3),
        ("grid_near(3, 1)", lambda i, j: abs(i // 3 - j // 3) <= 1 and abs(i % 3 - j % 3) <= 1),
        ("0 <= i - j < 3", lambda i, j: 0 <= i - j < 3),
        ("(j - i) // 3 == -1", lambda i, j: (j - i) // 3 == -1),
        ("(j - i) % 3 == 1", lambda i, j: (j - i) % 3 == 1),
        ("true if i > 3 else j < 2", lambda i, j: True if i > 3 else j < 2),
        ("where(i > 3, i == j, j < 2)", lambda i, j: i == j if i > 3 else j < 2),
        ("any(t < 3, j == i - 2 * t)", lambda i, j: any(j == i - 2 * t for t in range(3))),
        ("sum(t < 4, int(j > t)) == i", lambda i, j: sum(j > t for t in range(4)) == i),
        ("all(t < 2, any(u < 3, i + t == j + u))", lambda i, j: 0 <= i - j <= 1),
        ("any(t < 0, true)", lambda i, j: False),
        ("not (i < j) == (i > 2)", lambda i, j: (i < j) != (i > 2)),
        ("clamp(i - j, -1, 1) == 1", lambda i, j: i - j >= 1),
        ("i ** 2 + j ** 2 < 25", lambda i, j: i**2 + j**2 < 25),
        ("int(2.9) == 2 and floor(-0.5) == -1 and int(i < j) == 1", lambda i, j: i < j),
        ("float(i < j) > 0.5", lambda i, j: i < j),
        ("max(i, j, 3) == 3 and min(i, 1.5) > 0.5", lambda i, j: max(i, j) <= 3 and i > 0),
    ],
)  # fmt: skip
def test_masks_mean_what_python_means(mask, meaning):
    checked = attention(f"mask {mask}").mask
    assert checked.type is Type.BOOL
    for i, j in PAIRS:
        assert at(checked, i, j) is bool(meaning(i, j)), (i, j)


def test_several_lines():
    checked = attention("mask causal\nmask i - j < 3\nscore 2 * s\nscore s + j\nweight 2\nweight j")
    for i, j in PAIRS:
        assert at(checked.mask, i, j) is (0 <= i - j < 3)
        assert at(checked.score, i, j, score=5.0) == 10.0 + j
        assert at(checked.weight, i, j) == 2.0 * j
    plain = attention("")
    assert (plain.mask, plain.score, plain.weight, plain.scale) == (TRUE, Score(), None, None)
    assert (plain.align.kind, at(plain.align.shift, n=3, m=8)) == (AlignKind.END, 5)


def test_score_without_s_replaces_it():
    assert not any(isinstance(node, Score) for node in walk(attention("score s + 1\nscore i - j").score))


def test_types_and_conversions_are_explicit():
    assert isinstance(attention("score i - j").score, Cast)
    power = attention("let n = 2\nmask i ** n > 3\nscore i ** -1 + i ** j").mask.left
    assert (power.op, power.type) == (BinaryOp.POW, Type.INT)
    ratio = attention("score i / j").score
    assert isinstance(ratio, Binary)
    assert (ratio.type, ratio.left.type, ratio.right.type) == (Type.FLOAT,) * 3
    assert attention("score 7 // 2").score == Const(3.0, Type.FLOAT)


def test_tensors():
    checked = attention(
        "input doc: int[B, M] sorted\ninput beta: float\ninput any_length: bool[?]\nlearned w: float[H, 2] = h + d1\n"
        "learned x: float = 1\nscale beta\nscore s * x + w[h, 1]\nmask same(doc) and any_length[j]"
    )
    assert [(t.name, t.kind, len(t.dims), t.sorted) for t in checked.tensors] == [
        ("doc", TensorKind.INPUT, 2, True),
        ("beta", TensorKind.INPUT, 0, False),
        ("any_length", TensorKind.INPUT, 1, False),
        ("w", TensorKind.LEARNED, 2, False),
        ("x", TensorKind.LEARNED, 0, False),
    ]
    assert checked.tensor("any_length").dims == (None,)
    initial = checked.tensor("w").initial
    env = Environment({IndexName.HEAD: 3}, {}, {}, dims=(3, 1))
    assert evaluate(initial, env) == 4.0
    assert at(checked.mask, 1, 2, doc=[[5, 6, 6]], any_length=[False, False, True]) is True
    assert at(checked.score, score=2.0, x=3.0, w=[[0.0, 0.5]]) == 6.5


def test_reads_are_never_constants():
    checked = attention("input t: int[4]\nmask t[0] == 1 and any(u < 4, t[u] == i)")
    assert at(checked.mask, 3, t=[1, 0, 0, 3]) is True
    assert at(checked.mask, 2, t=[1, 0, 0, 3]) is False
    assert codes("attention a { input t: int[4]\n mask any(u < t[0], i == u) }") == ["count-not-constant"]


def test_normalize_and_align():
    relu = attention("normalize relu(power = 2)").normalize
    assert (relu.kind, relu.power) == (NormalizeKind.RELU, Const(2.0, Type.FLOAT))
    assert attention("normalize relu").normalize.power == Const(1.0, Type.FLOAT)
    assert attention("normalize sigmoid").normalize.bias == Const(0.0, Type.FLOAT)
    assert attention("normalize softmax").normalize.sink is None
    sink = attention("learned k: float[H] = 0\nnormalize softmax(sink = k[h] + i)").normalize.sink
    assert at(sink, i=2, k=[0.5]) == 2.5
    shifted = attention("input pos: int[B]\nalign at(pos[b])").align
    assert (shifted.kind, at(shifted.shift, pos=[7])) == (AlignKind.AT, 7)
    assert attention("align start").align.shift == Const(0, Type.INT)


def test_definitions_see_their_own_surroundings():
    text = (
        "def f = window(2)\ndef window(w: int) = i == j\ndef g(i) = i + j\ndef twice(x) = g(x) + g(x)\n"
        "attention a {\n let j = 100\n mask f and window(1)\n score twice(1)\n}\n"
    )
    checked = program(text).attentions[0]
    assert [at(checked.mask, 5, 5), at(checked.mask, 5, 6)] == [True, False]
    assert at(checked.score, j=3) == 8.0


def test_inner_names_hide_outer_ones():
    checked = attention("let causal = i < 3\nlet h = 7\nmask causal and any(i < 2, j == i)\nscore h")
    assert at(checked.mask, 2, 1) is True
    assert at(checked.mask, 2, 2) is False
    assert at(checked.score) == 7.0


def test_attentions_hide_no_expressions():
    text = (
        "attention causal { mask causal }\nattention window(n: int = 2) { mask causal and window(n) }\n"
        "layer exp(width: int = 8) { heads 2; attend window(n = 3) }\nattention last_one { score exp(s) }\n"
    )
    checked = program(text)
    assert [at(checked.attentions[1].mask, 5, j) for j in (3, 4, 5, 6)] == [False, True, True, False]
    assert at(checked.layers[0].attend.mask, 5, 3) is True


def test_definition_may_extend_the_one_that_it_hides():
    checked = program("def causal = causal and i - j < 2\nattention a { mask causal }").attentions[0]
    assert [at(checked.mask, 3, j) for j in range(5)] == [False, False, True, True, False]


def test_quantifier_variables_are_unique():
    checked = attention("mask any(t < 2, t < i) or all(t < 3, t < i) or any(t < 2, t < j)")
    names = [node.variable for node in walk(checked.mask) if isinstance(node, Quantifier)]
    assert len(set(names)) == 3
    bodies = {node.variable: node.body for node in walk(checked.mask) if isinstance(node, Quantifier)}
    assert all(
        name in {n.name for n in walk(body) if isinstance(n, Bound)} for name, body in bodies.items() if name != "t"
    )


def test_what_is_not_selected_may_divide_by_zero():
    text = (
        "attention a(w: int = 0) {\n mask w > 0 and i // w == 0 or causal\n score i % w if w > 0 else 2\n"
        " score s + where(w == 0, 1, i // w)\n}"
    )
    assert at(program(text).attentions[0].score) == 3.0
    assert codes(text.replace("int = 0", "int = -1").replace("w > 0", "w < 0")) == ["divisor-not-positive"] * 3


def test_statement_and_inlined_spans_lie_in_the_file():
    text = "def near(w: int) = window(w) and causal\nattention a {\n mask near(3)\n score s + alibi\n}\n"
    checked = program(text).attentions[0]
    assert [span.text for span in checked.statements] == ["mask near(3)", "score s + alibi"]
    assert checked.mask.span.text == "near(3)"
    for node in (*walk(checked.mask), *walk(checked.score)):
        if node.span is not None:
            assert node.span.source.name == "test.attn"
    assert {node.span.text for node in walk(checked.mask.operands[0])} <= {"window(w)", "3"}


def test_integers_of_64_bits():
    assert attention("let x = -9223372036854775808\nscore x").score == Const(float(-(2**63)), Type.FLOAT)
    assert codes("attention a { score 9223372036854775808 }") == ["integer-too-large"]
    assert codes("attention a { score sum(t < 4, 4611686018427387904) }") == ["integer-too-large"]


def test_deferred_statements_are_kept():
    checked = attention(
        "prepare unit\nprepare rotary(theta = 500)\nfeature favor(features = 2 * 8)\nkeys mean_pool(4, stride = 2)\n"
        "mask last(j) <= i and first(j) < K\ndecompose permute(tile(8, 2, th = 4, tw = 4))".replace("8, 2, th", "8, th")
    )
    assert [(d.statement, d.form, [name for name, _ in d.arguments]) for d in checked.deferred] == [
        ("prepare", "unit", []),
        ("prepare", "rotary", ["theta"]),
        ("feature", "favor", ["features", "seed"]),
        ("keys", "mean_pool", ["window", "stride"]),
        ("decompose", "permute", ["order", "width", "th", "tw"]),
    ]
    assert checked.normalize.kind is NormalizeKind.ROWS
    assert attention("decompose auto").deferred == ()


def test_layer_keeps_everything():
    text = (
        "attention near(w: int, z: float = 1) { mask i - j < w\n score s * z }\n"
        "layer block(width: int = 64) {\n norm layer\n heads 4; kv_heads 2\n query masked(i <= j)\n"
        ' key low_rank(2 * 4) via bilinear("scheme.json", 2)\n rotary theta = 100\n attend near(width // 8)\n'
        " feedforward gelu(hidden = 4 * width, monarch(4))\n}\n"
    )
    with pytest.raises(CompileError, match="missing-parameter"):
        program(text)
    (layer,) = program(text.replace("w: int,", "w: int = 1,")).layers
    sizes = [layer.heads, layer.kv_heads, layer.head_size]
    assert (layer.attention, layer.norm, [size.value for size in sizes]) == ("near", "layer", [4, 2, 16])
    projections = dict(layer.projections)
    assert [projections[name].structure for name in ("query", "key", "value", "output")] == [
        "masked", "low_rank", "dense", "dense",
    ]  # fmt: skip
    assert projections["key"].via.arguments == (("file", "scheme.json"), ("levels", Const(2, Type.INT)))
    assert layer.attend.params == (("w", Const(8, Type.INT)), ("z", Const(1.0, Type.FLOAT)))
    assert at(layer.attend.mask, 8, 1) is True
    assert (layer.theta.value, layer.feedforward.form, layer.feedforward.hidden.value) == (100.0, "gelu", 256)


def test_check_without_values_keeps_parameters():
    text = (
        "attention a(w: int, c: bool, v: int = 2 * w) {\n"
        " mask any(t < w, i // v == t) or c\n normalize relu(power = w)\n}"
    )
    checked = program(text, require_params=False).attentions[0]
    assert checked.params == ()
    found = {node.name for node in walk(checked.mask) if isinstance(node, Parameter)}
    assert found == {"v", "c"}
