"""Importing modules and the cache of compiled patterns."""

import multiprocessing
import sys

import pytest

from attnc.runtime.load import CacheWarning, cache_folder, cache_key, cached_module, load_module


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name in [name for name in sys.modules if name.startswith("attnc_cache_")]:
        del sys.modules[name]


def forget():
    for name in [name for name in sys.modules if name.startswith("attnc_cache_")]:
        del sys.modules[name]


def test_a_module_is_built_once(folder):
    built = []

    def build():
        built.append(1)
        return "answer = 42\n"

    assert cached_module("one", build).answer == 42
    assert cached_module("one", build).answer == 42
    forget()
    assert cached_module("one", build).answer == 42
    assert built == [1]
    assert cached_module("two", build).answer == 42
    assert built == [1, 1]
    assert len(list(folder.glob("*.py"))) == 2
    assert list(folder.glob("*.tmp")) == []


@pytest.mark.parametrize("damage", [b"", b"answer = 13\n", b"\xff\xfe", b"answer = 41\n# sha256: 00\n"])
def test_a_damaged_entry_is_rebuilt_with_a_warning(folder, damage):
    cached_module("one", lambda: "answer = 42\n")
    (path,) = folder.glob("*.py")
    path.write_bytes(damage)
    forget()
    with pytest.warns(CacheWarning, match="damaged"):
        assert cached_module("one", lambda: "answer = 42\n").answer == 42
    forget()
    assert cached_module("one", lambda: pytest.fail("built again")).answer == 42


def test_a_truncated_entry_is_rebuilt(folder):
    cached_module("one", lambda: "answer = 42\n" * 100)
    (path,) = folder.glob("*.py")
    path.write_bytes(path.read_bytes()[:400])
    forget()
    with pytest.warns(CacheWarning):
        assert cached_module("one", lambda: "answer = 42\n").answer == 42


def test_a_folder_that_cannot_be_written_does_not_stop_anyone(folder, monkeypatch):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be")
    with pytest.warns(CacheWarning, match="cannot be"):
        assert cached_module("one", lambda: "answer = 42\n").answer == 42


def test_a_failed_build_leaves_nothing(folder):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_module("one", fail)
    assert not folder.exists() or list(folder.iterdir()) == []


def load_in_process(number):
    return cached_module("shared", lambda: "answer = 42\n" + "# padding\n" * 20000).answer + number - number


def test_many_processes_at_once(folder):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(load_in_process, range(12)) == [42] * 12
    assert len(list(folder.glob("*.py"))) == 1


def test_keys_tell_apart():
    assert cache_key("a", {"w": 1}) != cache_key("a", {"w": 2})
    assert cache_key("a", "b") != cache_key("ab")
    assert cache_folder().name == "cache"


def test_load_module(tmp_path):
    path = tmp_path / "some-module.py"
    path.write_text("answer = 1\n")
    module = load_module(path)
    assert module.answer == 1
    assert load_module(path) is module
    path.write_text("answer = 2\n")
    assert load_module(path).answer == 2
    path.write_text("raise RuntimeError('broken')\n")
    with pytest.raises(RuntimeError, match="broken"):
        load_module(path)
    with pytest.raises(FileNotFoundError):
        load_module(tmp_path / "missing.py")
