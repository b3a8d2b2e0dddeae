"""The scope of a file: the prelude, the definitions of the files that it uses, and its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath

from attnc.diagnostics import CompileError
from attnc.ir.nodes import IndexName, Parameter, Score, SizeName
from attnc.sema import errors
from attnc.sema.context import Context, Workshop
from attnc.sema.declarations import check_type, declare
from attnc.sema.expressions import check
from attnc.sema.functions import FUNCTIONS, QUANTIFIERS
from attnc.sema.scopes import (
    BuiltinMeaning,
    DefinitionMeaning,
    IndexMeaning,
    Meaning,
    OperationMeaning,
    OriginalKeysMeaning,
    QuantityMeaning,
    Scope,
    ScoreMeaning,
    SizeMeaning,
    nearest,
)
from attnc.source import SourceFile, Span
from attnc.syntax import tree
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source

Operation = Callable[[tree.Attention | tree.Layer, Context], None]
"""What to do with an attention or layer of the first file."""

MAX_CHAIN = 50
"""How long a chain of files may be that use each other."""


@dataclass(slots=True)
class Opened:
    """Files that one check reads.

    Attributes:
        root: the folder that all of them lie in; None if the first one is text without a file.
        scopes: what each file declares, by its real path, once it was read.
        chain: real path and shown name of the files that are being read, outermost first.
    """

    workshop: Workshop
    root: Path | None
    scopes: dict[Path, Scope] = field(default_factory=dict)
    chain: list[tuple[Path | None, str]] = field(default_factory=list)


@cache
def language_scope() -> Scope:
    """Return the outermost scope: functions, indices and sizes."""
    names: dict[str, Meaning] = {name: BuiltinMeaning(name) for name in (*FUNCTIONS, *QUANTIFIERS)}
    for index in (IndexName.BATCH, IndexName.HEAD, IndexName.QUERY, IndexName.KEY, IndexName.ROW):
        names[index.value] = IndexMeaning(index)
    for size in SizeName:
        names[size.value] = SizeMeaning(size)
    names["s"] = ScoreMeaning()
    names["K"] = OriginalKeysMeaning()
    return Scope(None, names)


@cache
def prelude_scope() -> Scope:
    """Return the scope of the prelude, inside that of the language."""
    path = Path(__file__).parent.parent / "syntax" / "prelude.attn"
    file = parse_source(SourceFile("<prelude>", path.read_text(encoding="utf-8"), path))
    workshop = Workshop()
    scope = Scope(language_scope())
    for declaration in file.declarations:
        if isinstance(declaration, tree.Def):
            _declare_definition(declaration, Context(workshop, scope))
    workshop.report.raise_errors()
    return scope


def open_file(file: tree.File, workshop: Workshop, operation: Operation) -> None:
    """Check the declarations of the file that the user gave, in order.

    Args:
        file: its tree.
        workshop: takes the mistakes.
        operation: checks an attention or layer; what stands above it is visible then.
    """
    path = file.source.path.resolve() if file.source.path is not None else None
    opened = Opened(workshop, path.parent if path is not None else None)
    opened.chain.append((path, file.source.name))
    _file_scope(file, opened, operation)


def _file_scope(file: tree.File, opened: Opened, operation: Operation | None) -> Scope:
    """Return what a file declares. Without `operation`, its attentions and layers are left alone."""
    workshop = opened.workshop
    workshop.report.sources.append(file.source)
    used = Scope(prelude_scope())
    scope = Scope(used, later=_later(file), references=_references(file))
    context = Context(workshop, scope)
    seen: set[Path] = set()
    for declaration in file.declarations:
        match declaration:
            case tree.Use():
                _use(declaration, file.source, used, seen, opened)
            case tree.Def():
                _declare_definition(declaration, context)
            case tree.Attention() | tree.Layer():
                if operation is not None:
                    operation(declaration, context)
                declare(declaration.name, OperationMeaning(declaration, scope.as_of_now()), context)
    return scope


def _later(file: tree.File) -> dict[str, Span]:
    return {d.name.text: d.name.span for d in reversed(file.declarations) if not isinstance(d, tree.Use)}


def _references(file: tree.File) -> dict[str, frozenset[str]]:
    return {d.name.text: _mentioned(d) for d in file.declarations if isinstance(d, tree.Def)}


def _mentioned(definition: tree.Def) -> frozenset[str]:
    found: set[str] = set()
    pending = [definition.body]
    while pending:
        expr = pending.pop()
        match expr:
            case tree.Name(text=text) | tree.Call(function=tree.Name(text=text)):
                found.add(text)
            case _:
                pass
        pending.extend(tree.operands(expr))
    return frozenset(found - {param.name.text for param in definition.params})


def _declare_definition(definition: tree.Def, context: Context) -> None:
    """Check a definition on its own, with stand-ins for its arguments, and declare it."""
    report, scope = context.report, context.scope
    before = len(report.found)
    names: dict[str, Meaning] = {}
    inner = context.inside(names)
    for param in definition.params:
        kind = check_type(param.type, context) if param.type is not None else None
        stand_in = Parameter(param.name.text, kind, span=param.name.span) if kind is not None else None
        declare(param.name, QuantityMeaning(stand_in, param.name.span), inner)
    scope.current = definition.name.text
    inner = Context(inner.workshop, inner.scope, score=Score(), shortened=True)
    body = check(definition.body, inner)
    scope.current = None
    may_be_unknown = any(param.type is None for param in definition.params)
    broken = len(report.found) > before or (body is None and not may_be_unknown)
    declare(definition.name, DefinitionMeaning(definition, scope.as_of_now(), broken), context)


def _use(use: tree.Use, user: SourceFile, used: Scope, seen: set[Path], opened: Opened) -> None:
    """Make the definitions of another file visible in `used`."""
    report = opened.workshop.report
    path = _locate(use, user, opened)
    if path is None:
        used.incomplete = True
        return
    if path in seen:
        report.add(errors.used_twice(use.path.span, use.path.value))
        return
    seen.add(path)
    scope = opened.scopes.get(path)
    if scope is None:
        scope = _read(use, path, user, opened)
        if scope is None:
            used.incomplete = True
            return
        opened.scopes[path] = scope
    if scope.may_lack_names:
        used.incomplete = True
    for name, meaning in scope.names.items():
        if not isinstance(meaning, DefinitionMeaning):
            continue
        first = used.names.get(name)
        if isinstance(first, DefinitionMeaning):
            report.add(errors.used_names_clash(use.path.span, name, first.span, meaning.span))
        used.declare(name, meaning)


def _locate(use: tree.Use, user: SourceFile, opened: Opened) -> Path | None:
    """Return the real path of a used file that may be read, or None after telling why it may not."""
    report, span, written = opened.workshop.report, use.path.span, use.path.value
    if opened.root is None or user.path is None:
        report.add(errors.use_without_file(span))
        return None
    if Path(written).is_absolute() or written.startswith(("/", "\\")):
        report.add(errors.use_absolute(span))
        return None
    folder = user.path.resolve().parent
    try:
        path = (folder / written).resolve()
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that the system refuses, or a loop of links
        report.add(errors.use_not_found(span, written, None))
        return None
    if not path.is_relative_to(opened.root):
        report.add(errors.use_outside(span, written))
        return None
    chain = [one for one, _ in opened.chain]
    if path in chain:
        names = [name for _, name in opened.chain[chain.index(path) :]]
        report.add(errors.use_circular(span, (*names, names[0])))
        return None
    if not exists:
        report.add(errors.use_not_found(span, written, _neighbour(folder, written)))
        return None
    if len(opened.chain) >= MAX_CHAIN:
        report.add(errors.use_too_deep(span, MAX_CHAIN))
        return None
    return path


def _neighbour(folder: Path, written: str) -> str | None:
    """Return the file that was probably meant."""
    wanted = PurePosixPath(written)
    try:
        names = sorted(entry.name for entry in (folder / wanted.parent).iterdir() if entry.suffix == ".attn")
    except (OSError, ValueError):
        return None
    close = nearest(wanted.name, names)
    return str(wanted.parent / close) if close is not None else None


def _read(use: tree.Use, path: Path, user: SourceFile, opened: Opened) -> Scope | None:
    report = opened.workshop.report
    shown = _shown(user.name, use.path.value)
    opened.chain.append((path, shown))
    try:
        file = parse_source(read_source(path, name=shown))
        return _file_scope(file, opened, None)
    except CompileError as error:
        for diagnostic in error.diagnostics:
            known = diagnostic.labels
            report.add(diagnostic if known else errors.use_unreadable(use.path.span, use.path.value, diagnostic))
        return None
    finally:
        opened.chain.pop()


def _shown(user: str, written: str) -> str:
    """Return what diagnostics call a used file: its path from where the user stands."""
    parts: list[str] = []
    for part in (PurePosixPath(user.replace("\\", "/")).parent / written).parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        elif part != ".":
            parts.append(part)
    return str(PurePosixPath(*parts))
