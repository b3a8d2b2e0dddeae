"""What cannot be traced, and where in the user's Python file it stands."""

from __future__ import annotations

import linecache
from pathlib import Path
from types import TracebackType

import torch

from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.source import SourceFile, Span

_PACKAGE = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)


class NotTraceableError(Exception):
    """Something in a `mask_mod` or `score_mod` that has no form in the language.

    Attributes:
        code, message, help: of the diagnostic.
    """

    def __init__(self, code: str, message: str, help: str) -> None:
        super().__init__(message)
        self.code, self.message, self.help = code, message, help


def unsupported(what: str, help: str = "") -> NotTraceableError:
    """Say that an operation has no form in the language."""
    return NotTraceableError(
        "flex-unsupported-operation",
        f"{what} has no form in the pattern language",
        help
        or "compute what does not depend on the positions outside, and capture the result as a tensor; or write the "
        "pattern by hand (LANGUAGE.md section 5 lists its functions)",
    )


def depends_on_value(what: str) -> NotTraceableError:
    """Say that Python asked for the value of a position or score."""
    return NotTraceableError(
        "flex-data-dependent",
        f"{what} needs the value of a position, a score or a captured tensor while the function is traced",
        "use tensor operations instead of Python's control flow and math: `torch.where` for `if`, `&`, `|`, `~` for "
        "`and`, `or`, `not`, `torch.exp` for `math.exp`",
    )


def as_compile_error(error: Exception, what: str) -> CompileError:
    """Turn what a traced function raised into a diagnostic at the line of the user's that raised it.

    Args:
        error: with its traceback.
        what: how the message calls the function: "the mask_mod `causal`".
    """
    place = _place(error.__traceback__)
    labels = () if place is None else (Label(place),)
    if isinstance(error, NotTraceableError):
        return CompileError(Diagnostic(error.code, f"{what} cannot be traced: {error.message}", labels, error.help))
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    return CompileError(
        Diagnostic(
            "flex-function-failed",
            f"{what} fails where FlexAttention would call it: {reason}",
            labels,
            "it is called as FlexAttention calls it: with scalar tensors, ints for positions and a float for the score",
        )
    )


def _place(traceback: TracebackType | None) -> Span | None:
    """Return the innermost place outside of torch and this package."""
    found = None
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith((_PACKAGE, _TORCH)):
            found = traceback
        traceback = traceback.tb_next
    return None if found is None else _span(found)


def _span(traceback: TracebackType) -> Span | None:
    code = traceback.tb_frame.f_code
    lines = linecache.getlines(code.co_filename, traceback.tb_frame.f_globals)
    number = traceback.tb_lineno
    if not 1 <= number <= len(lines):
        return None
    line = lines[number - 1].rstrip("\n")
    first, last = len(line) - len(line.lstrip()), len(line)
    positions = list(code.co_positions())[traceback.tb_lasti // 2]
    start_line, end_line, start, end = positions
    if start is not None and end is not None and start_line == end_line == number:
        raw = line.encode()  # columns count bytes
        first, last = len(raw[:start].decode(errors="replace")), len(raw[:end].decode(errors="replace"))
    before = sum(len(text) for text in lines[: number - 1])
    source = SourceFile(_relative(code.co_filename), "".join(lines))
    return Span(source, before + first, before + last, number, first + 1)


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
