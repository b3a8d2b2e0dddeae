"""The suite of sparse patterns: each mask is what its paper says, and a run can stop and go on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from attnc import cli
from attnc.bench import cases, suite
from attnc.bench.cases import make_data, square
from attnc.bench.report import duration
from attnc.bench.suite_report import as_markdown, one_line, summary
from attnc.bench.suite_row import SuiteRow
from attnc.bench.waste import pairs_in_tiles, pairs_multiplied
from attnc.checking import check_source
from attnc.files import read_pattern
from attnc.plan.choose import plan_attention
from attnc.reference import dense_mask
from attnc.source import SourceFile

PATTERNS = Path(cases.__file__).parent / "patterns"
LITERATURE = sorted((PATTERNS / "literature").glob("*.attn"))
LENGTH, HEADS = 256, 4


def near_on_grid(i, j, width, radius):
    return abs(i // width - j // width) <= radius and abs(i % width - j % width) <= radius


def thinned(i, j, length, gap):
    return i // length == j // length and i % gap == 0 and j % gap == 0


def diffusion(i, j, half=128, size=16):
    query, key = (i % half) // size, (j % half) // size
    if i < half:
        return query == key if j < half else key < query
    return j >= half and key <= query


MEANINGS = {
    "longnet": (
        {"segment": 16, "growth": 2},
        lambda h, i, j: j <= i and (i // 16 == j // 16 or thinned(i, j, 32, 2) or thinned(i, j, 64, 4)),
    ),
    "longnet_heads": (
        {"segment": 16, "length": 64, "gap": 4},
        lambda h, i, j: j <= i and (i // 16 == j // 16 or (i // 64 == j // 64 and i % 4 == h % 4 and j % 4 == h % 4)),
    ),
    "block_diffusion": ({"size": 16}, lambda h, i, j: diffusion(i, j)),
    "swin": (
        {"width": 16, "size": 4},
        lambda h, i, j: (i // 16 + 2) // 4 == (j // 16 + 2) // 4 and (i % 16 + 2) // 4 == (j % 16 + 2) // 4,
    ),
    "axial": ({"width": 16}, lambda h, i, j: i // 16 == j // 16 or i % 16 == j % 16),
    "etc": (
        {"count": 8, "sentence": 31, "radius": 5},
        lambda h, i, j: j < 8 or ((j - 8) // 31 == i if i < 8 else abs(i - j) <= 5),
    ),
    "neighborhood_3d": (
        {"height": 8, "width": 4, "radius": 1},
        lambda h, i, j: abs(i // 32 - j // 32) <= 1 and near_on_grid(i % 32, j % 32, 4, 1),
    ),
    "dilated_neighborhood": (
        {"width": 16, "radius": 2},
        lambda h, i, j: near_on_grid(i, j, 16, 4) and (i // 16 - j // 16) % 2 == 0 and (i % 16 - j % 16) % 2 == 0,
    ),
    "head_mixture": (
        {"window": 20, "count": 3},
        lambda h, i, j: j <= i and (h == 0 or i - j < 20 or j < 3),
    ),
    "head_windows": ({"unit": 10}, lambda h, i, j: 0 <= i - j < 10 * (h + 1)),
    "shared_prefix": (
        {"prompt": 40, "answer": 30},
        lambda h, i, j: j <= i and (j < 40 or (i - 40) // 30 == (j - 40) // 30),
    ),
    "log_sparse": ({"near": 6}, lambda h, i, j: i - j >= 0 and (i - j < 6 or (i - j) & (i - j - 1) == 0)),
    "tree": (
        {"nodes": 32},
        lambda h, i, j, ancestor: j <= i and i // 32 == j // 32 and bool(ancestor[i % 32, j % 32]),
    ),
    "block_table": ({}, lambda h, i, j, keep: j <= i and (i // 64 == j // 64 or bool(keep[0, h, i // 64, j // 64]))),
    "block_top": (
        {},
        lambda h, i, j, top: j <= i and (i // 64 == j // 64 or j // 64 in top[0, h, i // 64].tolist()),
    ),
}


def attention_of(path, params=None):
    return check_source(read_pattern(path), params, complete=True).program.attentions[0]


@pytest.mark.parametrize("path", LITERATURE, ids=lambda path: path.stem)
def test_patterns_name_their_source_and_mean_what_it_says(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    if path.stem == "random_blocks":  # its hash has tests of its own
        assert "any(t < 3" in path.read_text() or "random_blocks(size, count, seed)" in path.read_text()
        return
    params, meaning = MEANINGS[path.stem]
    attention = attention_of(path, params)
    shape = square(LENGTH, heads=HEADS)
    data = make_data(attention, shape, seed=0)
    mask = dense_mask(attention, LENGTH, LENGTH, heads=HEADS, inputs=data)[0]
    places = range(0, LENGTH, 3)
    for head in range(HEADS):
        right = [[meaning(head, i, j, **data) for j in places] for i in places]
        assert torch.equal(mask[head][::3, ::3], torch.tensor(right))


def test_a_table_of_constant_size_is_a_tree_and_one_of_blocks_is_sparse():
    shape = square(LENGTH, heads=HEADS)
    ancestor = make_data(attention_of(PATTERNS / "literature" / "tree.attn"), shape, seed=0)["ancestor"]
    assert bool(ancestor.diagonal().all())
    assert not bool(ancestor.triu(1).any())
    paths = ancestor.int()
    assert torch.equal(paths @ paths > 0, ancestor)  # an ancestor's ancestor is one
    assert 1 < paths.sum(1).float().mean() < 30
    keep = make_data(attention_of(PATTERNS / "literature" / "block_table.attn"), square(8192), seed=0)["keep"]
    assert 0.1 < keep.float().mean() < 0.15


@pytest.mark.parametrize(
    "text",
    [
        "attention a { mask causal and (i - j < 16 or (i - j) % 16 == 0) }",
        "attention a { mask causal and i - j < 9 * (h + 1) }",
        "attention a { input n: int[B]\n mask j < n[b] and i // 64 == j // 64 }",
        "attention a { input keep: bool[B, H, (N + 63) // 64, (M + 63) // 64]\n mask keep[b, h, r // 64, j // 64] }",
    ],
)
def test_pairs_in_tiles_are_those_of_touched_tiles(text):
    attention = check_source(SourceFile("p.attn", text)).program.attentions[0]
    plan = plan_attention(attention, length=250)
    shape = square(250, heads=3, batch=2)
    data = make_data(attention, shape, seed=1)
    touched = 0.0
    for one in plan.passes:
        mask = dense_mask(replace(plan.attention, mask=one.mask), 250, 250, batch=2, heads=3, inputs=data)
        step = one.layout.classes
        for residue in range(step):
            part = mask[:, :, residue::step, residue::step]
            blocks = [block for rows in part.split(64, 2) for block in rows.split(64, 3)]
            touched += sum(float(block.flatten(2).any(-1).float().mean()) for block in blocks) * 64 * 64
    found = pairs_in_tiles(plan, shape, data, 64, 64)
    assert found == pytest.approx(touched) if all(one.tiles.exact for one in plan.passes) else found > touched - 1


def test_multiplied_pairs_are_those_of_every_product():
    shape = square(64, heads=2, head_size=8)
    query, key, value = (torch.randn(1, 2, 64, 8) for _ in range(3))

    def by_hand():
        return torch.softmax(query[:, :, :32] @ key[:, :, :16].transpose(2, 3), -1) @ value[:, :, :16]

    assert pairs_multiplied(by_hand, shape) == 32 * 16
    attend = functional.scaled_dot_product_attention
    assert pairs_multiplied(lambda: attend(query, key, value), shape) == 64 * 64
    assert pairs_multiplied(lambda: attend(query, key, value, is_causal=True), shape) == 64 * 65 / 2
    assert pairs_multiplied(lambda: query + key, shape) is None


def row(**changes):
    full = SuiteRow(
        "strided", "An idea | with a bar.", 128, 1000.0, 0.1, ("identity", "residue(8)"), 1500.0, "slabs", 2500.0,
        {"attnc": 0.5, "flex 128": 4.0, "flex 64": 2.0, "sdpa, dense mask": 3.0, "dense": 1.0},
        {"flex 128": 1.0}, 0.1, {}, {"pairs": 1000.0},
    )  # fmt: skip
    return replace(full, **changes)


def test_ratios_and_round_trips():
    one = row()
    assert (one.waste_in_tiles, one.waste, one.times_floor) == (1.5, 2.5, 5.0)
    assert (one.times_flex, one.times_best_flex, one.times_flex_with_build, one.sdpa) == (8.0, 4.0, 10.0, 3.0)
    assert SuiteRow.from_json(json.loads(json.dumps(one.as_json()))) == one
    failed = SuiteRow("a", "b", 64, problems={"attnc": "wrong output"})
    assert not failed.right
    assert failed.waste is failed.times_floor is failed.times_flex is failed.times_best_flex is None
    assert SuiteRow.from_json(failed.as_json()) == failed
    assert one_line(failed) == "a at 64: wrong output"
    assert "5.00 times the floor" in one_line(one)


def test_reports_have_every_number():
    failed = row(length=256, seconds={"dense": 1.0}, problems={"attnc": "wrong | output"})
    text = as_markdown([failed, row()], {"device": "CPU", "threads": 2, "torch": "2"}, {"dtype": "float32"})
    line = next(line for line in text.splitlines() if line.startswith("| strided"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "strided", "1,000", "0.1000", "1,500", "1.50", "2,500", "2.50", "500 ms", "4 s", "2 s", "1 s", "3 s", "100 ms",
        "5.00", "8.00", "4.00", "10.00",
    ]  # fmt: skip
    assert text.index("## N = 128") < text.index("## N = 256") < text.index("## Without a time")
    assert "- strided at 256, attnc: wrong \\| output" in text
    assert "An idea \\| with a bar. Passes at N = 256: identity; residue(8)." in text
    assert summary([row(), failed]).row_count == 2


def test_reports_of_training_have_memory_and_no_columns_without_figures():
    results = [{"name": "attnc", "memory": 3 << 20}, {"name": "sdpa, dense mask", "memory": 5 << 30}]
    one = row(seconds={"attnc": 0.5, "sdpa, dense mask": 3.0}, build_seconds={}, comparison={"results": results})
    text = as_markdown([one], {"device": "CPU", "threads": 2, "torch": "2"}, {"backward": True})
    assert text.startswith("# Training")
    heading, _, line = (line for line in text.splitlines() if line.startswith("| "))
    assert heading.split(" | ")[-3:] == ["x floor", "memory", "memory of sdpa |"]
    assert line.split(" | ")[-3:] == ["5.00", "3 MiB", "5 GiB |"]
    assert "flex" not in heading


def run(place, *arguments, code=0):
    command = [
        "bench", "--suite", "sparsity", "-n", "48,80", "--heads", "2", "--head-size", "8", "--peers", "none",
        "--seconds", "0", "--device", "cpu", "--only", "residue", "--only", "tree", *arguments,
    ]  # fmt: skip
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_a_suite_is_written_case_by_case_and_goes_on(tmp_path, monkeypatch):
    out, report = tmp_path / "s.json", tmp_path / "s.md"
    files = ("--json", str(out), "--markdown", str(report))
    stopped = run(tmp_path, *files, "--budget", "0")
    assert "4 of 4 cases are left" in stopped.stdout or "3 of 4 cases are left" in stopped.stdout
    measured = []
    real = suite.compare

    def stop_at_third(plan, module, shape, *rest):
        measured.append((plan.attention.name, shape.queries))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(plan, module, shape, *rest)

    out.unlink(missing_ok=True)
    monkeypatch.setattr(suite, "compare", stop_at_third)
    run(tmp_path, *files, code=130)
    assert len(json.loads(out.read_text())["cases"]) == 2
    run(tmp_path, *files)
    found = json.loads(out.read_text())
    assert measured == [("tree", 48), ("residue", 48), ("tree", 80), ("tree", 80), ("residue", 80)]
    assert [(case["pattern"], case["length"]) for case in found["cases"]] == [
        ("tree", 48), ("residue", 48), ("tree", 80), ("residue", 80),
    ]  # fmt: skip
    for case in found["cases"]:
        seconds = case["seconds"]
        assert case["floor_seconds"] == pytest.approx(case["density"] * seconds["dense"])
        assert case["times_floor"] == pytest.approx(seconds["attnc"] / case["floor_seconds"])
        assert case["waste"] == pytest.approx(case["computed"] / case["pairs"])
        assert case["waste_in_tiles"] >= 1
        assert case["comparison"]["results"][0]["error"] is not None
        assert duration(seconds["attnc"]) in report.read_text()
    (residue,) = [one for one in found["cases"] if one["pattern"] == "residue" and one["length"] == 80]
    assert residue["pairs"] == sum(i // 64 + 1 for i in range(80))
    monkeypatch.setattr(suite, "compare", lambda *_: pytest.fail("measured again"))
    text = report.read_text()
    report.unlink()
    assert "residue" in run(tmp_path, *files).stdout
    assert report.read_text() == text
    monkeypatch.setattr(suite, "compare", real)
    before = out.stat().st_mtime_ns
    run(tmp_path, *files, "--redo", "-n", "48")
    assert out.stat().st_mtime_ns > before
    assert len(json.loads(out.read_text())["cases"]) == 4


def test_results_of_other_settings_are_not_mixed(tmp_path):
    out = tmp_path / "s.json"
    run(tmp_path, "--json", str(out), "-n", "48", "--only", "residue")
    wrong = run(tmp_path, "--json", str(out), "--seconds", "1", code=1)
    assert wrong.stderr.startswith("error[other-settings]: ")
    assert wrong.stderr.splitlines()[0].endswith("measured with other settings: seconds")
    found = json.loads(out.read_text())
    found["machine"]["threads"] += 1
    out.write_text(json.dumps(found))
    assert run(tmp_path, "--json", str(out), code=1).stderr.splitlines()[0].endswith("other settings: threads")
    out.write_text("[]")
    assert run(tmp_path, "--json", str(out), code=1).stderr.startswith("error[not-a-suite]: ")
    assert out.read_text() == "[]"


def test_unknown_patterns_and_options_out_of_place(tmp_path):
    wrong = run(tmp_path, "--only", "strode", code=1)
    assert wrong.stderr.startswith("error[unknown-pattern]: the suite has no pattern `strode`")
    assert "block_diffusion" in wrong.stderr
    run(tmp_path, "--plot", "x.png", code=2)
    for option in (("--budget", "5"), ("--only", "residue"), ("--redo",), ("--markdown", "x.md")):
        assert CliRunner().invoke(cli.app, ["bench", "x.attn", *option]).exit_code == 2


def test_patterns_that_do_not_compile_are_rows_too(tmp_path):
    wrong = tmp_path / "wrong.attn"
    wrong.write_text("# No idea.\nattention wrong { mask i }")
    out = tmp_path / "s.json"
    command = ["bench", str(wrong), "--suite", "sparsity", "--only", "wrong", "-n", "48", "--json", str(out)]
    assert CliRunner().invoke(cli.app, command).exit_code == 1
    (case,) = json.loads(out.read_text())["cases"]
    assert case["idea"] == "No idea."
    assert case["problems"] == {"attnc": "a mask must be true or false"}
