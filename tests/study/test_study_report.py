"""Tables: which part goes where, means and spreads, what could not be said; pictures of the same."""

import io

import pytest
from rich.console import Console

from attnc.study.curves import Budgets, Point, Reading
from attnc.study.models import Size
from attnc.study.plot import draw_study
from attnc.study.recall import recall
from attnc.study.report import Study, TaskReport, as_json, as_markdown, lay_out
from attnc.study.training import Recipe
from attnc.study.trial import Result, Trial

RECIPE = Recipe(Size(8, 1, 2), steps=4, batch=4, learning_rate=1e-3, evaluations=2, held_out=12)
MACHINE = {"device": "a CPU", "threads": 1, "torch": "2"}


def result(name, accuracy, *, reached=True, problem=""):
    points = (Point(0, 2.0, 0.1), Point(4, 1.0, accuracy))
    readings = {} if problem else {name: Reading(4.0, 1.0, accuracy, reached) for name in ("steps", "flops", "seconds")}
    return Result(name, f"{name}()", 30.0, 0.25, 500, 2000, 8240, 3_000_000, 0.0123, points, readings, problem)


def report(*accuracies, more=()):
    trials = tuple(
        Trial(seed, 0.125, Budgets(4, 1.2e7, 0.05), (result("torch", accuracy), *more))
        for seed, accuracy in enumerate(accuracies)
    )
    return TaskReport(recall(24, 2, 4, 4, 4, 1.0), RECIPE, trials, (("huggingface", "not there"),))


def printed(one, width):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in lay_out(one, width):
        console.print(part, markup=False)
    return console.file.getvalue().splitlines()


def test_one_table_where_there_is_room_for_it():
    lines = printed(report(0.5), 140)
    assert lines[0] == "recall: length 24, pairs 2, keys 4, values 4, gap 4, power 1"
    cells = [cell.strip() for cell in lines[4].split("│")[1:-1]]
    assert cells == ["torch", "25.0%", "3", "12.3 ms", "10 KiB", *["50.0 %"] * 3, *["1.00"] * 3]
    assert lines[-2:] == ["chance 12.5 %; budgets: 4 steps; 1.2e+07 FLOP; 50 ms", "huggingface: not there"]


@pytest.mark.parametrize(("width", "tables"), [(140, 1), (100, 2), (60, 3)])
def test_tables_break_between_their_parts_and_no_figure_is_cut(width, tables):
    lines = printed(report(0.5, 0.75), width)
    assert sum(line.startswith("┏") for line in lines) == tables
    assert all(len(line.rstrip()) <= width for line in lines)
    text = "\n".join(lines)
    assert text.count("62.5 ± 17.7 %") == 3
    assert text.count("1.00 ± 0.00") == 3
    assert "…" not in text


def test_failures_and_short_trainings_are_marked():
    more = (result("slow", 0.25, reached=False), result("wild", 0.2, problem="the loss of step 3 is nan"))
    one = report(0.5, more=more)
    lines = printed(one, 140)
    assert [cell.strip() for cell in lines[5].split("│")[6:9]] == ["25.0 %*"] * 3
    assert [cell.strip() for cell in lines[6].split("│")[6:-1]] == ["-"] * 6
    assert "* the budget pays for more steps than were taken" in lines
    assert "wild: the loss of step 3 is nan" in lines
    text = as_markdown(Study(MACHINE, {"preset": "tiny", "seeds": [0]}, (one,), complete=True))
    assert "| slow | 25.0% | 3 | 12.3 ms | 10 KiB | 25.0 %\\* | 1.00 |" in text
    assert "- slow: `slow()`" in text
    assert "on a CPU, 1 thread, torch 2." in text
    assert "Settings: preset tiny, seeds 0." in text


def test_every_point_has_its_cost():
    found = as_json(Study(MACHINE, {}, (report(0.5),)))
    (one,) = found["tasks"][0]["trials"][0]["contenders"]
    assert one["points"][1] == {"step": 4, "loss": 1.0, "accuracy": 0.5, "flops": 12_000_000, "seconds": 0.0492}
    assert one["bytes"] == 10240
    assert found["complete"] is False


def test_a_picture_of_several_seeds_and_a_failure():
    more = (result("wild", 0.2, problem="the loss of step 3 is nan"),)
    assert draw_study(Study(MACHINE, {}, (report(0.5, 0.75, more=more),))).startswith(b"\x89PNG")
