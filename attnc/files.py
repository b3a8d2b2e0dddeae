"""Reading patterns and writing results: whole files or nothing, and precise words when neither is possible."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from attnc.diagnostics import CompileError, Diagnostic
from attnc.source import SourceFile
from attnc.syntax.read import MAX_BYTES, read_source

STANDARD = "-"
"""The file name that stands for standard input, or for standard output."""


def read_pattern(name: str | Path) -> SourceFile:
    """Read a pattern from a file, or from standard input where the name is `-`.

    Files that a pattern on standard input `use`s are looked for where the user stands.

    Raises:
        CompileError: the file is missing, unreadable, a directory, too large or not UTF-8 text.
    """
    if str(name) != STANDARD:
        return read_source(Path(name), name=str(name))
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    return SourceFile("<stdin>", data.decode("utf-8", "surrogateescape"), Path.cwd() / "<stdin>")


def write_text(name: str | Path, text: str) -> None:
    """Write a text file as a whole: readers see the old file or the new one, and an error leaves nothing behind.

    Raises:
        CompileError: the place cannot be written.
    """
    write_bytes(name, text.encode())


def write_bytes(name: str | Path, data: bytes) -> None:
    """Write a file as `write_text` does.

    Raises:
        CompileError: the place cannot be written.
    """
    path = Path(name)
    try:
        if path.is_dir():
            raise _problem(f"`{name}` is a directory", "name a file to write")
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a device or a pipe: there is nothing to rename
        else:
            _replace(path.resolve(), data)
    except (OSError, ValueError) as error:
        raise cannot_write(name, error) from None


def require_writable(name: str | Path, *inputs: str | Path) -> None:
    """Fail early where a result of long work could not be written, or would replace its own input.

    Raises:
        CompileError: `name` is a directory, has no writable folder, or is one of `inputs`.
    """
    path = Path(name)
    try:
        if any(path.exists() and Path(other).exists() and path.samefile(other) for other in inputs):
            raise _problem(f"`{name}` is the pattern itself", "write to another file")
        if path.is_dir():
            raise _problem(f"`{name}` is a directory", "name a file to write")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise _problem(f"`{name}` cannot be written: there is no folder `{path.parent}`")
        if not path.exists() and not os.access(folder, os.W_OK):
            raise _problem(f"`{name}` cannot be written: its folder is read-only")
    except (OSError, ValueError) as error:
        raise cannot_write(name, error) from None


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def cannot_write(name: str | Path, error: OSError | ValueError) -> CompileError:
    """Return the error that says why `name` could not be written."""
    return _problem(f"`{name}` cannot be written: {_reason(error)}")


def _problem(message: str, help: str = "") -> CompileError:
    return CompileError(Diagnostic("cannot-write", message, help=help))


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
