"""Lays a syntax tree out as text: one statement a line, four spaces deep, parentheses only where they are needed.

Comments stay: one that ends a line with code stays at the end of that statement's line, any other before what it stood
before. A blank line between statements or declarations stays; several become one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from attnc.source import Span
from attnc.syntax import tree

INDENT = "    "
WIDTH = 100
"""Columns from which on a chain of `and` or `or` goes on in further lines."""

_CONDITIONAL, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(10)
"""How tightly operators bind."""

_BINARY = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT, "**": _POWER}


def format_file(file: tree.File) -> str:
    """Return the text of a file. Parsing it gives an equal tree, and formatting that the same text."""
    page = _Page(list(file.comments))
    for declaration in file.declarations:
        span = declaration.span
        match declaration:
            case tree.Use(path=path):
                page.write(f'use "{path.value}"', span.start, span.end, span)
            case tree.Def(name=name):
                params = f"({_params(declaration.params)})" if declaration.params else ""
                text = _with_expr(f"def {name.text}{params} =", declaration.body, 0)
                page.write(text, span.start, span.end, span)
            case tree.Attention():
                _operation("attention", declaration, page)
            case tree.Layer():
                _operation("layer", declaration, page)
            case _:
                assert_never(declaration)
    page.write_rest()
    return "\n".join(page.lines) + "\n"


@dataclass(slots=True)
class _Page:
    """Lines written so far.

    Attributes:
        comments: those that are not placed yet, in the order of the source.
        last: the line of the source up to which everything is written.
        fresh: nothing was written in this block yet, so no blank line may come.
    """

    comments: list[tree.Comment]
    lines: list[str] = field(default_factory=list)
    depth: int = 0
    last: int = 0
    fresh: bool = True

    def write(self, text: str, start: int, end: int, span: Span) -> None:
        """Write what stands from `start` to `end` in the source of `span`, with the comments before and beside it."""
        source = span.source.text
        first_line = source.count("\n", 0, start) + 1
        end_line = first_line + source.count("\n", start, end)
        self._write_comments(end)
        line = text
        if self.comments and self.comments[0].span.line == end_line:
            between = source[end : self.comments[0].span.start]
            if not between.strip(" \t;"):
                line += f"  {self.comments.pop(0).text}"
        self._line(line, first_line)
        self.last = max(self.last, end_line)

    def write_rest(self) -> None:
        """Write the comments after everything else."""
        self._write_comments(None)

    def open(self) -> None:
        """Go one level deeper."""
        self.depth += 1
        self.fresh = True

    def close(self, span: Span) -> None:
        """Write the brace at the end of `span`, one level up."""
        self._write_comments(span.end - 1)
        self.depth -= 1
        self.fresh = True
        self.write("}", span.end - 1, span.end, span)

    def _write_comments(self, end: int | None) -> None:
        while self.comments and (end is None or self.comments[0].span.start < end):
            comment = self.comments.pop(0)
            self._line(comment.text, comment.span.line)

    def _line(self, text: str, line: int) -> None:
        if not self.fresh and line - self.last > 1:
            self.lines.append("")
        self.fresh = False
        self.lines.append(INDENT * self.depth + text)
        self.last = max(self.last, line)


def _operation(keyword: str, declaration: tree.Attention | tree.Layer, page: _Page) -> None:
    params = f"({_params(declaration.params)})" if declaration.params else ""
    span = declaration.span
    brace = _opening_brace(declaration)
    page.write(f"{keyword} {declaration.name.text}{params} {{", span.start, brace + 1, span)
    page.open()
    for statement in declaration.statements:
        text = _statement(statement, page.depth)
        page.write(text, statement.span.start, statement.span.end, statement.span)
    page.close(span)


def _opening_brace(declaration: tree.Attention | tree.Layer) -> int:
    """Return where the body begins: the first brace outside of a comment."""
    text = declaration.span.source.text
    position = declaration.params[-1].span.end if declaration.params else declaration.name.span.end
    while text[position] != "{":
        position = text.index("\n", position) if text[position] == "#" else position + 1
    return position


def _params(params: tuple[tree.Param, ...]) -> str:
    parts = []
    for param in params:
        kind = f": {param.type.text}" if param.type is not None else ""
        default = f" = {format_expr(param.default)}" if param.default is not None else ""
        parts.append(f"{param.name.text}{kind}{default}")
    return ", ".join(parts)


def _with_expr(head: str, expr: tree.Expr, depth: int) -> str:
    """Return a statement that ends with an expression; a long chain gets a line for each of its operands."""
    line = f"{head} {format_expr(expr)}"
    if len(line) + len(INDENT) * depth <= WIDTH or not isinstance(expr, tree.Logic):
        return line
    least = _AND if expr.operator == "or" else _NOT
    joint = f" {expr.operator}\n{INDENT * (depth + 1)}"
    return f"{head} {joint.join(_operand(operand, least) for operand in expr.operands)}"


def _statement(statement: tree.Statement, depth: int) -> str:
    match statement:
        case tree.Input(name=name, type=kind):
            return f"input {name.text}: {_type(kind)}{' sorted' if statement.sorted else ''}"
        case tree.Learned(name=name, type=kind, initial=initial):
            head = f"learned {name.text}: {_type(kind)}"
            return head if initial is None else _with_expr(f"{head} =", initial, depth)
        case tree.Let(name=name, value=value):
            return _with_expr(f"let {name.text} =", value, depth)
        case tree.Rule(keyword=keyword, value=value):
            return _with_expr(keyword.text, value, depth)
        case tree.FormRule(keyword=keyword, form=form):
            return f"{keyword.text} {_form(form)}"
        case tree.Assert(condition=condition):
            return _with_expr("assert", condition, depth)
        case tree.Item(word=word, value=value, via=via):
            return f"{word.text} {format_expr(value)}{_via(via)}"
        case tree.Assignment(word=word, name=given, value=value):
            return _with_expr(f"{word.text} {given.text} =" if given is not None else f"{word.text} =", value, depth)
        case _:
            assert_never(statement)


def _type(kind: tree.TensorType) -> str:
    if not kind.dims:
        return kind.element.text
    dims = ("?" if isinstance(dim, tree.AnyLength) else format_expr(dim) for dim in kind.dims)
    return f"{kind.element.text}[{', '.join(dims)}]"


def _form(form: tree.Form) -> str:
    if form.arguments is None:
        return form.name.text
    return f"{form.name.text}({_arguments(form.arguments)})"


def _via(via: tree.Form | None) -> str:
    return "" if via is None else f" via {_form(via)}"


def _arguments(arguments: tuple[tree.Argument, ...]) -> str:
    return ", ".join(
        (f"{argument.name.text} = " if argument.name is not None else "")
        + format_expr(argument.value)
        + _via(argument.via)
        for argument in arguments
    )


def format_expr(expr: tree.Expr) -> str:
    """Return the text of an expression, in one line."""
    match expr:
        case tree.Name(text=text):
            return text
        case tree.Number(written=written):
            return written
        case tree.Literal(word=word):
            return word
        case tree.Text(value=value):
            return f'"{value}"'
        case tree.Call(function=function, arguments=arguments):
            return f"{function.text}({_arguments(arguments)})"
        case tree.Subscript(table=table, index=index):
            return f"{table.text}[{', '.join(map(format_expr, index))}]"
        case tree.Unary(operator="not", operand=operand):
            return f"not {_operand(operand, _NOT)}"
        case tree.Unary(operator=operator, operand=operand):
            return f"{operator}{_operand(operand, _SIGN)}"
        case tree.Binary(operator="**", left=left, right=right):
            return f"{_operand(left, _ATOM)} ** {_operand(right, _SIGN)}"
        case tree.Binary(operator=operator, left=left, right=right):
            level = _BINARY[operator]
            return f"{_operand(left, level)} {operator} {_operand(right, level + 1)}"
        case tree.Comparison(operands=operands, operators=operators):
            parts = [_operand(operand, _SUM) for operand in operands]
            return parts[0] + "".join(f" {op} {part}" for op, part in zip(operators, parts[1:], strict=True))
        case tree.Logic(operator=operator, operands=operands):
            least = _AND if operator == "or" else _NOT
            return f" {operator} ".join(_operand(operand, least) for operand in operands)
        case tree.Conditional(condition=condition, then=then, otherwise=otherwise):
            parts = [_operand(then, _OR), _operand(condition, _OR), _operand(otherwise, _CONDITIONAL)]
            return f"{parts[0]} if {parts[1]} else {parts[2]}"
        case _:
            assert_never(expr)


def _operand(expr: tree.Expr, least: int) -> str:
    text = format_expr(expr)
    return text if _level(expr) >= least else f"({text})"


def _level(expr: tree.Expr) -> int:
    match expr:
        case tree.Conditional():
            return _CONDITIONAL
        case tree.Logic(operator=operator):
            return _OR if operator == "or" else _AND
        case tree.Unary(operator=operator):
            return _NOT if operator == "not" else _SIGN
        case tree.Comparison():
            return _COMPARE
        case tree.Binary(operator=operator):
            return _BINARY[operator]
        case _:
            return _ATOM
