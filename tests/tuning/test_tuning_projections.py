"""Tuning the projections of layers, really measured: what is wrong never wins, and what becomes of the results."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnc import cli
from attnc.bench.measure import Timing
from attnc.bench.names import Mode
from attnc.bench.run import Settings
from attnc.compiler import plan_source
from attnc.explanation_layers import count_free
from attnc.explanation_products import measured_name, taken_form
from attnc.runtime import tuned
from attnc.runtime.structures import block_forms
from attnc.runtime.structures.convolutions import ConvProjection
from attnc.runtime.structures.factors import BlockDiagonalProjection, MonarchProjection
from attnc.runtime.structures.projection import Projection
from attnc.runtime.structures.sparse import BandedProjection
from attnc.runtime.tuned import ProjectionForm
from attnc.runtime.tuned_store import use_remembered_tiles
from attnc.source import SourceFile
from attnc.tuning import projections
from attnc.tuning.projections import FormTrial, TunedProjection, entry_of_projection, tunable, tune_projections

TEXT = """attention a { mask causal }
layer block(width: int = 48) {
    norm rms
    heads 2
    query banded(4); key masked((i + j) % 3 != 1); value conv(3, 1)
    output block_diagonal(6)
    attend a
    feedforward gelu(hidden = 96, monarch(6))
}
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Stand in an empty folder, with a cache of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNC_PINNED", raising=False)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    use_remembered_tiles()
    Path("block.attn").write_text(TEXT)
    return tmp_path


def settings(dtype=torch.float32, backward=True):
    return Settings(torch.device("cpu"), dtype, (), Mode.BOTH if backward else Mode.FORWARD, seconds=0.0, least=1)


def layer(*modules):
    made = torch.nn.Module()
    for number, module in enumerate(modules):
        made.add_module(f"p{number}", module)
    return made


def tune(made, shape=(2, 40), budget=60.0, **options):
    chosen = settings(**options)
    return list(tune_projections(tunable(made, chosen), shape, chosen, budget=budget))


@pytest.mark.parametrize("options", [{}, {"backward": False}, {"dtype": torch.bfloat16}])
def test_every_form_of_projections_that_are_alike_is_measured_once(options):
    torch.manual_seed(0)
    modules = [
        MonarchProjection(24, 36, 4),
        torch.nn.Linear(3, 3),
        MonarchProjection(24, 36, 4),
        BandedProjection(24, 24, 3),
        ConvProjection(24, 12, 4, 2),
        MonarchProjection(24, 24, 4, product=torch.nn.functional.linear),
    ]
    found = tune(layer(*modules).to(options.get("dtype", torch.float32)), **options)
    assert [one.names for one in found] == [("p0", "p2"), ("p3",), ("p4",)]
    for one in found:
        table = one.module.table(torch.device("cpu"))
        assert {trial.name for trial in one.trials} == set(table.names()) - {"kernel"}
        assert all(trial.timing is not None for trial in one.trials), one.trials
        assert one.default == table.default("cpu")


def test_kernels_are_measured_where_they_run(monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    (found,) = tune(layer(BlockDiagonalProjection(8, 8, 2)), (1, 5))
    assert {trial.name for trial in found.trials if trial.timing} == {"bmm", "placed bmm", "kernel"}


def test_what_is_wrong_never_wins(monkeypatch):
    placed = block_forms.multiply_placed

    def wrong(x, blocks):
        out = placed(x, blocks)
        out[-1:] = 0
        return out

    table = block_forms.BLOCK_FORMS
    for change, problem in (
        ({"product": wrong}, "wrong output"),
        ({"gradients": lambda wants, grad, x, blocks: (placed(grad, blocks.mT) * 1.5, torch.zeros_like(blocks))},
         "wrong gradient of the input"),
        ({"gradients": lambda *given: 1 / 0}, "it fails: ZeroDivisionError"),
    ):  # fmt: skip
        form = replace(table.others[0], **change)
        monkeypatch.setattr(block_forms, "BLOCK_FORMS", replace(table, others=(form,)))
        monkeypatch.setattr(BlockDiagonalProjection, "table", lambda self, device: block_forms.BLOCK_FORMS)
        (found,) = tune(layer(BlockDiagonalProjection(24, 36, 4)))
        assert found.trials[-1].problem.startswith(problem)
        assert found.best.name == "bmm"


def test_a_gain_that_is_no_more_than_noise_changes_nothing():
    def trial(name, seconds):
        return FormTrial(name, Timing(seconds, seconds, seconds, 1))

    module = MonarchProjection(24, 36, 4)
    for seconds, best in ((0.99, "bmms of strips"), (0.9, "2 bmms")):
        trials = trial("2 bmms", seconds), trial("bmms of strips", 1.0)
        one = TunedProjection(("up",), module, "bmms of strips", trials)
        assert one.best.name == best
        entry = entry_of_projection(one, 1000, settings())
        assert entry.tiles == ProjectionForm(best)
        assert (entry.kernel, entry.head_size, entry.value_size, entry.keys) == (
            "projection monarch blocks=4",
            24,
            36,
            1024,
        )


def test_a_budget_ends_the_search():
    made = layer(MonarchProjection(24, 36, 4), BandedProjection(24, 24, 3))
    assert [one.names for one in tune(made, budget=0.0)] == [("p0",)]


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_the_command_remembers_and_explain_says_so(monkeypatch):
    before = run("explain", "block.attn", "-n", 64).stdout
    assert "  query, key: placed bmm of tiles (default: not measured)." in before
    assert "  up, down: bmms of strips (default: not measured)." in before
    chosen = {"monarch": "2 bmms", "conv": "conv, matmul"}

    def measured(works, device, **options):
        return {name: Timing(*[1.0 if name in chosen.values() else 2.0] * 3, 1) for name in works}

    monkeypatch.setattr(projections, "measure", measured)
    told = run("tune", "block.attn", "-n", 64, "--budget", 60, "--json", "out.json", "--out", "block.py").stdout
    assert "up: monarch blocks=6, 48 -> 96" in told
    assert "remembered in" in told
    rows = {row["identity"]: row for row in json.loads(Path("out.json").read_text())["kernels"] if "layer" in row}
    assert rows["projection monarch blocks=6"]["chosen"] == "2 bmms"
    assert rows["projection conv kernel=3 stride=1"]["chosen"] == "conv, matmul"
    after = run("explain", "block.attn", "-n", 64).stdout
    where = tuned.device_name(torch.device("cpu"), True)
    assert f"  up, down: 2 bmms (measured on {where})." in after
    assert f"  query, key: placed bmm of tiles (measured on {where})." in after
    told = {
        one["name"]: one["taken"]
        for one in json.loads(run("explain", "block.attn", "--json").stdout)[-1]["projections"]
    }
    assert told["value"] == {"form": "conv, matmul", "reason": f"measured on {where}"}

    # a module that was written with what was measured needs no cache
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    monkeypatch.setenv("ATTNC_PINNED", "1")
    spec = importlib.util.spec_from_file_location("tuned_block", "block.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Block()
    monkeypatch.setattr(block_forms, "multiply_in_strips", None)
    assert made(torch.randn(1, 64, 48)).shape == (1, 64, 48)
    like = torch.empty(0)
    from attnc.runtime.structures.forms import measured_form

    assert measured_form(made.up.measured_as, like, (48, 96), 64) == "2 bmms"


def test_what_the_budget_leaves_out_is_said():
    told = run("tune", "block.attn", "-n", 32, "--budget", 0, "--seconds", 0, "--no-remember").stdout
    assert "left out by the budget: key, value, output, up, down" in told


def test_explanations_know_modules_by_the_same_names():
    compiled = plan_source(SourceFile("block.attn", TEXT))
    from attnc.compiler import import_compiled

    made, seen = import_compiled(compiled).Block(), set()
    for one in compiled.layers[0].projections:
        module = getattr(made, one.matrix.name)
        assert isinstance(module, Projection)
        assert measured_name(one, count_free(one)) == module.measured_as
        assert taken_form(one, count_free(one), 64).name == module.table(torch.device("cpu")).default("cpu")
        seen.add(one.matrix.projection.structure)
    assert seen == {"banded", "masked", "conv", "block_diagonal", "monarch"}
