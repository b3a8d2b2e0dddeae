"""The training example: its text, its count of work, its curves against PyTorch's attention, its files, its words."""

import importlib
import importlib.util
import inspect
import itertools
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "train_lm.py"
SMALL = "--steps 12 --length 48 --batch 2 --window 8 --width 16 --layers 2 --heads 2 --text-bytes 60000 --threads 1"
TINY = SMALL.split()
NAMES = ("dense", "streaming", "dilated")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny products gain nothing from a second thread, and wait for it where other tests keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        spec = importlib.util.spec_from_file_location("train_lm", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def parts(example):
    return partial(_part, example)


def _part(example, name):
    return importlib.import_module(f"language_model.{name}")


@pytest.fixture(scope="module")
def corpus(parts):
    return parts("text").read_corpus(60_000, 48)


def settings_of(example, **changes):
    values = {"steps": 12, "length": 48, "batch": 2, "learning_rate": 4e-3, "evaluations": 3, "held_out": 2, "seed": 0}
    values |= {"size": example.Size(16, 2, 2), "dtype": torch.float32} | changes
    return example.Settings(**values)


def learnt(example, corpus, settings, names=NAMES, check=True):
    loaded = [example.load_pattern(name, settings.length, 8) for name in names]
    learners = example._learners(loaded, settings, check=check)
    example.train(learners, corpus, settings)
    return learners


def call(example, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        example.run()
    message = stopped.value.code if isinstance(stopped.value.code, str) else ""
    return (1 if message else stopped.value.code), message or capsys.readouterr().err


def test_the_text_is_the_librarys_own(parts, corpus):
    text = parts("text")
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in bytes(corpus.training.tolist()).decode()
    again = text.read_corpus(60_000, 48)
    assert torch.equal(again.training, corpus.training)
    assert torch.equal(again.validation, corpus.validation)
    assert 60_000 <= len(corpus.training) + len(corpus.validation) < 80_000


def test_documents_are_what_modules_document(parts, tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""One."""\nclass A:\n    """Two."""\n    def f(self):\n        """Three."""\nx = {"a": "no"}\n')
    assert sorted(parts("text")._strings(module, topics=False)) == ["One.", "Three.", "Two."]
    module.write_text('topics = {"a": "Four.", "b": 5}\n')
    assert list(parts("text")._strings(module, topics=True)) == ["Four."]
    module.write_text("not python\n")
    assert list(parts("text")._strings(module, topics=False)) == []


def test_windows_are_followed_by_the_next_byte(corpus):
    for ids, following in (corpus.draw(3, 20, torch.Generator().manual_seed(1)), corpus.held_out(3, 20)):
        assert ids.shape == following.shape == (3, 20)
        assert torch.equal(ids[:, 1:], following[:, :-1])
    first, last = corpus.held_out(2, 20)
    assert torch.equal(first[0], corpus.validation[:20].long())
    assert torch.equal(last[1], corpus.validation[-20:].long())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [2, 700])
def test_pairs_are_those_of_the_mask(example, name, length):
    pattern = example.load_pattern(name, length, 8)
    assert pattern.pairs == int(pattern.mask().sum())
    assert pattern.density == pattern.pairs / length**2


def test_torch_gets_its_flag_where_that_is_the_pattern(example):
    said = [example.torch_attend(example.load_pattern(name, 48, 8))[0] for name in NAMES]
    assert said == ["sdpa, causal", "sdpa, mask", "sdpa, mask"]
    assert example.torch_attend(example.load_pattern("streaming", 48, 48))[0] == "sdpa, causal"


def test_flops_are_those_that_torch_counts(example, parts):
    def attend(query, key, value):  # torch counts matrix products alone
        return torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value

    for counted, function in ((True, attend), (False, lambda query, key, value: query + key + value)):
        model = parts("model").LanguageModel(example.Size(16, 2, 2), function, 8, 0, torch.float32)
        with FlopCounterMode(display=False) as counter:
            functional.cross_entropy(
                model(torch.zeros(3, 8, dtype=torch.long)).view(-1, 256), torch.zeros(24).long()
            ).backward()
        found = counter.get_total_flops()
        # autograd keeps the scores: it needs four products backward, and an attention that keeps none needs five
        full = example.Pattern("full", attend, pairs=64, length=8, mask=None).attention_flops(2, 8) * 3 * 2 * 6 // 7
        assert found == model.matrix_flops(3 * 8) + (full if counted else 0)


def test_the_default_model_has_a_million_parameters(example, parts):
    default = {name: one.default for name, one in inspect.signature(example.main).parameters.items()}
    size = example.Size(default["width"], default["layers"], default["heads"])
    model = parts("model").LanguageModel(size, lambda query, key, value: value, 8, 0, torch.float32)
    assert 0.9e6 < model.parameter_count() < 1.1e6


@pytest.mark.parametrize("name", NAMES)
def test_no_byte_sees_a_later_one(example, parts, name):
    pattern = example.load_pattern(name, 48, 8)
    model = parts("model").LanguageModel(example.Size(16, 2, 2), pattern.attend, 48, 0, torch.float32)
    ids = torch.randint(256, (1, 48), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 30:] = 7
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :30], after[:, :30], rtol=1e-4, atol=1e-6)
    assert (before[:, 30:] - after[:, 30:]).abs().max() > 1e-3


def test_rotary_scores_depend_on_distance_alone(parts):
    angles = torch.arange(9.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
    query, key = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64)
    turned = [parts("model").rotate(one.expand(1, 1, 9, 4), angles.cos(), angles.sin()) for one in (query, key)]
    scores = (turned[0] @ turned[1].transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-6


def test_curves_are_those_of_torchs_attention(example, corpus):
    learners = learnt(example, corpus, settings_of(example))
    found = example.agreements(learners)
    assert [one.pattern for one in found] == list(NAMES)
    assert max(one.greatest for one in found) < 1e-4
    for learner in learners:
        losses = list(learner.curves.validation.values())
        assert sorted(learner.curves.validation) == [0, 4, 8, 12]
        assert losses[0] == pytest.approx(math.log(256), abs=0.1)
        assert losses[-1] < losses[0] - 0.3
        assert learner.curves.memory > 0
    ends = {round(learner.curves.last_validation, 3) for learner in learners}
    assert len(ends) > 1, "the patterns learn the same: they are not told apart"


def test_what_is_left_between_the_curves_is_rounding(example, corpus):
    found = example.agreements(learnt(example, corpus, settings_of(example, dtype=torch.float64)))
    assert max(one.greatest for one in found) < 1e-10


def test_two_trainings_are_the_same(example, corpus):
    settings = settings_of(example)
    first, second = (learnt(example, corpus, settings, NAMES, check=False) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.curves.training == other.curves.training
        assert one.curves.validation == other.curves.validation
        for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(left, right)
    third = learnt(example, corpus, settings_of(example, seed=1), ("dense",), check=False)
    assert third[0].curves.training != first[0].curves.training


def test_the_rate_grows_and_falls(example):
    settings = settings_of(example, steps=100, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(left >= right for left, right in itertools.pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)
    assert settings_of(example, steps=1).rate(0) == 4e-3


def test_the_script_writes_table_picture_and_curves(tmp_path):
    command = [sys.executable, str(SCRIPT), *TINY, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("streaming", "sdpa, mask", "sdpa, causal", "held out", "GFLOP", "MiB", "differ by at most"):
        assert word in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.json", "loss.png", "table.md"]
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in table if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert {len(row) for row in rows} == {9}
    told = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [one["pattern"] for one in told["trainings"][::2]] == list(NAMES)
    assert all(len(one["training"]) == len(one["seconds"]) == 12 for one in told["trainings"])
    assert all(max(one["differences"]) < 1e-4 for one in told["agreements"])


def test_one_pattern_alone(example, monkeypatch, capsys, tmp_path):
    arguments = [*TINY, "--patterns", "streaming", "--no-check", "--steps", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_lm.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        example.run()
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "sdpa, " not in out
    assert "differ by" not in out
    assert json.loads((tmp_path / "curves.json").read_text())["agreements"] == []


def test_another_attention_is_found_out(example, monkeypatch, capsys, tmp_path):
    wrong = "sdpa, mask", partial(functional.scaled_dot_product_attention, is_causal=True)
    monkeypatch.setattr(example, "torch_attend", lambda pattern: wrong)
    arguments = [*TINY, "--patterns", "streaming", "--out", str(tmp_path)]
    code, message = call(example, monkeypatch, capsys, *arguments)
    assert code == 1
    assert message.startswith("error: streaming: the curves are ")
    assert (tmp_path / "curves.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--length 1", "error: --length is 1, expected a number from 2 to 1,073,741,824"),
        ("--steps 0", "error: --steps is 0, expected a number from 1 to 1,073,741,824"),
        ("--seed -1", "error: --seed is -1, expected a number from 0 to 1,073,741,824"),
        ("--threads 0", "error: --threads is 0, expected a number from 1 to 1,024"),
        ("--held-out 0", "error: --held-out is 0, expected a number from 1 to 1,073,741,824"),
        ("--learning-rate nan", "error: --learning-rate is nan, expected a number above 0"),
        ("--tolerance 0", "error: --tolerance is 0.0, expected a number above 0"),
        ("--width 12 --heads 4", "error: --width is 12, expected a multiple of twice --heads, 8, up to 1024"),
        ("--width 1024 --heads 1", "error: --width is 1024, expected a multiple of twice --heads, 2, up to 256"),
        ("--patterns dense,sparse", "error: there is no pattern `sparse`; choose from dense, streaming, dilated"),
        ("--patterns ,", "error: --patterns names no pattern; choose from dense, streaming, dilated"),
        ("--learning-rate 1e30", "error: dense, attnc: the loss of step "),
        ("--text-bytes 100", "error: the text is too short: its parts for training and validation have "),
        ("--length 100000000", "error: SDPA's mask of 100,000,000 x 100,000,000 takes "),
        ("--out {taken}/folder", "error: --out: `{taken}/folder` cannot be made: not a directory"),
    ],
)
def test_mistakes_are_one_line(example, monkeypatch, capsys, tmp_path, arguments, said):
    taken = tmp_path / "taken"
    taken.write_text("")
    given = [*TINY, "--out", str(tmp_path / "out"), *arguments.format(taken=taken).split()]
    code, message = call(example, monkeypatch, capsys, *given)
    assert code == 1
    assert message.startswith(said.format(taken=taken))
    assert "\n" not in message
    assert not list(tmp_path.glob("out/*"))


def test_options_that_are_no_numbers_are_usage_mistakes(example, monkeypatch, capsys):
    code, message = call(example, monkeypatch, capsys, "--steps", "many")
    assert code == 2
    assert "--steps" in message


def test_files_that_cannot_be_written_are_known_before_the_training(example, monkeypatch, capsys, tmp_path):
    (tmp_path / "table.md").mkdir()
    monkeypatch.setattr(example, "train", None)
    code, message = call(example, monkeypatch, capsys, *TINY, "--out", str(tmp_path))
    assert code == 1
    assert f"`{tmp_path / 'table.md'}` is a directory" in message


@pytest.mark.slow
def test_the_default_model_learns_the_same_with_either(example, parts):
    corpus = parts("text").read_corpus(400_000, 512)
    settings = settings_of(example, size=example.Size(128, 5, 4), steps=40, length=512, batch=2, learning_rate=1.5e-3)
    learners = learnt(example, corpus, settings)
    assert max(one.greatest for one in example.agreements(learners)) < 1e-3
    assert all(learner.curves.last_validation < 3.6 for learner in learners)
