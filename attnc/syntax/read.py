"""Reading `.attn` files: everything that can be wrong with one before its first token."""

from __future__ import annotations

from pathlib import Path

from attnc.diagnostics import CompileError
from attnc.source import SourceFile
from attnc.syntax import errors

MAX_BYTES = 1 << 20
"""The largest file that is read: 1 MiB."""


def read_source(path: Path, *, name: str | None = None) -> SourceFile:
    """Read a file.

    Args:
        path: the file.
        name: what diagnostics call it; the path as given unless said.

    Raises:
        CompileError: it cannot be read, is larger than 1 MiB, or is not UTF-8 text.
    """
    shown = name or str(path)
    try:
        if path.is_dir():
            raise CompileError(errors.cannot_read(shown, "it is a folder"))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise CompileError(errors.cannot_read(shown, "there is no such file")) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CompileError(errors.cannot_read(shown, reason.lower())) from None
    if len(data) > MAX_BYTES:
        raise CompileError(errors.file_too_large(shown))
    return SourceFile(shown, _decode(data, shown), path)


def check_text(source: SourceFile) -> None:
    """Hold a text that did not come from `read_source` against the same limits.

    Raises:
        CompileError: it is larger than 1 MiB in UTF-8, or holds a NUL character or a lone surrogate.
    """
    text = source.text
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise CompileError(errors.file_too_large(source.name))
    nul = text.find("\0")
    if nul >= 0:
        raise CompileError(errors.not_text(source.name, nul, "a NUL character"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CompileError(errors.not_text(source.name, error.start, "a lone surrogate")) from None


def _decode(data: bytes, shown: str) -> str:
    nul = data.find(b"\0")
    if nul >= 0:
        raise CompileError(errors.not_text(shown, nul, "a NUL byte"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{data[error.start]:02x}"
        raise CompileError(errors.not_text(shown, error.start, found)) from None
