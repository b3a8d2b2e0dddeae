"""The command `attnc study`: every task and contender, its files, what it says where something is wrong."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attnc import cli
from attnc.study import session
from attnc.study.contenders import SHIPPED
from attnc.study.hugging_face import has_transformers

EXAMPLES = Path(__file__).parents[2] / "examples"

SMALL = ("--steps", 2, "--batch", 4, "--width", 8, "--layers", 1, "--length", 32)
RECALL = ("--task", "recall", *SMALL, "--set", "pairs=2", "--set", "gap=4")
COPYING = ("--set", "shortest=4")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


def study(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["study", *map(str, arguments)])
    assert result.exit_code == code, f"{result.exit_code}\n{result.output}"
    return result


def test_every_contender_and_the_files(place):
    output = study(*RECALL, "--json", "a.json", "--markdown", "a.md").stdout
    found = json.loads(Path("a.json").read_text())
    assert found["complete"] is True
    assert [one["task"] for one in found["tasks"]] == ["recall"]
    there = [name for name in SHIPPED if name != "huggingface" or has_transformers()]
    for one in found["tasks"]:
        (trial,) = one["trials"]
        assert [result["name"] for result in trial["contenders"]] == there
        assert one["missing"] == ({} if has_transformers() else {"huggingface": "`transformers` is not installed"})
        for result in trial["contenders"]:
            check_result(result)
    for name in there:
        assert len(re.findall(rf"│ {name} +│", output)) == 2  # costs and accuracies, losses
    text = Path("a.md").read_text()
    assert text.count("\n## ") == text.count("| strided |") == text.count("\n- chance ") == 1
    assert sorted(one.name for one in place.iterdir()) == ["a.json", "a.md"]
    assert output.endswith("wrote a.json, a.md\n")


@pytest.mark.parametrize("task", ["copying", "selective", "listops"])
def test_the_other_tasks(task):
    found = json.loads(study("--task", task, *SMALL, "--with", "torch,huggingface,dense", "--json", "-").stdout)
    for result in found["tasks"][0]["trials"][0]["contenders"]:
        check_result(result)


def check_result(result):
    assert result["problem"] == ""
    assert [point["step"] for point in result["points"]][:3] == [0, 1, 2]
    for point in result["points"]:
        assert point["flops"] == point["step"] * result["flops"]
        assert point["seconds"] == pytest.approx(point["step"] * result["seconds"])
    assert set(result["readings"]) == {"steps", "flops", "seconds"}
    assert result["bytes"] == result["parameter_bytes"] + result["activation_bytes"]


def test_a_pattern_of_the_users_beside_the_standard_ones():
    output = study(
        EXAMPLES / "streaming.attn", EXAMPLES / "sparse_transformer.attn", EXAMPLES / "alibi.attn", *RECALL,
        "-D", "window=3", "-D", "stride=4", "-D", "summary=1", "--json", "-",
    )  # fmt: skip
    found = json.loads(output.stdout)
    (trial,) = found["tasks"][0]["trials"]
    names = [result["name"] for result in trial["contenders"] if result["name"] != "huggingface"]
    assert names == ["torch", "dense", "streaming", "strided", "fixed", "alibi_causal"]
    by_name = {result["name"]: result for result in trial["contenders"]}
    assert by_name["streaming"]["what"] == "streaming(window=3, sink_tokens=4)"
    allowed = sum(j <= i and (i - j < 3 or j < 4) for i in range(32) for j in range(32))
    assert by_name["streaming"]["pairs"] == allowed
    assert by_name["alibi_causal"]["parameters"] == by_name["dense"]["parameters"] + 2
    assert "recall: length 32" in output.stderr


def test_values_with_commas_are_one_contender_each():
    text = "attention near(width: int = 4, least: int = 0) {\n    mask causal and i - j < width + least\n}\n"
    Path("near.attn").write_text(text)
    arguments = ("near.attn", "-D", "width=2,3", "-D", "least=1,0", *RECALL, "--with", "none", "--json", "-")
    found = json.loads(study(*arguments).stdout)["tasks"][0]["trials"][0]["contenders"]
    assert {one["name"]: one["pairs"] for one in found} == {
        f"near width={width}, least={least}": sum(min(i + 1, width + least) for i in range(32))
        for width in (2, 3)
        for least in (1, 0)
    }


def test_names_that_are_taken_get_a_number():
    Path("dense.attn").write_text("attention dense { mask causal }")
    found = json.loads(study("dense.attn", *RECALL, "--with", "dense", "--json", "-").stdout)
    assert [one["name"] for one in found["tasks"][0]["trials"][0]["contenders"]] == ["dense", "dense 2"]


def test_several_seeds_give_means_and_spreads():
    output = study(*RECALL, "--with", "torch", "--seeds", 3, "--seed", 4, "--json", "a.json").stdout
    trials = json.loads(Path("a.json").read_text())["tasks"][0]["trials"]
    assert [one["seed"] for one in trials] == [4, 5, 6]
    losses = torch.tensor([one["contenders"][0]["readings"]["steps"]["loss"] for one in trials], dtype=torch.float64)
    assert f"{losses.mean():.2f} ± {losses.std():.2f}" in output
    assert "seeds 4, 5, 6" in output


def test_a_seed_decides_losses():
    curves = []
    for _ in range(2):
        found = json.loads(study(*RECALL, "--with", "torch,window", "--json", "-").stdout)
        contenders = found["tasks"][0]["trials"][0]["contenders"]
        curves.append([[point["loss"] for point in one["points"][:3]] for one in contenders])
    assert curves[0] == curves[1]


def test_a_pattern_that_sees_ahead_takes_part_where_that_is_allowed():
    arguments = (
        EXAMPLES / "longformer.attn",
        "-D",
        "radius=3",
        *SMALL,
        *COPYING,
        "--with",
        "torch",
        "--json",
        "a.json",
    )
    output = study(*arguments, "--task", "copying,listops").stdout
    copying, listops = json.loads(Path("a.json").read_text())["tasks"]
    assert copying["missing"] == {"longformer": "it sees later positions"}
    assert [one["name"] for one in listops["trials"][0]["contenders"]] == ["torch", "longformer"]
    assert "longformer: it sees later positions" in output


def test_an_interrupted_study_leaves_whole_files_of_what_was_done(monkeypatch):
    run_trial = session.run_trial

    def interrupted(contenders, task, *rest):
        if task.name == "copying":
            raise KeyboardInterrupt
        return run_trial(contenders, task, *rest)

    monkeypatch.setattr(session, "run_trial", interrupted)
    files = ("--json", "a.json", "--markdown", "a.md", "--plot", "a.png")
    study(*RECALL, *COPYING, "--task", "recall,copying", "--with", "torch", *files, code=130)
    found = json.loads(Path("a.json").read_text())
    assert found["complete"] is False
    assert [one["task"] for one in found["tasks"]] == ["recall"]
    assert Path("a.md").read_text().count("\n## ") == 1
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(one.name for one in Path().iterdir()) == ["a.json", "a.md", "a.png"]


def trained(monkeypatch, before=99):
    """Return a list that learns which trials are run; the one of that number is interrupted."""
    found, run_trial = [], session.run_trial

    def watched(contenders, task, recipe, seed, *rest):
        if len(found) == before:
            raise KeyboardInterrupt
        found.append((task.name, seed))
        return run_trial(contenders, task, recipe, seed, *rest)

    monkeypatch.setattr(session, "run_trial", watched)
    return found


ASKED = (*RECALL, *COPYING, "--task", "recall,copying", "--with", "torch", "--seeds", 2, "--json", "a.json")


def test_the_same_command_goes_on_where_an_interrupted_one_stopped(monkeypatch):
    with monkeypatch.context() as patch:
        assert trained(patch, before=3) == []
        study(*ASKED, code=130)
    first = json.loads(Path("a.json").read_text())
    assert [len(one["trials"]) for one in first["tasks"]] == [2, 1]
    assert first["complete"] is False
    ran = trained(monkeypatch)
    output = study(*ASKED, "--markdown", "a.md").stdout
    assert ran == [("copying", 1)]
    found = json.loads(Path("a.json").read_text())
    assert found["complete"] is True
    assert found["tasks"][0] == first["tasks"][0]
    assert found["tasks"][1]["trials"][0] == first["tasks"][1]["trials"][0]
    assert "recall: length 32" in output
    study(*ASKED)
    assert len(ran) == 1
    assert json.loads(Path("a.json").read_text()) == found
    study(*ASKED, "--seeds", 3)
    assert ran[1:] == [("recall", 2), ("copying", 2)]
    study(*RECALL, "--with", "torch", "--json", "a.json", "--redo")
    assert ran[3:] == [("recall", 0)]


OTHERS = {
    "--learning-rate 0.5": "learning_rate, recipe of `recall`",
    "--flops 1e9": "flops",
    "--seeds 1": "seed",
    "--with dense": "contenders of `recall`",
    "--set power=1": "settings of `recall`",
}


def test_results_of_another_study_are_refused_and_left_alone(monkeypatch):
    trained(monkeypatch)
    asked = (*RECALL, "--with", "torch", "--seeds", 2, "--json", "a.json")
    study(*asked)
    text = Path("a.json").read_text()
    for options, what in OTHERS.items():
        assert study(*asked, *options.split(), code=1).stderr == (
            f"error[other-settings]: the results in `a.json` are of another study: {what}\n"
            "help: write to another file, give the same options, or start again with --redo\n"
        )
    copying = ("--task", "copying", *SMALL, *COPYING, "--with", "torch", "--seeds", 2, "--json", "a.json")
    assert "are of another study: task\n" in study(*copying, code=1).stderr
    assert Path("a.json").read_text() == text
    Path("a.json").write_text('{"tasks": 3}')
    assert "error[not-a-study]: `a.json` holds no results of a study" in study(*asked, code=1).stderr


MISTAKES = {
    "--task sorting": "error[unknown-task]: there is no task `sorting`\n"
    "help: choose from recall, copying, selective, listops\n",
    "--with mamba": "error[unknown-contender]: there is no contender `mamba`\n"
    "help: choose from torch, huggingface, dense, window, streaming, dilated_window, strided\n",
    "--with none --task recall": "error[no-contender]: nobody takes part in `recall`\n"
    "help: name a FILE, or contenders with --with\n",
    "--task recall --set depth=3": "error[unknown-setting]: `recall` has no setting `depth`\n"
    "help: settings are pairs, keys, values, gap, power\n",
    "--task recall --set pairs=few": "error[unusable-setting]: `pairs` is few\nhelp: it must be a whole number\n",
    "--task recall --length 20": "error[unusable-setting]: `length` is 20\n"
    "help: it must be at least 4 times `pairs` and `gap`, 40\n",
    "--width 10 --heads 4": "error[unusable-setting]: `width` is 10\n"
    "help: it must be a multiple of the 4 heads, up to 256 times as many\n",
    "--json nowhere/a.json": "error[cannot-write]: `nowhere/a.json` cannot be written: there is no folder `nowhere`\n",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes(arguments):
    result = study(*arguments.split(), code=1)
    assert result.stderr == MISTAKES[arguments]
    assert result.stdout == ""
    assert list(Path().iterdir()) == []


def test_a_pattern_with_inputs_is_refused_by_their_names():
    Path("packed.attn").write_text(
        "attention packed {\n    input doc: int[B, M] sorted\n    mask causal and same(doc)\n}\n"
    )
    assert study("packed.attn", code=1).stderr == (
        "error[input-without-data]: a study has no data for the input `doc` of `packed`\n"
        "  --> packed.attn:2:5\n"
        "   |\n"
        " 2 |     input doc: int[B, M] sorted\n"
        "   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "help: study a pattern without inputs: `learned` tensors are trained, numbers can be parameters (-D)\n"
    )


def test_a_mask_of_learned_tensors_is_refused():
    Path("gate.attn").write_text(
        "attention gate {\n    learned gate: float[H] = 1.0\n    mask causal and gate[h] > 0\n}\n"
    )
    assert study("gate.attn", code=1).stderr == (
        "error[mask-of-learned-tensors]: which pairs `gate` allows depends on what it learns, so that they cannot be"
        " counted\n"
        "help: study a pattern whose mask reads no tensor\n"
    )


@pytest.mark.parametrize("mask", ["", "mask j <= i + 1", "mask causal or (i == 3 and j == 4)"])
def test_a_pattern_that_sees_the_answers_everywhere_is_refused(mask):
    Path("full.attn").write_text(f"attention full {{ {mask} }}\n")
    assert study("full.attn", "--task", "recall,copying", code=1).stderr == (
        "error[not-causal]: `full` sees later positions, and so the answers of `recall`, `copying`\n"
        "help: add `mask causal`, or study it on a task that is not causal: --task listops\n"
    )


def test_a_parameter_that_no_file_has_is_refused():
    Path("wide.attn").write_text("attention wide(width: int = 4) {\n    mask causal and i - j < width\n}\n")
    assert study("wide.attn", "-D", "widht=3", code=1).stderr.startswith("error[unknown-parameter]: ")
    result = study("-D", "width=3", code=2)
    assert "-D width is for patterns, and no FILE is given" in result.stderr
