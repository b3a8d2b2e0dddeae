"""What an earlier run of the same study has written: its trials are taken and not run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from attnc.diagnostics import CompileError, Diagnostic
from attnc.files import STANDARD
from attnc.study.contenders import Contender
from attnc.study.curves import Budgets, Point, Reading
from attnc.study.report import Study, TaskReport, as_json, task_json
from attnc.study.trial import Result, Trial

FREE = ("seeds",)
"""Settings that may have grown."""

SAME = ("device", "threads", "torch", "transformers")
"""What of a machine must be the same for times to stand beside each other."""


def read_trials(path: Path | None, study: Study, planned: Sequence[TaskReport], seeds: Sequence[int]) -> Trials:
    """Read the trials in a file that an earlier run has written; none where there is no file.

    Args:
        path: the file, or None.
        study: with the machine and the settings of this run.
        planned: what is asked for, without trials.
        seeds: the same.

    Raises:
        CompileError: the file is something else, or a run with other settings wrote it.
    """
    if path is None or str(path) == STANDARD or not path.exists() or not path.stat().st_size:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        trials = {one["task"]: (one, [_trial(each) for each in one["trials"]]) for one in found["tasks"]}
        differ = _differences(found, as_json(study))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CompileError(Diagnostic("not-a-study", f"`{path}` holds no results of a study")) from None
    wanted = {report.task.name: task_json(report) for report in planned}
    for name, (task, made) in trials.items():
        differ += ["task"] * (name not in wanted) + ["seed"] * any(one.seed not in seeds for one in made)
        differ += _task_differences(task, wanted.get(name, task))
    if differ:
        raise CompileError(
            Diagnostic(
                "other-settings",
                f"the results in `{path}` are of another study: {', '.join(dict.fromkeys(differ))}",
                help="write to another file, give the same options, or start again with --redo",
            )
        )
    return {(name, one.seed): one for name, (_, made) in trials.items() for one in made}


Trials = dict[tuple[str, int], Trial]
"""Trials by the name of their task and their seed."""


def require_same(path: Path | None, trials: Trials, everybody: Mapping[str, Sequence[Contender]]) -> None:
    """Fail where others took part in the trials that were read.

    Raises:
        CompileError: there are such trials.
    """
    for (task, _), trial in trials.items():
        there = [(one.name, one.what, one.pairs) for one in trial.results]
        here = [(one.name, one.what, float(one.pairs)) for one in everybody[task] if not one.missing]
        if there != here:
            raise CompileError(
                Diagnostic(
                    "other-settings",
                    f"the results in `{path}` are of another study: contenders of `{task}`",
                    help="write to another file, give the same options, or start again with --redo",
                )
            )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    pairs = [(found["settings"], wanted["settings"], name) for name in {**found["settings"], **wanted["settings"]}]
    pairs = [one for one in pairs if one[2] not in FREE]
    pairs += [(found["machine"], wanted["machine"], name) for name in SAME]
    return [name for there, here, name in pairs if there.get(name) != here.get(name)]


def _task_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    wanted = json.loads(json.dumps(wanted))
    return [f"{name} of `{found['task']}`" for name in wanted if name != "trials" and found[name] != wanted[name]]


def _trial(made: Mapping[str, Any]) -> Trial:
    results = tuple(_result(one) for one in made["contenders"])
    return Trial(made["seed"], made["chance"], Budgets(**made["budgets"]), results)


def _result(made: Mapping[str, Any]) -> Result:
    values = {one.name: made[one.name] for one in fields(Result)}
    values["points"] = tuple(Point(**{one.name: point[one.name] for one in fields(Point)}) for point in made["points"])
    values["readings"] = {name: Reading(**reading) for name, reading in made["readings"].items()}
    return Result(**values)
