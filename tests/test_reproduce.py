"""The program behind `docs/results.md`: closed forms, what is kept of a run, and pages that are what the files say."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    """Make the tools importable; leave threads as they were."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def moment(square, power):
    """Return `E f ** power` of `f = exp(w . z - |z|^2 / 2)`, by a sum over the density of `w . z / |z|`."""
    places = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    density = (-places.square() / 2).exp() / math.sqrt(2 * math.pi)
    return float((density * ((places * math.sqrt(square) - square / 2) * power).exp()).sum() * 80 / 400_000)


@pytest.mark.parametrize("square", [0.01, 0.5, 2.25, 9.0])
def test_the_closed_form_is_the_variance_of_one_feature(square):
    from results.closed_forms import independent

    assert moment(square, 1) == pytest.approx(1, rel=1e-10)
    assert independent(square, 1) == pytest.approx(moment(square, 2) - 1, rel=1e-9)
    # as it is written in the paper, without the factor SM^2
    written = math.exp(square) * (1 - math.exp(-square)) / 7
    assert independent(square, 7) == pytest.approx(written, rel=1e-12)


@pytest.mark.parametrize("square", [0.25, 1.0, 4.0])
def test_the_gap_of_orthogonal_directions_in_the_plane(square):
    """In the plane a block is two lengths, Rayleigh distributed, and one angle: three sums."""
    from results.closed_forms import gap

    length = math.sqrt(square)
    angles = torch.arange(64, dtype=torch.float64) * (math.pi / 32)
    lengths = torch.linspace(0, 15, 30_001, dtype=torch.float64).unsqueeze(-1)
    density = lengths * (-lengths.square() / 2).exp() * 0.0005
    parts = [(density * (length * lengths * turn).exp()).sum(0) for turn in (angles.cos(), angles.sin())]
    together = float((parts[0] * parts[1]).mean()) * math.exp(-square)
    assert gap(square, 2) == pytest.approx(1 - together, rel=1e-4)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_gap_is_at_least_what_theorem_2_says(size):
    from results.closed_forms import gap, least_gap

    for square in (1e-2, 0.25, 1.0, 4.0, 16.0):
        assert gap(square, size) >= least_gap(square, size) > 0
    assert gap(1e-3, size) == pytest.approx(least_gap(1e-3, size), rel=1e-2)


def test_pairs_of_features_in_one_block():
    from results.closed_forms import gap, independent, orthogonal

    for features in (1, 3, 4, 5, 11, 12):
        blocks = [k // 4 for k in range(features)]
        pairs = sum(blocks[i] == blocks[k] for i in range(features) for k in range(features) if i != k)
        wanted = independent(1.0, features) - pairs / features**2 * gap(1.0, 4)
        assert orthogonal(1.0, features, 4) == pytest.approx(wanted, rel=1e-12)


def test_draws_have_the_errors_of_the_closed_forms():
    from results.performer import QUICK, measure_estimates
    from results.performer_text import estimates

    chosen = QUICK | {"size": 8, "lengths": [0.75], "features": [8], "pairs": 16, "seeds": 600}
    torch.set_num_threads(1)
    rows = {"estimates 0": measure_estimates(chosen, range(600))}
    found = [*estimates({"settings": chosen, "rows": rows})]
    assert [(one.length, one.features) for one in found] == [(0.75, 8)]
    for one in found:
        assert one.is_measurable
        for draw in ("independent", "orthogonal"):
            assert one.away(draw) < 4, (one, draw)
            assert one.deviations[draw] < 0.1 * one.expected[draw]
        # the other draw's form is not what was measured
        assert one.measured["independent"] - one.expected["orthogonal"] > 2 * one.deviations["independent"]


def test_the_first_order_of_an_attentions_error():
    from results.closed_forms import attention_error
    from results.performer import independent_attention

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    query, key = 0.25 * query, 0.25 * key
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    features = 600
    found = [independent_attention(query, key, value, features, seed) for seed in range(200)]
    squares = torch.stack([(one - exact).square().sum(-1) for one in found]).mean(0)[0]
    errors, variances = attention_error(query[0], key[0], value[0])
    assert errors[:, 0].abs().max() < 1e-20  # a query that sees one key
    torch.testing.assert_close(squares.sum(), errors.sum() / features, rtol=0.15, atol=0.0)
    assert variances.min() > 0


def test_vanilla_attention_is_softmax():
    from results.efficiency import vanilla

    query, key, value = (torch.randn(2, 3, 9, 4, dtype=torch.float64) for _ in range(3))
    for causal in (False, True):
        wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        torch.testing.assert_close(vanilla(query, key, value, causal=causal), wanted)


@pytest.mark.parametrize("name", ["vanilla", "Performer", "linear transformer"])
def test_operations_of_attentions_are_those_that_torch_counts(name):
    from results.efficiency import attends
    from results.efficiency_text import operations

    # long enough for the forms of linear cost
    heads, size, length = 2, 8, 1024
    attend = attends(length, heads, size, causal=False)[name]()
    query, key, value = (torch.randn(1, heads, length, size, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        attend(query, key, value).sum().backward()
    assert counter.get_total_flops() == operations(name, length, heads, size)


def test_operations_of_other_attentions():
    from results.efficiency_text import RADIUS, operations

    pairs = sum(abs(i - j) < RADIUS for i in range(300) for j in range(300))
    assert operations("local window", 300, 3, 16) == 3 * 14 * 16 * pairs
    assert operations("softmax", 300, 3, 16) == operations("torch SDPA", 300, 3, 16) == 3 * 14 * 16 * 300**2


def test_every_attention_is_timed_alone():
    from results.efficiency import QUICK, measure_alone

    chosen = QUICK | {"longest_vanilla": 100}
    full = measure_alone(chosen, 64, causal=False)
    assert [*full] == [
        "vanilla",
        "torch SDPA",
        "softmax",
        "local window",
        "Linformer",
        "Performer",
        "linear transformer",
    ]
    assert "Linformer" not in measure_alone(chosen, 64, causal=True)
    assert "vanilla" not in measure_alone(chosen, 128, causal=True)
    for one in full.values():
        assert one["seconds"] > 0
        assert one["bytes"] > 0
        assert 0 <= one["products"] <= 1


def test_structured_layers_have_a_quarter_of_the_parameters():
    from results.structures import SETTINGS, compiled, contenders, layer_elements
    from results.structures_text import NAMES

    from attnc.study.presets import Changes, configure

    ((task, recipe, _),) = configure("tiny", ("recall",), Changes(), {})
    found = contenders(compiled(None), compiled(SETTINGS["narrow"]), task, recipe.size)
    assert [one.name for one in found] == [*NAMES]
    assert not any(one.missing for one in found)
    dense, *others = map(layer_elements, found)
    assert dense == 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert all(0.18 < one / dense < 0.26 for one in others)


def test_rows_are_kept_and_gone_on_from(tmp_path, capsys):
    from results.store import OutOfTimeError, Store

    path, machine, asked = tmp_path / "a.json", {"device": "x", "threads": 1, "system": "y"}, []
    store = Store(path, machine, {"seeds": 2})
    store.add("one", lambda: asked.append(1) or {"value": (1, 2)})
    again = Store(path, machine | {"system": "z"}, {"seeds": 2}, deadline=0.0)
    again.add("one", lambda: asked.append(2))
    assert again.rows == {"one": {"value": [1, 2]}}
    with pytest.raises(OutOfTimeError):
        again.add("two", lambda: asked.append(3))
    assert asked == [1]
    assert Store(path, machine, {"seeds": 3}).rows == {}
    assert Store(path, machine | {"threads": 2}, {"seeds": 2}).rows == {}
    assert Store(path, machine, {"seeds": 2}, redo=True).rows == {}
    path.write_text("{ not JSON")
    assert Store(path, machine, {"seeds": 2}).rows == {}
    with pytest.raises(ValueError, match="JSON"):
        store.add("bad", lambda: math.nan)


def test_an_interrupted_part_goes_on(tmp_path, capsys, monkeypatch):
    import reproduce
    from results import performer

    places = ("--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs"))
    small = performer.QUICK | {"seeds": 3, "features": [4], "attention_features": [8], "positions": 8, "size": 4}
    monkeypatch.setattr(performer, "QUICK", small)
    assert reproduce.main(["performer", "--quick", "--budget", "0", *places]) == 1
    assert "goes on" in capsys.readouterr().out
    assert "Performer" not in (tmp_path / "docs" / "results.md").read_text()
    assert reproduce.main(["performer", "--quick", *places]) == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "## Performer" in page
    assert "Strassen" not in page
    assert (tmp_path / "docs" / "results" / "performer.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert reproduce.main(["performer", "--quick", *places]) == 0
    assert capsys.readouterr().out.splitlines() == ["performer: 5 rows are there already"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["perfomer"], "there is no part `perfomer`: choose from performer, efficiency, schemes, structures, page"),
        (["--budget", "-1"], "`-1` is no number of seconds: give one from 0 on"),
        (["--budget", "nan"], "`nan` is no number of seconds"),
        (["--budget", "soon"], "`soon` is no number of seconds"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    import reproduce

    with pytest.raises(SystemExit) as caught:
        reproduce.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    import reproduce

    (tmp_path / "results.md").mkdir()
    assert reproduce.main(["page", "--docs", str(tmp_path), "--work", str(tmp_path / "work")]) == 1
    assert "is a directory" in capsys.readouterr().err


def test_quick_runs_touch_no_pages_of_the_project():
    import reproduce

    options = reproduce.parse(["--quick"])
    assert options.docs == options.work == ROOT / "build" / "study-quick"
    assert reproduce.parse([]).docs == DOCS


def test_times_of_schemes_are_the_least_of_one_machine(tmp_path):
    from results import schemes
    from results.store import Store

    machine = {"device": "x", "cores": 2, "threads": 1, "torch": "2"}
    row = {"seconds": [2.0, 1.0], "errors": [1e-6, 2e-6]}
    store = Store(tmp_path / "rows.json", machine, schemes.SETTINGS)
    store.add("strassen 1 512", lambda: row)
    store.add("rates", lambda: [1e11, 4e10])
    schemes.publish(store, tmp_path)
    store.rows["strassen 1 512"] = row | {"seconds": [1.5, 1.25]}
    schemes.publish(store, tmp_path)
    path = tmp_path / f"{schemes.ONE_THREAD}.json"
    assert json.loads(path.read_text())["rows"]["strassen 1 512"]["seconds"] == [1.5, 1.0]
    assert "| 1 | 512 | 1500.00 | 1000.00 |" in path.with_suffix(".md").read_text()
    store.data["machine"] = machine | {"device": "y"}
    schemes.publish(store, tmp_path)
    assert json.loads(path.read_text())["rows"]["strassen 1 512"]["seconds"] == [1.5, 1.25]


def test_schemes_of_two_machines_are_not_mixed(tmp_path, monkeypatch, capsys):
    import time_schemes

    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rates": [], "rows": {}, "machine": {}, "dtype": "float32", "clock": "wall"}))
    monkeypatch.setattr("sys.argv", ["time_schemes.py", "--json", str(path), "--sizes", "64"])
    with pytest.raises(SystemExit):
        time_schemes.main()
    assert "is of another machine, type or clock: write to another file" in capsys.readouterr().err


def test_the_pages_are_what_the_files_say():
    from results import page
    from results.page import TEXTS

    found = page.results(DOCS)
    assert [*found] == [*TEXTS]
    assert (DOCS / "results.md").read_text() == page.page(DOCS), "run `python tools/reproduce.py page`"
    for name in ("performer", "efficiency", "structures"):
        path = DOCS / "results" / f"{page.FILES.get(name, name)}.md"
        assert path.read_text() == page.joined(TEXTS[name].details(found[name]))


def test_the_pages_follow_the_files(tmp_path):
    from results import page

    (tmp_path / "results").mkdir()
    for path in (DOCS / "results").glob("*.json"):
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    before = page.page(tmp_path)
    for name, change in (
        ("efficiency", lambda data: data["rows"]["model 4096"]["Performer"].update(seconds=99.0)),
        ("performer", lambda data: data["rows"]["attention 0.25"].update(expected=9.0)),
        (
            "structured_layers",
            lambda data: data["rows"]["copying 0"]["contenders"][0]["readings"]["steps"].update(loss=9.0),
        ),
        ("strassen_one_thread", lambda data: data["rows"]["strassen 1 4096"].update(seconds=[1.0, 9.0])),
    ):
        path = tmp_path / "results" / f"{name}.json"
        text = path.read_text()
        data = json.loads(text)
        change(data)
        path.write_text(json.dumps(data))
        assert page.page(tmp_path) != before, name
        path.write_text(text)
    assert page.page(tmp_path) == before
