"""The command line from outside: exit codes, what goes to which stream, and what is written."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnc import __version__, cli

EXAMPLES = Path(__file__).parents[2] / "examples"

WINDOW = """attention window_only(width: int = 16) {
    mask causal and i - j < width
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "window.attn").write_text(WINDOW)
    return tmp_path


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), **options)
    assert result.exit_code == code, f"{result.exit_code}\n{result.output}"
    return result


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


# -- check


def test_check_accepts_every_example(place):
    result = run("check", *sorted(EXAMPLES.glob("*.attn")))
    assert result.output == ""


def test_check_reports_all_mistakes_of_all_files_with_their_places(place):
    Path("one.attn").write_text("attention a { mask i - j\n    score s + k2 }\n")
    Path("two.attn").write_text("attention b { mask causal(3) }\n")
    result = run("check", "one.attn", "window.attn", "two.attn", code=1)
    assert result.stdout == ""
    codes = re.findall(r"^error\[([a-z0-9-]+)\]", result.stderr, re.M)
    places = re.findall(r"--> (\S+:\d+:\d+)", result.stderr)
    assert len(codes) >= 3
    assert places[0] == "one.attn:1:20"
    assert places[1].startswith("one.attn:2:")
    assert any(where.startswith("two.attn:1:") for where in places)


def test_check_prints_warnings_and_succeeds(place):
    Path("warn.attn").write_text("attention a {\n    input t: float[M]\n    score s + t[i + j]\n}\n")
    result = run("check", "warn.attn")
    assert result.stderr.startswith("warning[index-may-leave-table]: ")
    assert "--> warn.attn:3:15" in result.stderr


def test_check_leaves_parameters_without_values_open(place):
    Path("open.attn").write_text("attention a(w: int) { mask i - j < w; assert nonempty }")
    run("check", "open.attn")
    run("check", "open.attn", "-D", "w=0", code=1)


BAD_FILES = {
    "missing": (None, "cannot-read"),
    "empty": (b"", "empty-file"),
    "binary": (bytes(range(256)), "not-text"),
    "latin1": (b"# caf\xe9\nattention a { }", "not-text"),
    "huge": (b"#" * 10_000_000, "file-too-large"),
    "deep": (b"attention a { mask " + b"(" * 10_000 + b"true" + b")" * 10_000 + b" }", "nesting-too-deep"),
    "wide": (b"attention a { mask j < 99999999999999999999 }", "integer-too-large"),
    "modulus": (b"attention a { mask i % 0 == 0 }", None),
    "recursive": (b"def f = f\nattention a { mask f }", None),
    "false": (b"attention a { mask i - j < 4; assert causal }", "assertion-false"),
    "circle": (b'use "circle.attn"\nattention a { mask causal }', None),
    "outside": (b'use "../../etc/passwd"\nattention a { mask causal }', None),
    "twice": (b"attention a { mask causal }\nattention a { mask causal }", None),
    "nonsense": (b"%%%%", None),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["check", "compile"])
def test_bad_files_are_one_diagnostic_and_exit_1(place, name, command):
    content, code = BAD_FILES[name]
    if content is not None:
        Path(f"{name}.attn").write_bytes(content)
    before = sorted(path.name for path in place.iterdir())
    result = run(command, f"{name}.attn", code=1)
    assert len(re.findall(r"^error\[", result.stderr, re.M)) == 1, result.stderr
    assert re.search(rf"--> {name}\.attn:\d+:\d+$", result.stderr, re.M)
    assert "Traceback" not in result.output
    if code is not None:
        assert result.stderr.startswith(f"error[{code}]: ")
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_directory_and_an_unreadable_file_are_told(place):
    assert "error[cannot-read]" in run("check", place, code=1).stderr
    Path("secret.attn").write_text(WINDOW)
    Path("secret.attn").chmod(0)
    if not os.access("secret.attn", os.R_OK):
        assert "error[cannot-read]" in run("check", "secret.attn", code=1).stderr


def test_check_starts_without_torch_and_quickly(place):
    code = (
        "import sys, time; begin = time.perf_counter(); import attnc; from attnc import cli\n"
        f"sys.argv = ['attnc', 'check', {str(EXAMPLES / 'streaming.attn')!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'triton', 'jinja2', 'matplotlib', 'sympy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.perf_counter() - begin)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5  # a fraction of a second on an idle machine


# -- usage


def test_version_and_help():
    assert run("--version").stdout == f"attnc {__version__}\n"
    for command in ("check", "compile", "explain", "show", "verify", "bench"):
        assert f"attnc {command} " in run(command, "--help").stdout.partition("Examples:")[2]
    assert run("--help").stdout.count("\n") > 10


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["nothing"],
        ["compile", "window.attn", "-D", "width"],
        ["compile", "window.attn", "-D", "=3"],
        ["compile", "window.attn", "-D", "width="],
        ["compile", "window.attn", "-D", "width=3", "-D", "width=4"],
        ["compile", "window.attn", "--emit", "everything"],
        ["explain", "window.attn", "-n", "0"],
        ["explain", "window.attn", "-n", "many"],
        ["explain", "window.attn", "--heads", "0"],
        ["show", "window.attn", "--head", "8", "--heads", "8"],
        ["bench"],
        ["bench", "window.attn", "-n", "64,,128"],
        ["bench", "window.attn", "--peers", "numpy"],
        ["bench", "window.attn", "--heads", "8", "--kv-heads", "3"],
    ],
)
def test_usage_errors_exit_2(place, arguments):
    result = run(*arguments, code=2)
    assert "Usage:" in result.stderr
    assert sorted(path.name for path in place.iterdir()) == ["window.attn"]


def test_a_bug_exits_70_and_hides_its_traceback(place, monkeypatch):
    def broken(source):
        raise RuntimeError("the sky fell")

    monkeypatch.setattr("attnc.checking.parse_source", broken)
    quiet = run("check", "window.attn", code=70)
    assert "internal error: RuntimeError: the sky fell" in quiet.stderr
    assert "report" in quiet.stderr
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in run("--debug", "check", "window.attn", code=70).stderr
    assert "Traceback" in run("check", "window.attn", code=70, env={"ATTNC_DEBUG": "1"}).stderr


def test_an_interruption_is_quiet(place, monkeypatch):
    def interrupted(source):
        raise KeyboardInterrupt  # as from the keyboard

    monkeypatch.setattr("attnc.checking.parse_source", interrupted)
    result = run("compile", "window.attn", code=130)
    assert result.output == ""
    assert sorted(path.name for path in place.iterdir()) == ["window.attn"]


def test_module_entry_and_full_disk(place):
    assert python("-m", "attnc", "--version").stdout == f"attnc {__version__}\n"
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "attnc", "explain", "--json", "window.attn"],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("error[cannot-write]: ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_bug(place, closed):
    command = f"{sys.executable} -m attnc explain window.attn -n 64 {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0
    assert "internal error" not in result.stderr


def test_diagnostics_have_no_colours_off_a_terminal(place):
    Path("bad.attn").write_text("attention a { mask i - j }")
    assert "\x1b" not in run("check", "bad.attn", code=1).output


# -- compile


def test_compile_writes_name_py_where_the_user_stands(place):
    (place / "below").mkdir()
    (place / "below" / "local.attn").write_text(WINDOW)
    result = run("compile", "below/local.attn")
    assert sorted(path.name for path in place.glob("*.py")) == ["local.py"]
    assert "local.py" in result.stdout
    compile(Path("local.py").read_text(), "local.py", "exec")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(Path("local.py").stat().st_mode) == 0o666 & ~umask


def test_compile_is_reproducible_and_specialised_to_parameters(place):
    run("compile", "window.attn", "-o", "one.py")
    run("compile", "window.attn", "-o", "two.py", "-D", "width=16")
    run("compile", "window.attn", "-o", "three.py", "-D", "width=8")
    assert Path("one.py").read_bytes() == Path("two.py").read_bytes() != Path("three.py").read_bytes()


def test_compile_from_standard_input_to_standard_output(place):
    result = run("compile", "-", input=WINDOW)
    compile(result.stdout, "module", "exec")
    assert "def window_only(" in result.stdout
    assert sorted(path.name for path in place.iterdir()) == ["window.attn"]


@pytest.mark.parametrize("target", [".", "nowhere/out.py", "window.attn", "/dev/null/out.py"])
def test_unwritable_outputs_leave_nothing_behind(place, target):
    before = sorted(path.name for path in place.iterdir())
    result = run("compile", "window.attn", "-o", target, code=1)
    assert result.stderr.startswith("error[cannot-write]: ")
    assert sorted(path.name for path in place.iterdir()) == before
    assert Path("window.attn").read_text() == WINDOW


def test_a_failed_compilation_keeps_the_old_output(place):
    Path("out.py").write_text("old")
    Path("bad.attn").write_text("attention a { mask i }")
    run("compile", "bad.attn", "-o", "out.py", code=1)
    assert Path("out.py").read_text() == "old"


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ("height=3", "unknown-parameter"),
        ("width=wide", "wrong-parameter-type"),
        ("width=1.5", "wrong-parameter-type"),
        ("width=true", "wrong-parameter-type"),
        ("width=9223372036854775808", "integer-too-large"),
    ],
)
def test_wrong_parameter_values(place, definition, code):
    result = run("compile", "window.attn", "-D", definition, code=1)
    assert result.stderr.startswith(f"error[{code}]: ")
    assert re.search(r"--> window\.attn:\d+:\d+$", result.stderr, re.M)


def test_parameter_values_of_every_type(place):
    Path("types.attn").write_text(
        "attention a(n: int, x: float, on: bool) { mask on and i - j < n; score softcap(s, x) }"
    )
    run("compile", "types.attn", code=1)
    for values in (["n=-5", "x=3", "on=true"], ["n=9223372036854775807", "x=1e-3", "on=false"]):
        run("compile", "types.attn", *(word for value in values for word in ("-D", value)))


@pytest.mark.parametrize(
    ("stage", "sign"),
    [
        ("tree", "Attention  @1:1"),
        ("ir", "mask j <= i and i - j < 16"),
        ("simplified", "# score: s"),
        ("plan", "for key tiles"),
        ("triton", "@triton.jit"),
    ],
)
def test_emit_prints_every_stage(place, stage, sign):
    result = run("compile", "window.attn", "--emit", stage)
    assert sign in result.stdout
    run("compile", "window.attn", "--emit", stage, "-o", "stage.txt")
    assert Path("stage.txt").read_text() == result.stdout
    assert not Path("window.py").exists()


def test_emitted_ir_is_a_pattern_again(place):
    Path("again.attn").write_text(run("compile", EXAMPLES / "longformer.attn", "--emit", "ir").stdout)
    run("check", "again.attn")


def test_an_unknown_gpu_is_the_users_mistake(place, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run("compile", "window.attn", "--gpu", "sm_1", code=1).stderr.startswith("error[unknown-gpu]: ")


# -- verify and bench


def test_verify_tells_a_wrong_module_from_a_right_one(place, monkeypatch):
    monkeypatch.setattr("attnc.verify.kernels.find_spec", lambda name: None)
    Path("tiny.attn").write_text("attention tiny { mask causal and i - j < 3 }")
    right = run("verify", "tiny.attn")
    assert "agrees" in right.stdout
    assert "triton is not installed" in right.stdout

    from attnc.verify import run as verification

    def wrong(compiled):
        module = original(compiled)
        attend = module.tiny
        monkeypatch.setattr(module, "tiny", lambda *tensors, **inputs: _shifted(attend(*tensors, **inputs)))
        return module

    original = verification.import_compiled
    monkeypatch.setattr(verification, "import_compiled", wrong)
    result = run("verify", "tiny.attn", "--json", code=1)
    assert result.stderr.startswith("error[mismatch]: tiny.attn: output of `tiny`: output: error ")
    (report,) = json.loads(result.stdout)
    problems = {check["topic"]: check["problem"] for check in report["checks"]}
    assert problems["output"]
    assert not problems["tiles"]


def _shifted(found):
    return (found[0] + 0.01, *found[1:]) if isinstance(found, tuple) else found + 0.01


def test_bench_writes_json_and_a_picture(place):
    result = run(
        "bench", "window.attn", "-n", "64,128", "--heads", "2", "--head-size", "16", "--peers", "sdpa",
        "--seconds", "0.01", "--json", "out.json", "--plot", "out.png",
    )  # fmt: skip
    assert "window_only" in result.stdout
    report = json.loads(Path("out.json").read_text())
    assert report["machine"]["torch"]
    assert [one["shape"]["queries"] for one in report["comparisons"]] == [64, 128]
    for one in report["comparisons"]:
        assert {row["name"] for row in one["results"]} == {"attnc", "sdpa, dense mask"}
        assert all(row["timing"]["median"] > 0 for row in one["results"])
        length = one["shape"]["queries"]
        assert one["pairs"] == sum(min(row + 1, 16) for row in range(length))
        assert one["density"] == one["pairs"] / length**2
        assert one["floor_seconds"] == pytest.approx(one["density"] * one["dense_seconds"])
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_bench_refuses_a_device_that_is_not_there(place):
    import torch

    if not torch.cuda.is_available():
        result = run("bench", "window.attn", "--device", "cuda", code=1)
        assert result.stderr.startswith("error[no-such-device]: ")
