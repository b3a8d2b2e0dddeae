"""The benchmark standard: which cases, what is written, how it goes on, and that pictures and reports say what was."""

import json
from dataclasses import replace
from itertools import product

import pytest
from typer.testing import CliRunner

from attnc import cli
from attnc.bench import cells, standard
from attnc.bench.cases import Shape
from attnc.bench.measure import Timing
from attnc.bench.names import PEERS, Mode
from attnc.bench.plot import provider_colours
from attnc.bench.requests import BenchOptions, standard_request, suite_files
from attnc.bench.run import Comparison, Result
from attnc.bench.standard import LENGTHS, SMALL, TOKENS, cases
from attnc.bench.standard_plot import draw_standard
from attnc.bench.standard_report import as_markdown, one_line, summary
from attnc.bench.standard_row import Sizes, StandardRow, provider
from attnc.bench.suite_run import Pattern

NAMES = [file.stem for file in suite_files("standard")]


def made(name, seconds, **options):
    return Result(name, Timing(seconds, seconds, seconds, 5), error=1e-7, times_floor=seconds / 0.5, **options)


SIZES = Sizes(1024, 8, 8, 2, 64, "float32", Mode.FORWARD)


def row(pattern="window", sizes=SIZES, small=False, **seconds):
    shape = Shape(sizes.batch, sizes.heads, sizes.kv_heads, sizes.length, sizes.length, 64, 64)
    results = (
        made("attnc", seconds.get("ours", 1.0), memory=1 << 20), made("sdpa, dense mask", seconds.get("sdpa", 4.0)),
        made("sdpa-flash, dense mask", 3.0), made("flex 128", 2.0, build_seconds=0.25), made("flex 64", 2.5),
        Result("sdpa-math", problem="wrong output: error 1 | 2"), Result("natten", problem="not installed"),
    )  # fmt: skip
    comparison = Comparison(pattern, shape, 1000.0, 0.5, 3e9, 1 << 20, 1.0, 0.5, sizes.mode, results)
    return StandardRow(pattern, "An idea | with a bar.", sizes, small, comparison)


def patterns(*names):
    return [Pattern(name, "", lambda: pytest.fail("planned")) for name in names]


def test_the_suite_has_the_patterns_of_the_table_and_its_own():
    assert {
        "causal", "window", "sinks_window", "longformer", "dilated", "dilated_wide", "strided", "residue", "fixed",
        "neighborhood", "documents",
    } | {"full", "relative", "alibi", "softcap", "softcap_window", "neighborhood_inside"} == set(NAMES)  # fmt: skip
    assert all(file.read_text().startswith("# ") for file in suite_files("standard"))
    assert not {"full", "softcap"} & {file.stem for file in suite_files("sparsity")}


def test_cases_hold_their_tokens_and_come_in_series():
    request = standard_request(BenchOptions())
    for device in ("cpu", "cuda"):
        found = cases(request, patterns(*NAMES), device, TOKENS[device])
        assert len({(case.pattern.name, case.sizes) for case in found}) == len(found)
        small = [case for case in found if case.small]
        assert {(case.pattern.name, case.sizes.length) for case in small} == set(product(("causal", "full"), SMALL))
        assert {case.sizes.batch for case in small} == {1}
        assert {case.sizes.batch * case.sizes.length for case in found if not case.small} == {TOKENS[device]}
        long = {(case.sizes.length, case.pattern.name) for case in found if not case.small}
        assert long == set(product(LENGTHS[device], NAMES))
        series = list(dict.fromkeys(case.sizes.configuration for case in found))
        precisions = ("float32",) if device == "cpu" else ("bfloat16", "float16")
        assert series == [
            (dtype, 8, kv_heads, size, mode)
            for dtype, kv_heads, size, mode in product(precisions, (8, 2), (64, 128), Mode)
        ]
        first = [case for case in found if case.sizes.configuration == series[0]]
        assert found[: len(first)] == first
        lengths = [case.sizes.length for case in first if not case.small]
        assert lengths == sorted(lengths)
    assert max(LENGTHS["cuda"]) == 131072


def test_what_is_said_replaces_what_suits():
    options = BenchOptions(
        lengths=(512, 1024, 65536), modes=(Mode.BOTH,), heads=4, kv_heads=(1,), head_sizes=(96,), dtypes=("float16",)
    )
    found = cases(standard_request(options), patterns("causal", "window"), "cpu", 2048)
    assert [(case.pattern.name, case.sizes.length, case.sizes.batch, case.small) for case in found] == [
        ("causal", 512, 1, True), ("causal", 1024, 1, True), ("causal", 512, 4, False), ("window", 512, 4, False),
        ("causal", 1024, 2, False), ("window", 1024, 2, False), ("causal", 65536, 1, False),
        ("window", 65536, 1, False),
    ]  # fmt: skip
    assert {case.sizes.configuration for case in found} == {("float16", 4, 1, 96, Mode.BOTH)}
    odd = cases(standard_request(BenchOptions(heads=6)), patterns("causal"), "cpu", 2048)
    assert {case.sizes.kv_heads for case in odd} == {6}


def test_rows_know_their_ratios_and_round_trip():
    one = row()
    assert one.seconds == {"attnc": 1.0, "sdpa": 4.0, "sdpa-flash": 3.0, "flex 128": 2.0, "flex 64": 2.5}
    assert one.speed_ups == {"sdpa": 4.0, "sdpa-flash": 3.0, "flex 128": 2.0, "flex 64": 2.5}
    assert (one.fastest_peer, one.times_floor, one.overhead) == ("flex 128", 2.0, -3.0)
    assert one.right
    assert one.problems == {"sdpa-math": "wrong output: error 1 | 2", "natten": "not installed"}
    written = json.loads(json.dumps(one.as_json(), allow_nan=False))
    assert written["fastest_peer"] == "flex 128"
    assert StandardRow.from_json(written) == one
    failed = StandardRow("a", "", SIZES, False, problem="a mask must be true or false")
    assert not failed.right
    assert failed.speed_ups == {}
    assert failed.fastest_peer is failed.overhead is failed.times_floor is None
    assert StandardRow.from_json(failed.as_json()) == failed
    assert one_line(failed).endswith("forward: a mask must be true or false")
    assert provider("sdpa-flash, causal") == "sdpa-flash"


def test_reports_have_every_number_and_every_reason_once():
    small = row("causal", replace(SIZES, length=128, batch=1), small=True, ours=0.003, sdpa=0.002)
    longer = row(sizes=replace(SIZES, length=4096, batch=2), sdpa=16.0)
    machine = {"device": "CPU", "threads": 2, "torch": "2.13", "triton": None}
    text = as_markdown([longer, small, row(), row("full", sdpa=9.0)], machine, {"peers": ["sdpa"], "tokens": 8192})
    lines = text.splitlines()
    assert "Versions and system: torch 2.13." in lines
    assert "| causal | forward | 8/2 | 64 | 128 | 3 ms | 2 ms | +1000 us | 1.50 |" in lines
    title = "Forward: 8 query heads of 2 key heads of size 64, float32"
    assert f"| {title} | 1024 | 6.00 (2) | 3.00 (2) | 2.00 (2) | 2.50 (2) |" in lines
    assert f"| {title} | 4096 | 16.00 (1) | 3.00 (1) | 2.00 (1) | 2.50 (1) |" in lines
    assert text.count(f"## {title}") == 1
    cells_of = next(line for line in lines if line.startswith("| window | 1024"))
    assert cells_of == (
        "| window | 1024 | 8 | 0.5000 | 3 | 1 MiB | 500 ms | 1 s | 2.00 | 4 s | 3 s | 2 s | 2.5 s | 250 ms | 2.00 "
        "| 1 MiB |"
    )
    assert "- natten: not installed." in lines
    assert "- sdpa-math, in every case: wrong output: error 1 \\| 2." in lines
    assert text.count("not installed") == 1
    assert "- **window**: An idea \\| with a bar." in lines
    failed = StandardRow("bad", "", SIZES, False, problem="no")
    text = as_markdown([failed, row()], machine, {})
    assert "- attnc, bad (N = 1024; forward): no." in text
    assert summary([failed, row(), small]).row_count == 3
    assert "+1000 us beside SDPA" in one_line(small)
    assert "2.00 times the floor, sdpa 4.00 times as long, flex 128 2.00 times as long" in one_line(row())


def test_geometric_means():
    assert cells.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert cells.geometric_mean([]) is None


def test_pictures_show_the_series_with_most_cases(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "attnc.bench.standard_plot.draw_times", lambda comparisons, **_: drawn.append(comparisons) or b""
    )
    other = row(sizes=replace(SIZES, head_size=128), sdpa=99.0)
    both = row(sizes=replace(SIZES, mode=Mode.BOTH))
    rows = [other, row(), row("full"), both, row("causal", small=True)]
    pictures = draw_standard(rows)
    assert list(pictures) == ["times-forward", "speedups-forward", "times-both", "speedups-both"]
    assert pictures["speedups-forward"].startswith(b"\x89PNG")
    assert [[one.attention for one in comparisons] for comparisons in drawn] == [["full", "window"], ["window"]]
    assert provider_colours(["attnc", "sdpa, causal", "flex 64", "sdpa, dense mask"]) == {
        "attnc": "C0", "sdpa, causal": "C1", "sdpa, dense mask": "C1", "flex 64": "C2",
    }  # fmt: skip


SMALL_RUN = (
    "bench", "--suite", "standard", "--tokens", "128", "--heads", "2", "--head-size", "8", "--kv-heads", "2",
    "--seconds", "0", "--device", "cpu", "--peers", "sdpa,sdpa-flash,natten",
)  # fmt: skip


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [*SMALL_RUN, *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_a_run_writes_goes_on_and_draws(tmp_path, monkeypatch):
    out, report = tmp_path / "s.json", tmp_path / "s.md"
    chosen = ("--only", "causal,window", "-n", "64,128", "--modes", "forward,both")
    files = ("--json", str(out), "--markdown", str(report))
    measured = []
    real = standard.compare

    def counted(plan, module, shape, settings, say):
        measured.append((plan.attention.name, shape.queries, shape.batch, settings.mode.value))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return real(plan, module, shape, settings, say)

    monkeypatch.setattr(standard, "compare", counted)
    run(*chosen, *files, code=130)
    assert len(json.loads(out.read_text())["cases"]) == 3
    run(*chosen, *files, "--plot", str(tmp_path / "p.png"))
    names = {"causal": "causal_pattern", "window": "window_pattern"}
    wanted = [
        (names["causal"], 128, 1), (names["causal"], 64, 2), (names["window"], 64, 2), (names["window"], 128, 1),
    ]  # fmt: skip
    assert measured[:3] + measured[4:] == [(*one, mode) for mode in ("forward", "both") for one in wanted]
    found = json.loads(out.read_text())
    assert found["machine"]["torch"]
    assert found["settings"]["tokens"] == 128
    for case in found["cases"]:
        results = {result["name"].partition(",")[0]: result for result in case["comparison"]["results"]}
        assert results["attnc"]["error"] <= results["attnc"]["allowed_error"]
        assert results["natten"]["problem"] == "not installed"
        ours = results["attnc"]["timing"]["median"]
        assert case["speed_ups"]["sdpa"] == pytest.approx(results["sdpa"]["timing"]["median"] / ours)
        assert case["comparison"]["floor_seconds"] == pytest.approx(
            case["comparison"]["density"] * case["comparison"]["dense_seconds"]
        )
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {f"p-{kind}-{mode}.png" for kind in ("times", "speedups") for mode in ("forward", "both")}
    text = report.read_text()
    assert "## Short calls" in text
    assert "natten: not installed" in text
    monkeypatch.setattr(standard, "compare", lambda *_: pytest.fail("measured again"))
    run(*chosen, *files)
    assert report.read_text() == text
    other = run(*chosen, *files, "--tokens", "256", code=1)
    assert other.stderr.splitlines()[0].endswith("measured with other settings: tokens")
    found["machine"]["torch"] = "1.0"
    out.write_text(json.dumps(found))
    assert run(*chosen, *files, code=1).stderr.splitlines()[0].endswith("other settings: torch")


def test_a_budget_ends_a_run_and_says_how_to_go_on(tmp_path):
    chosen = ("--only", "full", "--only", "causal", "-n", "64", "--modes", "forward", "--budget", "0")
    assert "are left; with --json FILE, the same command would go on with them." in run(*chosen).stdout
    again = run(*chosen, "--json", str(tmp_path / "s.json")).stdout
    assert "; 2 of 2 cases to measure" in again
    assert "are left; the same command goes on with them." in again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "causal,strode"), "error[unknown-pattern]: the suite has no pattern `strode`"),
        (("--peers", "sdpa,flux"), "'flux' is not a peer: sdpa, sdpa-flash"),
        (("--modes", "sideways"), "'sideways' is not a mode: forward, backward, both"),
        (("--dtype", "float8"), "'float8' is not one of 'float32', 'float16', 'bfloat16'"),
        (("--head-size", "64,0"), "'0' is not a head size, a number from 1 to 256"),
        (("--kv-heads", "3"), "3 key/value heads do not divide 2 heads"),
        (("--backward",), "--backward is not for the standard suite"),
        (("--batch", "3"), "--batch is not for the standard suite"),
    ],
)
def test_mistakes_are_one_clear_error(arguments, message):
    result = CliRunner().invoke(cli.app, [*SMALL_RUN, *arguments])
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_options_of_the_suite_are_refused_elsewhere(tmp_path):
    for arguments in (
        ("--suite", "sparsity", "--modes", "both"), ("--suite", "sparsity", "--tokens", "9"),
        ("--suite", "sparsity", "--dtype", "float32", "--dtype", "float16"), ("x.attn", "--tokens", "9"),
        ("x.attn", "--modes", "both"), ("x.attn", "--head-size", "64,128"),
    ):  # fmt: skip
        assert CliRunner().invoke(cli.app, ["bench", *arguments]).exit_code == 2


def test_all_peers_are_the_default_and_can_be_named():
    assert standard_request(BenchOptions()).peers == PEERS
    from attnc.commands import parse_peers

    assert parse_peers("all") == PEERS
    assert parse_peers("none") == ()
    assert parse_peers("flex, sdpa") == ("flex", "sdpa")
