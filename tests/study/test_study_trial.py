"""Budgets: reading curves, and training as far as each budget pays for."""

from dataclasses import replace

import pytest
import torch

from attnc.study.contenders import shipped
from attnc.study.curves import Budgets, Point, read
from attnc.study.models import Size
from attnc.study.recall import recall
from attnc.study.training import WARM_UP, Learner, Recipe
from attnc.study.trial import MOST, Wanted, run_trial

CURVE = (Point(0, 4.0, 0.0), Point(10, 2.0, 0.5), Point(30, 1.0, 0.9))
TASK = recall(24, 2, 4, 4, 4, 1.0)
RECIPE = Recipe(Size(8, 1, 2), steps=4, batch=4, learning_rate=1e-3, evaluations=2, held_out=12)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny products gain nothing from a second thread, and wait for it where other tests keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("steps", "loss", "accuracy", "reached"),
    [
        (0, 4.0, 0.0, True),
        (2.5, 3.5, 0.125, True),
        (10, 2.0, 0.5, True),
        (15, 1.75, 0.6, True),
        (30, 1.0, 0.9, True),
        (30.9, 1.0, 0.9, True),
        (31, 1.0, 0.9, False),
    ],
)
def test_reading_a_curve(steps, loss, accuracy, reached):
    found = read(CURVE, steps)
    assert (found.steps, found.loss, found.reached) == (steps, loss, reached)
    assert found.accuracy == pytest.approx(accuracy)


def test_what_budgets_pay_for():
    budgets = Budgets(100, 5e9, 30.0)
    assert budgets.in_steps(2e7, 0.5) == {"steps": 100, "flops": 250.0, "seconds": 60.0}


def test_the_learning_rate_is_constant_behind_the_warm_up():
    assert RECIPE.rate(0) == pytest.approx(1e-3 / WARM_UP)
    assert RECIPE.rate(WARM_UP - 1) == RECIPE.rate(10_000) == 1e-3


def contenders(*names):
    return [shipped(name, TASK, RECIPE.size, 2) for name in names]


def steps_of(result):
    return [point.step for point in result.points]


def timed(monkeypatch, **seconds):
    """Give each contender's steps a time that is not measured."""
    monkeypatch.setattr(Learner, "step_seconds", lambda self: seconds[self.contender.name])


def test_cheap_contenders_go_on_until_the_operations_are_used_up(monkeypatch):
    timed(monkeypatch, torch=1.0, window=1.0)
    recipe = replace(RECIPE, steps=40)
    found = run_trial(contenders("torch", "window"), TASK, recipe, 0, CPU)
    dense, window = found.results
    assert found.budgets == Budgets(40, 40.0 * dense.flops, 40.0)
    assert window.flops < dense.flops
    last = int(40 * dense.flops / window.flops)
    assert last > 40
    assert steps_of(dense) == [0, 20, 40]
    assert steps_of(window) == [0, 20, 40, last]
    assert window.readings["flops"].steps == pytest.approx(40 * dense.flops / window.flops)
    assert window.readings["flops"].accuracy == window.points[-1].accuracy
    assert window.readings["steps"].loss == window.readings["seconds"].loss == window.points[2].loss
    assert all(one.reached for result in found.results for one in result.readings.values())


def test_slow_contenders_are_read_earlier_and_quick_ones_go_on(monkeypatch):
    timed(monkeypatch, torch=1.0, dense=2.0, window=0.5)
    dense, slow, quick = run_trial(contenders("torch", "dense", "window"), TASK, RECIPE, 0, CPU).results
    assert (steps_of(dense), steps_of(slow), steps_of(quick)) == ([0, 2, 4], [0, 2, 4], [0, 2, 4, 6, 8])
    assert slow.readings["seconds"].steps == 2.0
    assert slow.readings["seconds"].loss == slow.points[1].loss
    assert quick.readings["seconds"].loss == quick.points[-1].loss
    assert slow.readings["steps"].loss == pytest.approx(dense.readings["steps"].loss, abs=1e-5)


def test_budgets_of_the_user_and_their_end(monkeypatch):
    timed(monkeypatch, torch=1.0)
    (one,) = run_trial(contenders("torch"), TASK, RECIPE, 0, CPU, Wanted(seconds=1000.0)).results
    assert one.points[-1].step == MOST * RECIPE.steps
    assert not one.readings["seconds"].reached
    assert one.readings["flops"].reached
    assert one.readings["seconds"].loss == one.points[-1].loss
    (one,) = run_trial(contenders("torch"), TASK, RECIPE, 0, CPU, Wanted(flops=2.0 * one.flops, seconds=3.0)).results
    assert steps_of(one) == [0, 2, 4]
    assert one.readings["flops"].loss == one.points[1].loss
    assert one.readings["seconds"].loss == pytest.approx((one.points[1].loss + one.points[2].loss) / 2)


def test_all_learn_from_the_same_examples(monkeypatch):
    timed(monkeypatch, torch=1.0, dense=1.0)
    seen = {"torch": [], "dense": []}
    step = Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, batch: (seen[self.contender.name].append(batch), step(self, batch))
    )
    run_trial(contenders("torch", "dense"), TASK, RECIPE, 0, CPU)
    assert len(seen["torch"]) == 4
    assert all(one is other for one, other in zip(seen["torch"], seen["dense"], strict=True))
    assert len({tuple(batch.tokens.flatten().tolist()) for batch in seen["torch"]}) == 4


def test_a_seed_decides_the_curves():
    found = [run_trial(contenders("torch", "window"), TASK, RECIPE, seed, CPU) for seed in (5, 5, 6)]
    curves = [[result.points[:3] for result in one.results] for one in found]
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_a_training_that_diverges_ends_alone(monkeypatch):
    timed(monkeypatch, torch=1.0, window=1.0)
    step = Learner.step

    def broken(self, batch):
        if self.contender.name == "window" and self.steps == 2:
            with torch.no_grad():
                self.model.head.bias.fill_(torch.nan)
        step(self, batch)

    monkeypatch.setattr(Learner, "step", broken)
    dense, window = run_trial(contenders("torch", "window"), TASK, RECIPE, 0, CPU).results
    assert (dense.problem, steps_of(dense)) == ("", [0, 2, 4])
    assert (window.problem, steps_of(window), window.readings) == ("the loss of step 3 is nan", [0, 2], {})


def test_memory_and_progress_are_reported(monkeypatch):
    timed(monkeypatch, torch=1.0)
    told = []
    (one,) = run_trial(contenders("torch"), TASK, RECIPE, 0, CPU, progress=lambda *what: told.append(what)).results
    assert told == [("torch", step, 4) for step in (1, 2, 3, 4)]
    assert one.parameter_bytes == 4 * one.parameters
    # at least the logits of a batch and their gradient; at most what a thousand numbers for each token take
    assert 4 * 2 * 4 * 24 * 4 <= one.activation_bytes <= 4 * 24 * 4 * 1000
    assert one.bytes == one.parameter_bytes + one.activation_bytes


@pytest.mark.slow
def test_what_the_tiny_preset_shows_of_recall():
    """Zoology's finding: attention recalls over any distance, and a window does not reach the keys."""
    from attnc.study.presets import Changes, configure

    ((task, recipe, width),) = configure("tiny", ("recall",), Changes(), {})
    names = ("torch", "dense", "window")
    found = run_trial([shipped(name, task, recipe.size, width) for name in names], task, recipe, 0, CPU)
    torch_, dense, window = (result.readings["steps"].accuracy for result in found.results)
    assert min(torch_, dense) > 0.95
    assert window < found.chance + 0.05
    # two layers of windows reach 2 x (width - 1) positions back, and every query is further from the last pair
    assert 2 * (width - 1) < task.settings["gap"]
