"""Real text that every Python has: its licence, its language reference and the documentation strings of its modules.

Modules are parsed and never imported, since importing some of them has effects. Files are read in sorted order, so one
version of Python always gives the same text.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from language_model.mistakes import MistakeError

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
"""Folders beside the library's modules: what was installed into them, and tests, which say little in prose."""

TOPICS = Path("pydoc_data", "topics.py")
"""The language reference as `help()` shows it: one long string a topic."""

VALIDATION = 10
"""One document in so many is kept for validation."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Bytes to learn from, and bytes of other documents to validate on.

    Attributes:
        training: uint8, one dimension.
        validation: the same.
        documents: how many there are of both.
    """

    training: Tensor
    validation: Tensor
    documents: int

    def draw(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return bytes at random places (count, length), and the byte that follows each of them."""
        starts = torch.randint(len(self.training) - length, (count,), generator=generator)
        return _windows(self.training, starts, length)

    def held_out(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return windows as `draw` does, spread evenly over the text for validation: always the same ones."""
        starts = torch.linspace(0, len(self.validation) - length - 1, count).long()
        return _windows(self.validation, starts, length)


def read_corpus(most: int, length: int) -> Corpus:
    """Collect up to `most` bytes.

    Raises:
        MistakeError: there is too little for windows of this length.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    size, count = 0, 0
    seen: set[str] = set()
    for document in _documents():
        if document in seen:  # a copy in both parts would be validated on what was learnt by heart
            continue
        if size >= most:
            break
        seen.add(document)
        parts[count % VALIDATION == VALIDATION - 1].append(document)
        size += len(document.encode())
        count += 1
    training, validation = (_as_bytes("\n\n".join(part)) for part in parts)
    least = min(len(training), len(validation))
    if least <= length:
        raise MistakeError(
            f"the text is too short: its parts for training and validation have {len(training):,} and "
            f"{len(validation):,} bytes, and a window takes {length + 1:,}; raise --text-bytes or lower --length"
        )
    return Corpus(training, validation, count)


def _documents() -> Iterator[str]:
    """Yield the licence, then what each file of the library documents."""
    library = Path(sysconfig.get_path("stdlib"))
    for place in (library / "LICENSE.txt", library.parent / "LICENSE.txt"):  # `license()` looks in both
        if place.is_file():
            yield place.read_text(encoding="utf-8", errors="replace")
            break
    files = ((path.relative_to(library), path) for path in library.rglob("*.py"))
    for name, path in sorted(files, key=lambda pair: pair[0].as_posix()):
        if NOT_THE_LIBRARY.isdisjoint(name.parts):
            yield from _strings(path, topics=name == TOPICS)


def _strings(path: Path, *, topics: bool) -> Iterator[str]:
    """Yield the documentation strings of a module, or its topics; nothing where it cannot be read or parsed."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if topics and isinstance(node, ast.Dict):
            values = (value for value in node.values if isinstance(value, ast.Constant))
            yield from (value.value for value in values if isinstance(value.value, str))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode("utf-8", "replace")), dtype=torch.uint8)


def _windows(text: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    taken = text[starts[:, None] + torch.arange(length + 1)].long()
    return taken[:, :-1], taken[:, 1:]
