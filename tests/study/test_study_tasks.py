"""Tasks against oracles that read the examples as a person would."""

import statistics
from collections import Counter

import pytest
import torch

from attnc.diagnostics import CompileError
from attnc.study.copying import copying, selective
from attnc.study.listops import WORDS, listops, text
from attnc.study.recall import recall
from attnc.study.tasks import IGNORED, Batch, Part, chance, is_held_out, stream

TASKS = {
    "recall": recall(40, 5, 9, 7, 6, 0.01),
    "copying": copying(21, 6, 3),
    "selective": selective(20, 5, 4),
    "listops": listops(30, 3, 4, 0.3),
}


def examples(task, count=200, part=Part.TRAINING, seed=0):
    batch = next(stream(task, part, seed, count))
    assert batch.tokens.shape == batch.targets.shape == (count, task.length)
    assert int(batch.tokens.min()) >= 0
    assert int(batch.tokens.max()) < task.vocabulary
    assert int(batch.targets.max()) < task.classes
    return list(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))


def test_recall_asks_once_for_the_value_of_each_key():
    filler, keys, values = {0}, set(range(1, 10)), set(range(10, 17))
    places = Counter()
    for tokens, targets in examples(TASKS["recall"]):
        shown = dict(zip(tokens[0:10:2], tokens[1:10:2], strict=True))
        assert len(shown) == len(set(shown.values())) == 5
        assert set(shown) <= keys
        assert set(shown.values()) <= values
        asked = {tokens[k]: k for k in range(10, 40) if targets[k] != IGNORED}
        assert set(asked) == set(shown)
        for k in range(40):
            if k >= 10 and k not in asked.values():
                assert tokens[k] in filler
            assert targets[k] == (shown[tokens[k]] - 10 if k in asked.values() else IGNORED)
        assert all(k >= 16 and k % 2 == 0 for k in asked.values())
        places.update(asked.values())
    assert set(places) == set(range(16, 40, 2))
    early, late = (sum(places[k] for k in range(start, start + 12, 2)) for start in (16, 28))
    assert early > 1.5 * late  # the power law


def test_any_place_is_as_likely_where_the_power_is_one():
    places = Counter()
    for _, targets in examples(recall(40, 5, 9, 7, 6, 1.0), 600):
        places.update(k for k in range(40) if targets[k] != IGNORED)
    assert max(places.values()) < 1.3 * min(places.values())


def test_copying_asks_for_the_string_before_the_mark():
    sizes = Counter()
    for tokens, targets in examples(TASKS["copying"]):
        size = tokens.index(6)
        string = tokens[:size]
        sizes[size] += 1
        assert max(string) < 6
        assert tokens[size:] == [6, *string[:-1], *[7] * (21 - 2 * size)]
        assert targets == [IGNORED] * size + string + [IGNORED] * (21 - 2 * size)
    assert set(sizes) == set(range(3, 11))


def test_selective_copying_asks_for_what_is_no_noise_in_its_order():
    for tokens, targets in examples(TASKS["selective"]):
        string = [token for token in tokens[:16] if token != 5]
        assert len(string) == 4
        assert max(string) < 5
        assert tokens[16:] == [6] * 4
        assert targets == [IGNORED] * 16 + string


def evaluated(words):
    """Evaluate an expression with a stack; also return how deep it is and the numbers of arguments."""
    stack, deepest, arguments = [], 0, []
    for word in words:
        if word != "]":
            stack.append(word)
            deepest = max(deepest, sum(str(one).startswith("[") for one in stack))
            continue
        values = []
        while not str(stack[-1]).startswith("["):
            values.append(int(stack.pop()))
        arguments.append(len(values))
        match stack.pop():
            case "[MIN":
                stack.append(sorted(values)[0])
            case "[MAX":
                stack.append(sorted(values)[-1])
            case "[MED":
                stack.append(int(statistics.median(values)))
            case "[SM":
                stack.append(int(str(sum(values))[-1]))
    (value,) = stack
    return value, deepest, arguments


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MED 5 3 8 ]", 5),
        ("[MED 5 2 ]", 3),
        ("[SM 9 8 [SM 1 2 ] ]", 0),
        ("[MIN [MAX 1 2 ] [MED 3 9 0 4 ] ]", 2),
    ],
)
def test_the_evaluator_of_these_tests(expression, value):
    assert evaluated(expression.split())[0] == value


def test_listops_asks_for_the_value_of_the_expression():
    deepest, arguments, operators = Counter(), Counter(), Counter()
    for tokens, targets in examples(TASKS["listops"], 400):
        words = text(tokens).split()
        assert words[-1] == "="
        assert [WORDS[token] for token in tokens[: -len(words)]] == ["_"] * (30 - len(words))
        value, depth, counts = evaluated(words[:-1])
        assert targets == [IGNORED] * 29 + [value]
        deepest[depth] += 1
        arguments.update(counts)
        operators.update(word for word in words if word.startswith("["))
    assert set(deepest) == {1, 2, 3}
    assert set(arguments) == {2, 3, 4}
    assert set(operators) == {"[MIN", "[MAX", "[MED", "[SM"}
    assert max(operators.values()) < 1.5 * min(operators.values())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_seed_decides_everything(task):
    batches = []
    for seed in (3, 3, 4):
        some = stream(task, Part.TRAINING, seed, 16)
        batches.append([next(some).tokens, next(some).tokens])
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][0], batches[0][1])
    assert not torch.equal(batches[0][0], batches[2][0])


@pytest.mark.parametrize(
    "task",
    [recall(8, 1, 6, 6, 0, 1.0), copying(4, 9, 1), selective(6, 3, 2), listops(7, 1, 2, 0.0)],
    ids=lambda task: task.name,
)
def test_no_example_is_in_both_streams_whatever_the_seeds(task):
    seen = {
        part: [tuple(tokens) for seed in range(2) for tokens, _ in examples(task, 300, part, seed)] for part in Part
    }
    training, evaluation = (set(seen[part]) for part in Part)
    assert len(training) + len(evaluation) < 1100  # the tasks are so small that examples do come again
    assert training.isdisjoint(evaluation)
    assert not is_held_out(torch.tensor(sorted(training))).any()


def test_one_in_eight_is_held_out():
    task = TASKS["recall"]
    tokens = task.draw(4000, torch.Generator().manual_seed(0)).tokens
    assert 0.11 < float(is_held_out(tokens).float().mean()) < 0.14


def test_chance_is_the_most_frequent_answer():
    assert chance(Batch(torch.zeros(1, 5), torch.tensor([[2, IGNORED, 1, 2, 0]]))) == 0.5


def test_a_task_of_two_examples_is_refused():
    with pytest.raises(CompileError) as caught:
        examples(copying(2, 2, 1), 4, Part.EVALUATION)
    assert str(caught.value) == (
        "error[too-few-examples]: `copying` has too few different examples: none is left to evaluate with\n"
        "help: one in 8 is held out; make the task larger with --length or --set"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: recall(8, 4, 9, 9, 0, 1.0), "`length` is 8\nhelp: it must be at least 4 times `pairs` and `gap`, 16"),
        (lambda: recall(80, 4, 3, 9, 0, 1.0), "`keys` is 3\nhelp: it must be at least as many as `pairs`, 4"),
        (lambda: recall(80, 4, 9, 3, 0, 1.0), "`values` is 3\nhelp: it must be at least as many as `pairs`, 4, and 2"),
        (lambda: recall(80, 0, 9, 9, 0, 1.0), "`pairs` is 0\nhelp: it must be at least 1"),
        (lambda: recall(80, 4, 9, 9, -1, 1.0), "`gap` is -1\nhelp: it must be at least 0"),
        (lambda: recall(80, 4, 9, 9, 0, 0.0), "`power` is 0.0\nhelp: it must be above 0"),
        (lambda: copying(20, 9, 11), "`shortest` is 11\nhelp: it must be from 1 to half of `length`, 10"),
        (lambda: copying(20, 1, 3), "`tokens` is 1\nhelp: it must be at least 2"),
        (lambda: selective(20, 9, 11), "`content` is 11\nhelp: it must be from 1 to half of `length`, 10"),
        (lambda: listops(20, 0, 3, 0.2), "`depth` is 0\nhelp: it must be from 1 to 20"),
        (lambda: listops(20, 2, 1, 0.2), "`arguments` is 1\nhelp: it must be from 2 to 20"),
        (lambda: listops(20, 2, 3, 0.9), "`nesting` is 0.9\nhelp: it must be from 0 to 0.5"),
    ],
)
def test_settings_that_do_not_fit(make, message):
    with pytest.raises(CompileError) as caught:
        make()
    assert str(caught.value) == f"error[unusable-setting]: {message}"
