"""From text to tree: line ends, precedence, spans."""

from pathlib import Path

import pytest

from attnc.diagnostics import CompileError
from attnc.source import SourceFile
from attnc.syntax import tree
from attnc.syntax.format import format_expr
from attnc.syntax.parse import parse_source


def parse(text: str) -> tree.File:
    return parse_source(SourceFile("test.attn", text))


def expression(text: str) -> tree.Expr:
    declaration = parse(f"def f = {text}").declarations[0]
    assert isinstance(declaration, tree.Def)
    return declaration.body


def statements(text: str) -> tuple[tree.Statement, ...]:
    declaration = parse(text).declarations[0]
    assert isinstance(declaration, tree.Attention)
    return declaration.statements


def grouped(expr: tree.Expr) -> str:
    """Write an expression with all parentheses."""
    match expr:
        case tree.Unary():
            return f"({expr.operator} {grouped(expr.operand)})"
        case tree.Binary():
            return f"({grouped(expr.left)} {expr.operator} {grouped(expr.right)})"
        case tree.Comparison():
            rest = zip(expr.operators, expr.operands[1:], strict=True)
            return f"({grouped(expr.operands[0])}{''.join(f' {op} {grouped(part)}' for op, part in rest)})"
        case tree.Logic():
            return f"({f' {expr.operator} '.join(map(grouped, expr.operands))})"
        case tree.Conditional():
            return f"({grouped(expr.then)} if {grouped(expr.condition)} else {grouped(expr.otherwise)})"
        case _:
            return format_expr(expr)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a - b - c", "((a - b) - c)"),
        ("a - b * c", "(a - (b * c))"),
        ("a * b // c % d", "(((a * b) // c) % d)"),
        ("-a ** b", "(- (a ** b))"),
        ("a ** -b ** c", "(a ** (- (b ** c)))"),
        ("a ** b ** c", "(a ** (b ** c))"),
        ("-a * b", "((- a) * b)"),
        ("not a < b", "(not (a < b))"),
        ("not a and b", "((not a) and b)"),
        ("a or b and not c or d", "(a or (b and (not c)) or d)"),
        ("a < b <= c != d", "(a < b <= c != d)"),
        ("(a < b) < c", "((a < b) < c)"),
        ("a if b else c if d else e", "(a if b else (c if d else e))"),
        ("a + b < c - d and e", "(((a + b) < (c - d)) and e)"),
        ("(a and b) and c", "((a and b) and c)"),
        ("--a", "(- (- a))"),
        ("+a + +b", "((+ a) + (+ b))"),
    ],
)
def test_precedence_is_pythons(text, meaning):
    assert grouped(expression(text)) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "attention a {\n mask causal\n score s\n}",
        "attention a { mask causal; score s }",
        "attention a { mask causal; score s; }",
        "attention a {;;\n\n mask causal;\n\n;score s\n\n}\n\n",
        "attention a {\r\n\tmask causal\r\n\tscore s\r\n}\r\n",
        "\ufeffattention a {\n mask causal # why { ( \n score s # and\n}",
    ],
)
def test_statements_end_with_their_line_or_a_semicolon(text):
    found = statements(text)
    assert [type(s) for s in found] == [tree.Rule, tree.Rule]
    assert found == statements("attention a {\n mask causal\n score s\n}")


@pytest.mark.parametrize(
    "text",
    ["a +\n b", "(a\n +\n b)", "(\na + b\n)", "a # first\n".replace("a", "(a") + "+ b)", "a + # then\n b", "\n a + b"],
)
def test_line_breaks_that_do_not_end_a_statement(text):
    assert expression(text) == expression("a + b")


@pytest.mark.parametrize(
    "operator", ["+", "-", "*", "/", "//", "%", "**", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
)
def test_statement_goes_on_after_an_operator(operator):
    assert expression(f"a {operator}\n\n b") == expression(f"a {operator} b")
    with pytest.raises(CompileError):
        expression(f"a\n {operator} b")


def test_statement_goes_on_after_not_if_else_and_brackets():
    assert expression("not\n a") == expression("not a")
    assert expression("a if\n b else\n c") == expression("a if b else c")
    assert expression("f(a,\n b)[\n1\n]".replace(")[\n1\n]", ")")) == expression("f(a, b)")
    assert expression("t[\n a,\n b\n]") == expression("t[a, b]")
    with pytest.raises(CompileError):
        expression("a\n if b else c")


def test_layers_and_forms():
    file = parse(
        "layer block(width: int = 8) {\n norm layer\n heads 2; rotary theta = 10\n output dense via strassen(1)\n"
        " feedforward swiglu(hidden = 4 * width, monarch(2) via winograd(1))\n}\n"
    )
    norm, heads, rotary, output, feedforward = file.declarations[0].statements
    assert (norm.value.text, heads.value.value, rotary.name.text, output.via.name.text) == (
        "layer",
        2,
        "theta",
        "strassen",
    )
    assert [argument.name and argument.name.text for argument in feedforward.value.arguments] == ["hidden", None]
    assert feedforward.value.arguments[1].via.name.text == "winograd"


def test_words_that_are_not_reserved_may_be_names():
    names = "via rows none softmax end start theta hidden norm heads query key value gate over nonempty s t d0"
    for name in names.split():
        parse(f"def {name}(x: int) = {name} + x\n")


def test_spans_cover_what_is_written():
    text = "attention a {\n    mask (i - j) * 2 < f(3, (4)) and not x[ 1 ]\n}\n"
    (mask,) = statements(text)
    both = mask.value
    assert mask.span.text == "mask (i - j) * 2 < f(3, (4)) and not x[ 1 ]"
    assert [operand.span.text for operand in both.operands] == ["(i - j) * 2 < f(3, (4))", "not x[ 1 ]"]
    product, call = both.operands[0].operands
    assert (product.span.text, product.left.span.text, call.span.text) == ("(i - j) * 2", "i - j", "f(3, (4))")
    assert (mask.span.line, mask.span.column, product.span.column) == (2, 5, 10)


def test_numbers():
    assert [expression(text).value for text in ("12", "0.5", "1e-3", "2E3", "007")] == [12, 0.5, 1e-3, 2000.0, 7]
    assert isinstance(expression("1e3").value, float)
    assert expression("9" * 5000).value > 2**64  # longer than Python converts


def test_examples_of_the_reference_parse():
    names = [d.name.text for d in parse((Path(__file__).parent / "reference.attn").read_text()).declarations]
    assert names[0] == "streaming"
    assert names[-1] == "ssnn_block"
    assert len(names) == 8
