"""Importing generated modules, and the folder where compiled patterns are remembered."""

from __future__ import annotations

import copyreg
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import platformdirs

_SEAL = "# sha256: "
"""The last line of a cached module: the digest of everything before it, by which a damaged one is recognised."""


BUILDING = threading.RLock()
"""Held while a module is looked for, written and run, so that no thread is given half of one.

Python 3.11 cannot make syntax trees in two threads at once, and both writing and running make some (PyTorch reads the
source of operators that launch kernels).
"""


class CacheWarning(UserWarning):
    """The cache could not be used as it should."""


def load_module(path: str | Path, name: str | None = None) -> ModuleType:
    """Import a generated module from a file.

    Args:
        path: of the file.
        name: of the module in `sys.modules`; by default made of the file's name and content, so that the same file is
            imported once.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path).resolve()
    name = name or _module_name(path.stem, path.read_bytes())
    with BUILDING:
        found = sys.modules.get(name)
        return _run(path, name) if found is None else found


def _run(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _pickle_by_file(module)
    return module


def rebuild_layer(name: str, path: str, class_name: str) -> object:
    """Return an instance without state of a generated module's class, for pickles that were made in another process.

    Args:
        name: of the module.
        path: of its file where the pickle was made.
        class_name: of the class.

    Raises:
        ModuleNotFoundError: the module is neither imported nor to be found.
    """
    module = sys.modules.get(name)
    if module is None:
        places = (Path(path), cache_folder() / Path(path).name)
        found = next((place for place in places if _holds(place, name)), None)
        if found is None:
            raise ModuleNotFoundError(
                f"{class_name} is of a compiled pattern that is neither imported here nor found as {path} or in the "
                f"cache folder {cache_folder()}: compile the same pattern first, as by `attnc.load`, then unpickle",
                name=name,
            )
        module = load_module(found, name)
    kind = getattr(module, class_name)
    return kind.__new__(kind)


def _holds(path: Path, name: str) -> bool:
    """Tell whether a file is the module of this name, which tells what is in it but for names that callers chose."""
    if not path.is_file():
        return False
    if name == f"attnc_cache_{path.stem}":
        return _is_whole(path)
    return not name.startswith("attnc_module_") or name == _module_name(path.stem, path.read_bytes())


def _pickle_by_file(module: ModuleType) -> None:
    """Have instances of a module's layers remember the file that they are of, since no import statement finds it."""
    layer = getattr(sys.modules.get("torch.nn"), "Module", None)
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and layer in kind.__mro__ and kind.__module__ == module.__name__:
            copyreg.pickle(kind, _reduce)


def _reduce(layer: object) -> tuple[Callable[..., object], tuple[str, ...], object]:
    kind = type(layer)
    file = str(sys.modules[kind.__module__].__file__)
    return rebuild_layer, (kind.__module__, file, kind.__name__), layer.__getstate__()


def cached_module(key: str, build: Callable[[], str], *, stem: str = "pattern") -> ModuleType:
    """Import the module of a key, from the cache folder if it is there.

    Two processes may do this at once: each writes a file of its own and renames it. A damaged entry is rebuilt, with a
    `CacheWarning`. Where the folder cannot be written, the module is built into a temporary one, with a warning.

    Args:
        key: names everything that the text depends on; `cache_key` makes one.
        build: returns the text of the module.
        stem: beginning of the file's name, for those who look.
    """
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    name = f"{_identifier(stem)}_{digest}"
    with BUILDING:
        found = sys.modules.get(f"attnc_cache_{name}")
        if found is not None:
            return found
        path = cache_folder() / f"{name}.py"
        if not _is_whole(path):
            path = _write(path, build())
        return load_module(path, f"attnc_cache_{name}")


def cache_key(*parts: object) -> str:
    """Return a key of everything that a module's text depends on, and of the versions of Python and torch."""
    import torch

    versions = (f"{sys.version_info.major}.{sys.version_info.minor}", ".".join(torch.__version__.split(".")[:2]))
    return "\0".join(repr(part) for part in (*parts, *versions))


def cache_folder() -> Path:
    """Return the folder of compiled patterns: `ATTNC_CACHE`, or the platform's place for such things."""
    chosen = os.environ.get("ATTNC_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("attnc", appauthor=False))


def outside_level() -> int:
    """Return the `stacklevel` by which a warning of the caller's points at the first line outside of this package."""
    package = str(Path(__file__).parent.parent) + os.sep
    level, frame = 1, inspect.currentframe()
    frame = frame.f_back if frame else None
    while frame is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level


def warn_of_cache(message: str) -> None:
    """Give a `CacheWarning` that points at the caller's own line."""
    warnings.warn(message, CacheWarning, stacklevel=outside_level())


def _is_whole(path: Path) -> bool:
    """Tell whether a cached file is there and undamaged; warn of a damaged one."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        warn_of_cache(f"the compiled pattern {path} cannot be read ({error}), and is built again")
        return False
    body, _, seal = text.rpartition(_SEAL.encode())
    if seal.decode("utf-8", "replace").strip() == hashlib.sha256(body).hexdigest():
        return True
    warn_of_cache(f"the compiled pattern {path} is damaged, and is built again")
    return False


def _write(path: Path, text: str) -> Path:
    """Write a sealed module in one step, so that no reader ever sees half of it."""
    body = text.encode()
    sealed = body + f"{_SEAL}{hashlib.sha256(body).hexdigest()}\n".encode()
    try:
        return replace_file(path, sealed)
    except OSError as error:
        warn_of_cache(f"the cache folder {path.parent} cannot be written ({error})")
        return replace_file(Path(tempfile.mkdtemp(prefix="attnc-")) / path.name, sealed)


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file in one step, so that no reader ever sees half of it; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _module_name(stem: str, content: bytes) -> str:
    return f"attnc_module_{_identifier(stem)}_{hashlib.sha256(content).hexdigest()[:16]}"


def _identifier(stem: str) -> str:
    return re.sub(r"\W", "_", stem, flags=re.ASCII)
