"""The user's cache of tuned tiles: one readable JSON file for each device, safe with several processes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from attnc.runtime.load import cache_folder, replace_file, warn_of_cache
from attnc.runtime.tiles import ORDERS, Tiles
from attnc.runtime.tuned import LibraryCall, ProjectionForm, Slabs, Tuned, TunedTiles, forget_tuned, use_source

FORMAT = "attnc tuned tiles, 1"

LARGEST = {"query": 1024, "key": 1024, "warps": 32, "stages": 16, "chunk": 1024, "rows": 1024, "persistent": 32}
"""Numbers beyond which an entry is not one that was written here."""

WORDS = {"order": ORDERS}
"""What those that are no numbers may say."""

_NAMES = tuple(field.name for field in fields(TunedTiles) if field.name != "tiles")


@dataclass(frozen=True, slots=True)
class Measured:
    """An entry, and how it was found.

    Attributes:
        seconds: of a call with these tiles; None where nothing was measured.
        default_seconds: of one with the default tiles, in the same run.
        when: the day, as `2026-11-28`.
    """

    entry: TunedTiles
    seconds: float | None = None
    default_seconds: float | None = None
    when: str = ""


class MalformedTilesError(ValueError):
    """A file does not hold tuned tiles."""


def use_remembered_tiles() -> None:
    """Ask the user's cache for tiles from now on; modules that import the runtime do this."""
    use_source(_entries_of)


def store_path(device: str) -> Path:
    """Return the file of a device."""
    return cache_folder() / "tuned" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"


def _entries_of(device: str) -> list[TunedTiles]:
    return [one.entry for one in read_store(store_path(device)) if one.entry.device == device]


def read_store(path: Path) -> list[Measured]:
    """Read a file of the cache; a `CacheWarning` and nothing where it is damaged."""
    try:
        return parse_tuned(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, MalformedTilesError) as error:
        warn_of_cache(f"the tuned tiles in {path} cannot be read ({error}); the defaults are taken")
        return []


def remember_tuned(found: Iterable[Measured]) -> tuple[Path, ...]:
    """Write entries to the user's cache, in place of those for the same kernels and calls.

    Returns:
        The files that were written.

    Raises:
        OSError: the cache folder cannot be written.
    """
    from filelock import FileLock

    by_path: dict[Path, list[Measured]] = {}
    for one in found:
        by_path.setdefault(store_path(one.entry.device), []).append(one)
    for path, entries in by_path.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            replace_file(path, tuned_text(_merged(read_store(path), entries)).encode())
    forget_tuned()
    return tuple(by_path)


def _merged(old: Iterable[Measured], new: Iterable[Measured]) -> list[Measured]:
    found = {_name(one.entry): one for one in (*old, *new)}
    return [found[name] for name in sorted(found)]


def _name(entry: TunedTiles) -> tuple[Any, ...]:
    return tuple(getattr(entry, name) for name in _NAMES)


def tuned_text(found: Iterable[Measured]) -> str:
    """Return entries as the text of a file: an entry a line, so that people and tools for differences can read it."""
    lines = [f"    {json.dumps(_as_json(one))}" for one in found]
    body = ",\n".join(lines)
    return f'{{\n  "format": {json.dumps(FORMAT)},\n  "entries": [\n{body}\n  ]\n}}\n'


def _as_json(one: Measured) -> dict[str, Any]:
    tiles = one.entry.tiles
    more = {"seconds": one.seconds, "default_seconds": one.default_seconds, "when": one.when or None}
    more = {key: value for key, value in more.items() if value is not None}
    named: dict[str, Any] = {name: getattr(one.entry, name) for name in _NAMES}
    if isinstance(tiles, LibraryCall):
        return named | {"library": tiles.name} | more
    if isinstance(tiles, ProjectionForm):
        return named | {"form": tiles.name} | more
    shape = {part.name: getattr(tiles, part.name) for part in fields(tiles)}
    told = {part.name: shape[part.name] for part in fields(tiles) if shape[part.name] != part.default}
    kind = "slabs" if isinstance(tiles, Slabs) else "tiles"
    return named | {kind: told} | more


def parse_tuned(text: str) -> list[Measured]:
    """Read the text of a file of tuned tiles.

    Raises:
        MalformedTilesError: it is none; says where.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedTilesError(f"it is not JSON: {error}") from None
    if not isinstance(whole, Mapping) or whole.get("format") != FORMAT:
        raise MalformedTilesError(f'it has no "format": "{FORMAT}"')
    entries = whole.get("entries")
    if not isinstance(entries, list):
        raise MalformedTilesError('its "entries" are not a list')
    return [_parse(number, entry) for number, entry in enumerate(entries, start=1)]


def _parse(number: int, given: Any) -> Measured:
    if not isinstance(given, Mapping):
        raise MalformedTilesError(f"entry {number} is not an object")
    kinds = {field.name: field.type for field in fields(TunedTiles)}
    values = {name: _value(number, given, name, {"str": str, "int": int}[str(kinds[name])]) for name in _NAMES}
    if "library" in given:
        tiles: Tuned = LibraryCall(_library(number, given["library"]))
    elif "form" in given:
        tiles = ProjectionForm(_form(number, given["form"]))
    elif "slabs" in given:
        tiles = Slabs(**_shape(number, given["slabs"], Slabs, powers=("rows",)))
    else:
        tiles = Tiles(**_shape(number, given.get("tiles"), Tiles, powers=("query", "key", "warps")))
    times = [_seconds(number, given.get(name)) for name in ("seconds", "default_seconds")]
    return Measured(TunedTiles(**values, tiles=tiles), times[0], times[1], str(given.get("when", "")))


def _library(number: int, given: object) -> str:
    if given != LibraryCall().name:
        raise MalformedTilesError(f'entry {number}: "library" is {given!r}')
    return LibraryCall().name


def _form(number: int, given: object) -> str:
    if not isinstance(given, str) or not re.fullmatch(r"[a-z0-9][a-z0-9, ]{0,39}", given):
        raise MalformedTilesError(f'entry {number}: "form" is {given!r}')
    return given


def _seconds(number: int, given: object) -> float | None:
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool)):
        return given
    raise MalformedTilesError(f"entry {number}: a time is not a number")


def _value(number: int, given: Mapping[str, Any], name: str, kind: type) -> Any:
    value = given.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        wanted = "a string" if kind is str else "a positive int"
        raise MalformedTilesError(f'entry {number}: "{name}" is not {wanted}')
    return value


def _shape(number: int, given: Any, kind: type, powers: tuple[str, ...]) -> dict[str, Any]:
    """Read what tiles or slabs are made of; what is left out has its default, if it has one."""
    known = {field.name: str(field.type) for field in fields(kind)}
    wanted = f"entry {number}: {'tiles' if kind is Tiles else 'slabs'}"
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise MalformedTilesError(f"{wanted} are not an object with {', '.join(known)}")
    if kind is Tiles and not {"query", "key", "warps", "stages"} <= set(given):
        raise MalformedTilesError(f"{wanted} lack one of query, key, warps, stages")
    for name, value in given.items():
        if not _is_possible(name, value, known[name], powers):
            raise MalformedTilesError(f'{wanted}: "{name}" is {value!r}')
    return dict(given)


def _is_possible(name: str, value: Any, kind: str, powers: tuple[str, ...]) -> bool:
    if kind == "str":
        return value in WORDS[name]
    if kind.startswith("bool") or isinstance(value, bool):
        return kind.startswith("bool") and isinstance(value, bool)
    return _is_size(name, value, powers)


def _is_size(name: str, value: Any, powers: tuple[str, ...]) -> bool:
    if not isinstance(value, int) or not 0 <= value <= LARGEST[name]:
        return False
    return name not in powers or (value & (value - 1) == 0 and (value > 0 or name == "rows"))
