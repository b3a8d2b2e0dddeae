"""What can be wrong with names, declarations, parameters and files: one factory of a diagnostic for each code.

`expression_errors.py` has the codes that are about expressions, `form_errors.py` those of statements, forms and layers.
"""

from __future__ import annotations

from attnc.diagnostics import Diagnostic, Label, Severity
from attnc.ir.types import Type
from attnc.source import Span


def did_you_mean(suggestion: str | None, otherwise: str = "") -> str:
    """Return the help that names the nearest name."""
    return f"did you mean `{suggestion}`?" if suggestion else otherwise


def _first_here(first: Span | None, text: str) -> tuple[Label, ...]:
    return () if first is None else (Label(first, text),)


# --- names ---


def unknown_name(span: Span, name: str, suggestion: str | None) -> Diagnostic:
    """A name that means nothing here."""
    return Diagnostic(
        "unknown-name",
        f"there is no `{name}` here",
        (Label(span, "this name is not declared"),),
        help=did_you_mean(suggestion, "declare it above this line, with `let` or `def`, or as an input or parameter"),
    )


def unknown_function(span: Span, name: str, suggestion: str | None) -> Diagnostic:
    """A function that does not exist."""
    return Diagnostic(
        "unknown-function",
        f"there is no function `{name}`",
        (Label(span, "neither the language nor a `def` has it"),),
        help=did_you_mean(suggestion, f"define it above: `def {name}(x) = ...`"),
    )


def unknown_type(span: Span, name: str, suggestion: str | None) -> Diagnostic:
    """A type that does not exist."""
    return Diagnostic(
        "unknown-type",
        f"there is no type `{name}`",
        (Label(span, "a type is `bool`, `int` or `float`"),),
        help=did_you_mean(suggestion),
    )


def declared_twice(span: Span, name: str, first: Span | None) -> Diagnostic:
    """Two declarations of one name in one scope."""
    return Diagnostic(
        "declared-twice",
        f"`{name}` is declared twice",
        (Label(span, "declared again here"), *_first_here(first, "first declared here")),
        help="rename one of them",
    )


def used_before_declaration(span: Span, name: str, later: Span) -> Diagnostic:
    """A name that is declared further down."""
    return Diagnostic(
        "used-before-declaration",
        f"`{name}` is used before it is declared",
        (Label(span, "not visible yet"), Label(later, "declared here")),
        help="move the declaration above its first use",
    )


def recursive_definition(span: Span, chain: tuple[str, ...], declared: Span) -> Diagnostic:
    """A definition that uses itself, directly or through others."""
    name = chain[0]
    notes = () if len(chain) == 2 else (f"{' uses '.join(f'`{link}`' for link in chain)}",)
    labels = (Label(span, "it comes back to itself here"),)
    return Diagnostic(
        "recursive-definition",
        f"`{name}` uses itself",
        labels if len(chain) == 2 else (*labels, Label(declared, f"`{chain[1]}` is declared here")),
        help="definitions are written out where they are used; write a loop as `any`, `all` or `sum`",
        notes=notes,
    )


def name_not_allowed(span: Span, name: str, what: str, why: str) -> Diagnostic:
    """An input or learned tensor whose name cannot be that of a Python argument."""
    return Diagnostic(
        "name-not-allowed",
        f"{what} cannot be called `{name}`",
        (Label(span, f"`{name}` {why}"),),
        help=f"choose another name, for example `{name}_`",
    )


def not_a_value(span: Span, name: str, declared: Span) -> Diagnostic:
    """An attention or layer in an expression."""
    return Diagnostic(
        "not-a-value",
        f"`{name}` is not a value",
        (Label(span), Label(declared, "it is declared here")),
        help="share an expression between attentions with `def`",
    )


# --- parameters ---


def missing_parameter(span: Span, name: str, owner: str, kind: Type) -> Diagnostic:
    """A parameter without a default, and without a value."""
    example = {Type.BOOL: "true", Type.INT: "64", Type.FLOAT: "0.5"}[kind]
    return Diagnostic(
        "missing-parameter",
        f"`{owner}` needs a value for `{name}`",
        (Label(span, "it has no default"),),
        help=f"give one: `-D {name}={example}` on the command line, `{name}={example.capitalize()}` in Python",
    )


def wrong_parameter_type(span: Span, name: str, kind: Type, value: object) -> Diagnostic:
    """A value of the wrong type, from the command line or from Python."""
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    return Diagnostic(
        "wrong-parameter-type",
        f"`{name}` cannot be {shown}",
        (Label(span, f"it is {kind.with_article()}"),),
        help=f"give {kind.with_article()}",
    )


def parameter_too_large(span: Span, name: str) -> Diagnostic:
    """A value beyond 64 bits."""
    return Diagnostic(
        "integer-too-large",
        f"the value given for `{name}` does not fit into 64 bits",
        (Label(span, "this parameter"),),
        help="integers go from -9223372036854775808 to 9223372036854775807",
    )


def unknown_parameter(name: str, known: tuple[str, ...], suggestion: str | None) -> Diagnostic:
    """A value for a parameter that nothing in the file declares."""
    listed = ", ".join(f"`{one}`" for one in known)
    return Diagnostic(
        "unknown-parameter",
        f"there is no parameter `{name}`",
        help=did_you_mean(suggestion, f"there are {listed}" if known else "this file has no parameters"),
    )


def unknown_attention(name: str, known: tuple[str, ...], suggestion: str | None) -> Diagnostic:
    """An attention that was asked for and is not in the file."""
    listed = ", ".join(f"`{one}`" for one in known)
    return Diagnostic(
        "unknown-attention",
        f"there is no attention `{name}`",
        help=did_you_mean(suggestion, f"there are {listed}" if known else "this file has no attention"),
    )


def wrong_default_type(span: Span, name: str, kind: Type, found: Type, declared: Span) -> Diagnostic:
    """A default that is not of its parameter's type."""
    return Diagnostic(
        "wrong-default-type",
        f"the default of `{name}` must be {kind.with_article()}",
        (Label(span, f"this is {found.with_article()}"),),
        help=_conversion(found, kind),
    )


def _conversion(found: Type, wanted: Type) -> str:
    match (found, wanted):
        case (Type.FLOAT, Type.INT):
            return "round it with `floor(...)`, or declare the type `float`"
        case (Type.BOOL, _):
            return "`int(...)` turns a bool into 0 or 1"
        case _:
            return "compare it, for example with `!= 0`"


def not_constant(span: Span, what: str) -> Diagnostic:
    """A value that is known only when the module is called, where one is needed earlier."""
    return Diagnostic(
        "not-constant",
        f"{what} must be a constant",
        (Label(span, "this is known only when the module is called"),),
        help="use numbers and parameters",
    )


# --- tensors ---


def cannot_be_sorted(span: Span, name: str) -> Diagnostic:
    """`sorted` on something that has no order to keep."""
    return Diagnostic(
        "cannot-be-sorted",
        f"`{name}` cannot be `sorted`",
        (Label(span, "only a tensor of ints can"),),
        help=f"write `input {name}: int[B, M] sorted`, or leave `sorted` out",
    )


def negative_dimension(span: Span, value: int) -> Diagnostic:
    """A dimension that is a negative constant."""
    return Diagnostic("negative-dimension", "a dimension cannot be negative", (Label(span, f"this is {value}"),))


def learned_not_float(span: Span, name: str, kind: Type) -> Diagnostic:
    """A learned tensor of ints or bools."""
    return Diagnostic(
        "learned-not-float",
        "a learned tensor must be `float`",
        (Label(span, f"`{kind.value}` has no gradient"),),
        help=f"make `{name}` an `input` if it is not trained",
    )


def learned_any_length(span: Span) -> Diagnostic:
    """`?` as a dimension of a learned tensor."""
    return Diagnostic(
        "learned-any-length",
        "a learned tensor needs every dimension",
        (Label(span, "the module must know it to make the tensor"),),
        help="write `H`, `D`, a parameter or a number",
    )


def learned_without_value(span: Span, name: str) -> Diagnostic:
    """A learned tensor without an initial value."""
    return Diagnostic(
        "learned-without-value",
        f"`{name}` needs an initial value",
        (Label(span, "training starts from it"),),
        help="add it at the end, for example `= 0.0`",
    )


def initial_not_number(span: Span, kind: Type) -> Diagnostic:
    """An initial value that is a bool."""
    return Diagnostic(
        "initial-not-number",
        "an initial value must be a number",
        (Label(span, f"this is {kind.with_article()}"),),
        help="`where(condition, 1, 0)` makes numbers of a condition",
    )


def no_head_dimension(span: Span, heads: int) -> Diagnostic:
    """`h` in the initial value of a tensor with no `H` dimension, or with several."""
    why = "the tensor has no `H` dimension" if not heads else f"the tensor has {heads} `H` dimensions"
    return Diagnostic(
        "no-head-dimension",
        "`h` means nothing in this initial value",
        (Label(span, why),),
        help="use `d0`, `d1`, ...: the index along each dimension",
    )


# --- files ---


def use_without_file(span: Span) -> Diagnostic:
    """`use` in text that was not read from a file."""
    return Diagnostic(
        "use-without-file",
        "`use` needs a file to start from",
        (Label(span, "this text was not read from a file"),),
        help="save it to a file, or write the definitions here",
    )


def use_not_found(span: Span, path: str, suggestion: str | None) -> Diagnostic:
    """A used file that does not exist."""
    return Diagnostic(
        "use-not-found",
        f"there is no file `{path}`",
        (Label(span, "looked for beside this file"),),
        help=did_you_mean(suggestion, "the path is relative to the file that says `use`"),
    )


def use_outside(span: Span, path: str) -> Diagnostic:
    """A used file outside the folder of the first one."""
    return Diagnostic(
        "use-outside-folder",
        f"`{path}` is outside the folder of the pattern",
        (Label(span, "this leads out of it"),),
        help="a pattern may use files in its own folder and in folders below it; copy or move the file there",
    )


def use_absolute(span: Span) -> Diagnostic:
    """An absolute path."""
    return Diagnostic(
        "use-outside-folder",
        "`use` takes a path relative to this file",
        (Label(span, "this is an absolute path"),),
        help="copy or move the file beside this one",
    )


def use_circular(span: Span, chain: tuple[str, ...]) -> Diagnostic:
    """Files that use each other."""
    notes = () if len(chain) == 2 else (" uses ".join(f"`{name}`" for name in chain),)
    return Diagnostic(
        "use-circular",
        f"`{chain[-1]}` uses itself",
        (Label(span, "this closes the circle"),),
        help="move what both need into a third file",
        notes=notes,
    )


def use_too_deep(span: Span, limit: int) -> Diagnostic:
    """Too long a chain of files."""
    return Diagnostic("use-too-deep", f"files may use each other at most {limit} deep", (Label(span),))


def use_unreadable(span: Span, path: str, reason: Diagnostic) -> Diagnostic:
    """A used file that cannot be read as text."""
    return Diagnostic(reason.code, reason.message, (Label(span, f"`{path}` is used here"),), help=reason.help)


def used_names_clash(span: Span, name: str, first: Span, second: Span) -> Diagnostic:
    """Two used files that define the same name."""
    return Diagnostic(
        "declared-twice",
        f"`{name}` is declared twice",
        (Label(span, "this file declares it again"), Label(first, "first declared here"), Label(second, "and here")),
        help="rename one of them",
    )


def used_twice(span: Span, path: str) -> Diagnostic:
    """The same file used a second time: harmless."""
    return Diagnostic(
        "used-twice",
        f"`{path}` is used already",
        (Label(span, "this line does nothing"),),
        help="remove it",
        severity=Severity.WARNING,
    )
