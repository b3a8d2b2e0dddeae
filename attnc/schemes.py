"""The scheme that a `via` names: read, proven exact, priced, and with a bound on its error."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from attnc.algebra.bilinear.leveled import LeveledScheme
from attnc.algebra.bilinear.prices import DEVICES
from attnc.algebra.bilinear.reading import MAX_BYTES, read_scheme
from attnc.algebra.bilinear.scheme import Scheme, SchemeError
from attnc.diagnostics import CompileError, Diagnostic, Label, Severity
from attnc.ir.matrices import dense_products, layer_matrices, layer_sizes
from attnc.ir.nodes import Const
from attnc.ir.program import Layer, Via
from attnc.resources import schemes_directory
from attnc.runtime.scheme_steps import SchemeSteps, plan_steps
from attnc.source import Span

MOST_PRODUCTS = 1 << 17
"""Products of blocks that all levels together may ask for: 6 levels of a scheme of 7."""

MANY_ROWS = 1 << 20
"""Rows for which a scheme is priced where their number is known at a call only; its price a row falls with them."""


def scheme_of(form: str, path: Path | None, levels: int) -> LeveledScheme:
    """Read, prove and order the scheme of a form.

    Args:
        form: `strassen`, `winograd` or `bilinear`.
        path: the file of `bilinear`; None for the other forms.
        levels: how often it is applied.

    Raises:
        SchemeError: the file cannot be read, is no exact scheme, or there are too many levels.
    """
    if path is None:
        path = schemes_directory() / f"{form}.json"
    scheme, steps = _prepared(_read(path))
    if levels < 1:
        raise SchemeError("scheme-levels", f"cannot be applied {levels} times", help="levels count from 1")
    if levels > MOST_PRODUCTS.bit_length() or scheme.rank**levels > MOST_PRODUCTS:
        raise SchemeError(
            "scheme-levels",
            f"has too many levels: {scheme.rank} ** {levels} products, more than {MOST_PRODUCTS}",
            help="more levels than two or three are slower at any size that fits into memory",
        )
    return LeveledScheme(scheme, levels, steps.additions, sum(steps.depths))


def scheme_named(name: str, levels: int) -> LeveledScheme:
    """Return a scheme that attnc carries, or that of a file.

    Args:
        name: such as `laderman`, or a path.
        levels: how often it is applied.

    Raises:
        CompileError: as `scheme_of` does.
    """
    carried = schemes_directory() / f"{name}.json"
    is_carried = name.isidentifier() and carried.is_file()
    try:
        if not is_carried and not Path(name).exists():
            names = ", ".join(sorted(path.stem for path in schemes_directory().glob("*.json")))
            raise SchemeError(
                "scheme-not-found", "is neither a file nor a scheme that attnc carries", help=f"it carries {names}"
            )
        return scheme_of("bilinear", carried if is_carried else Path(name), levels)
    except SchemeError as error:
        raise CompileError(_diagnostic(error, f"`{name}`", None)) from None


def module_text(found: LeveledScheme, name: str) -> str:
    """Return a module with the scheme and its fused kernels; the scheme is called as the file, in capitals."""
    stem = re.sub(r"\W", "_", Path(name).stem, flags=re.ASCII).strip("_") or "scheme"
    from attnc.codegen.render_scheme import render_scheme_module

    return render_scheme_module(found.scheme, f"SCHEME_{stem}".upper() if stem[0].isdigit() else stem.upper())


def scheme_of_via(via: Via) -> LeveledScheme:
    """Return the scheme of a `via`, whose file is relative to the pattern and inside its folder's tree.

    Raises:
        CompileError: what `scheme_of` refuses, and files elsewhere.
    """
    arguments = dict(via.arguments)
    written, levels = arguments.get("file"), arguments["levels"]
    assert isinstance(levels, Const)
    try:
        path = _locate(written, via.span) if isinstance(written, str) else None
        return scheme_of(via.form, path, int(levels.value))
    except SchemeError as error:
        raise CompileError(_diagnostic(error, _name(via), via.span)) from None


def check_sizes(found: LeveledScheme, via: Via, *, inner: int, columns: int) -> None:
    """Refuse levels that cut a known weight into blocks of less than one row or column.

    Args:
        found: the scheme of `via`.
        via: where it is asked for.
        inner: features that go into the projection.
        columns: features that come out of it.
    """
    _, across, down = found.divisors
    for size, divisor, what in ((inner, across, "in"), (columns, down, "out")):
        if size < divisor:
            error = SchemeError(
                "scheme-levels",
                f"needs at least {divisor} features for {found.levels} levels, and {size} go {what}",
                help="use fewer levels",
            )
            raise CompileError(_diagnostic(error, _name(via), via.span))


def loss_warning(found: LeveledScheme, via: Via, *, inner: int, columns: int) -> Diagnostic | None:
    """Return a warning if a projection of these sizes is expected to be slower than the library's on every device."""
    sizes = (MANY_ROWS, inner, columns)
    best = max(found.gain(sizes, rates) for rates in DEVICES)
    if best > 1:
        return None
    least, where = min((found.break_even(rates), rates.name) for rates in DEVICES)
    return Diagnostic(
        "scheme-loses",
        f"{_name(via)} is expected to be slower than the plain product for {inner} features in and {columns} out",
        () if via.span is None else (Label(via.span, f"at best {best:.2f} times as fast"),),
        help="leave out `via`, or use fewer levels",
        notes=(f"square products break even at {_size_text(least)} at the earliest, on {where}",),
        severity=Severity.WARNING,
    )


def schemes_of_layer(layer: Layer) -> tuple[dict[Via, LeveledScheme], list[Diagnostic]]:
    """Return the scheme of each `via` of a layer, and what is to be said of them: mistakes, and schemes that lose."""
    sizes = layer_sizes(layer)
    found: dict[Via, LeveledScheme] = {}
    told: list[Diagnostic] = []
    for matrix in () if sizes is None else layer_matrices(layer, sizes):
        via = matrix.projection.via
        if via is None:
            continue
        try:
            scheme = found.setdefault(via, scheme_of_via(via))
            for inner, columns in dense_products(matrix):
                check_sizes(scheme, via, inner=inner, columns=columns)
                warning = loss_warning(scheme, via, inner=inner, columns=columns)
                told += [] if warning is None else [warning]
        except CompileError as error:
            told += error.diagnostics
    return found, list(dict.fromkeys(told))


def describe_scheme(found: LeveledScheme, *, brief: bool = False) -> tuple[str, ...]:
    """Return lines on a scheme for people: its cost, its error, where it breaks even, and unless `brief` its source."""
    scheme, accuracy = found.scheme, found.accuracy
    left, right, out = found.additions
    name = f"{scheme.name} {scheme.title}" if scheme.name else scheme.title
    lines = [
        f"{name}, {found.levels} {'level' if found.levels == 1 else 'levels'}",
        f"exact over the rationals; {float(scheme.saving**found.levels):.3f} of the multiplications",
        f"{left} + {right} + {out} = {left + right + out} additions of blocks a level",
        f"error bound {accuracy.factor(found.levels):.3g} times that of the plain product, for large inner sizes",
    ]
    sizes = sorted((found.break_even(rates), rates.name) for rates in DEVICES)
    if brief:
        least, where = sizes[0]
        return (*lines, f"square products break even at {_size_text(least)} at the earliest, on {where}")
    lines += [f"square products break even at {_size_text(size)} on {where}" for size, where in sizes]
    return (*lines, *((f"source: {scheme.source}",) if scheme.source else ()))


def scheme_json(found: LeveledScheme) -> dict[str, Any]:
    """Return the same for machines; a break-even size is null where there is none."""
    scheme, accuracy = found.scheme, found.accuracy
    sizes = {rates.name: found.break_even(rates) for rates in DEVICES}
    return {
        "name": scheme.name,
        "source": scheme.source,
        "shape": [scheme.m, scheme.k, scheme.n],
        "rank": scheme.rank,
        "levels": found.levels,
        "additions": list(found.additions),
        "growth": float(accuracy.growth),
        "depth": accuracy.depth,
        "error_factor": accuracy.factor(found.levels),
        "break_even": {name: None if size == float("inf") else round(size) for name, size in sizes.items()},
    }


def _size_text(size: float) -> str:
    return "no size" if size == float("inf") else f"{size:,.0f}"


@lru_cache(maxsize=32)
def _prepared(data: bytes) -> tuple[Scheme, SchemeSteps]:
    scheme = read_scheme(data)
    return scheme, plan_steps(*float_rows(scheme))


def float_rows(scheme: Scheme) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Return the three matrices of a scheme as floats."""
    matrices = (scheme.left, scheme.right, scheme.out)
    return tuple(tuple(tuple(float(entry) for entry in row) for row in matrix) for matrix in matrices)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SchemeError("scheme-not-found", "does not exist", help="the path is relative to the pattern") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SchemeError("scheme-not-found", f"cannot be read: {reason.lower()}") from None


def _locate(written: str, span: Span | None) -> Path:
    """Return the file that a pattern names: relative to the pattern's file, inside its folder's tree."""
    source = None if span is None else span.source.path
    if source is None:
        raise SchemeError(
            "scheme-not-found",
            "has no place to start from: this text was not read from a file",
            help="save it to a file",
        )
    mend = "a pattern may use files in its own folder and in folders below it; copy or move the file there"
    if Path(written).is_absolute() or written.startswith(("/", "\\")):
        raise SchemeError("scheme-outside-folder", "is an absolute path", help=mend)
    folder = source.resolve().parent
    try:
        path = (folder / written).resolve()
    except (OSError, ValueError, RuntimeError):  # a name that the system refuses, or a loop of links
        raise SchemeError("scheme-not-found", "does not exist") from None
    if not path.is_relative_to(folder):
        raise SchemeError("scheme-outside-folder", "is outside the folder of the pattern", help=mend)
    return path


def _name(via: Via) -> str:
    written = dict(via.arguments).get("file")
    return f"`{written}`" if isinstance(written, str) else f"`{via.form}`"


def _diagnostic(error: SchemeError, name: str, span: Span | None) -> Diagnostic:
    labels = () if span is None else (Label(span),)
    return Diagnostic(error.code, f"{name} {error.message}", labels, help=error.help, notes=error.notes)
