"""The package from Python: public names, errors, the cache."""

import pickle
import subprocess
import sys
import threading
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

import attnc
from attnc.compiler import PatternWarning

ROOT = Path(__file__).parents[2]
PATTERN = "attention local(width: int = 8) { mask causal and i - j < width }\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "local.attn").write_text(PATTERN)
    return tmp_path


def tensors(length=20):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, length, 16, generator=generator) for _ in range(3)]


def test_public_names():
    assert set(attnc.__all__) == {"CompileError", "check", "compile", "explain", "from_flex", "load", "loads"}
    for name in attnc.__all__:
        assert callable(getattr(attnc, name))
        assert name in dir(attnc)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        attnc.nothing  # noqa: B018
    assert attnc.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_public_functions_stay_functions_when_submodules_are_imported():
    code = (
        "import attnc, pkgutil, importlib\n"
        "names = [m.name for m in pkgutil.iter_modules(attnc.__path__)]\n"
        "assert not set(names) & set(attnc.__all__), names\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_is_light():
    heavy = ("torch", "lark", "islpy", "sympy", "rich", "typer")
    code = f"import sys, attnc; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_load_specialises_and_remembers(place):
    one, two = attnc.load("local.attn"), attnc.load("local.attn", width=3)
    query, key, value = tensors()
    assert not torch.allclose(one.local(query, key, value), two.local(query, key, value))
    assert attnc.load("local.attn") is one
    files = sorted(path.name for path in (place / "cache").iterdir())
    assert len(files) == 2
    (place / "local.attn").write_text(PATTERN.replace("8", "3"))
    again = attnc.load("local.attn")
    assert torch.equal(again.local(query, key, value), two.local(query, key, value))


def test_modules_that_were_loaded_can_be_pickled(place):
    layer = attnc.loads("attention p { learned t: float[H] = h\n score s * t[h] }").P(H=3)
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is type(layer)
    assert torch.equal(again.t, layer.t)


def test_load_follows_files_that_are_used(place):
    (place / "defs.attn").write_text("def near = i - j < 2\n")
    (place / "main.attn").write_text('use "defs.attn"\nattention main { mask causal and near }\n')
    query, key, value = tensors()
    before = attnc.load("main.attn").main(query, key, value)
    (place / "defs.attn").write_text("def near = i - j < 5\n")
    assert not torch.allclose(attnc.load("main.attn").main(query, key, value), before)


def test_loads_and_compile_agree(place):
    query, key, value = tensors()
    path = attnc.compile("local.attn", out="made.py", params={"width": 3})
    assert path == Path("made.py")
    scope = {}
    exec(compile(path.read_text(), "made.py", "exec"), scope)
    expected = attnc.loads(PATTERN, width=3).local(query, key, value)
    assert torch.equal(scope["local"](query, key, value), expected)


def test_errors_are_rendered_diagnostics(place):
    with pytest.raises(attnc.CompileError) as caught:
        attnc.loads("attention a { mask i - j }")
    assert str(caught.value) == (
        "error[mask-not-boolean]: a mask must be true or false\n"
        "  --> <string>:1:20\n"
        "   |\n"
        " 1 | attention a { mask i - j }\n"
        "   |                    ^^^^^ this is an int\n"
        "help: compare it, for example `i - j < window`"
    )
    with pytest.raises(attnc.CompileError, match="cannot-read"):
        attnc.check("missing.attn")
    with pytest.raises(attnc.CompileError, match="cannot-write"):
        attnc.compile("local.attn", out="no/where.py")
    assert not list(place.glob("*.py"))


def test_mistakes_of_several_attentions_are_told_together(place):
    text = "attention a { mask i - j < 3; assert causal }\nattention b { mask j < i; assert nonempty }\n"
    with pytest.raises(attnc.CompileError) as caught:
        attnc.loads(text)
    assert [one.code for one in caught.value.diagnostics] == ["assertion-false", "assertion-false"]
    assert [one.labels[0].span.line for one in caught.value.diagnostics] == [1, 2]


def test_warnings_are_python_warnings(place):
    text = "attention a { input t: float[M]\n score s + t[i + j] }"
    for _ in range(2):  # the second time, the module comes from the cache
        with pytest.warns(PatternWarning, match="index-may-leave-table") as told:
            attnc.loads(text)
        assert len(told) == 1
    (place / "warn.attn").write_text(text)
    (found,) = attnc.check("warn.attn")
    assert found.code == "index-may-leave-table"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attnc.check("local.attn") == ()


def test_warnings_point_at_the_callers_line(place):
    text = "attention a { input t: float[M]\n score s - t[i + j] }"
    (place / "warn.attn").write_text(text)
    for call in (
        lambda: attnc.loads(text),
        lambda: attnc.load("warn.attn"),
        lambda: attnc.compile("warn.attn"),
        lambda: attnc.explain("warn.attn"),
    ):
        with pytest.warns(PatternWarning) as caught:
            call()
        assert [one.filename for one in caught] == [__file__]


def test_processes_share_an_entry_and_rebuild_a_damaged_one_with_a_warning(place):
    code = "import attnc; module = attnc.load('local.attn', width=5); print(module.__file__)"

    def start(*options):
        return subprocess.Popen([sys.executable, *options, "-c", code], stdout=-1, stderr=-1, text=True)

    at_once = [start("-W", "error") for _ in range(2)]
    finished = [(*process.communicate(timeout=300), process.returncode) for process in at_once]
    (entry,) = (place / "cache").iterdir()
    assert finished == [(f"{entry}\n", "", 0)] * 2
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    out, messages = start().communicate(timeout=300)
    assert out == f"{entry}\n"
    assert messages.startswith("<string>:1: CacheWarning: the compiled pattern")
    assert "is damaged, and is built again" in messages
    assert entry.read_bytes() == whole


def test_threads_load_and_compile_at_once(place):
    from concurrent.futures import ThreadPoolExecutor

    barrier = threading.Barrier(6)

    def work(number):
        barrier.wait(timeout=60)
        module = attnc.loads("attention near(w: int = 3) { mask window(w) }", w=number % 3 + 1)
        out = attnc.compile("local.attn", out=f"out_{number}.py")
        return module.near_mask(4, 4).sum().item(), out.read_text()

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(work, range(6)))
    assert [pairs for pairs, _ in found] == [4, 10, 14] * 2
    assert len({text for _, text in found}) == 1


def test_parameters_may_be_numbers_of_other_libraries(place):
    import numpy

    text = "attention near(w: int, x: float, y: float) { mask window(w); score s * x + y }"
    given = attnc.loads(text, w=numpy.int64(3), x=numpy.float32(0.5), y=numpy.int8(2))
    assert given is attnc.loads(text, w=3, x=0.5, y=2.0)


@pytest.mark.parametrize("text", [b"attention a { mask causal }", None, 3])
def test_loads_wants_text(text):
    with pytest.raises(TypeError, match=r"the pattern is a \w+, expected a str"):
        attnc.loads(text)
