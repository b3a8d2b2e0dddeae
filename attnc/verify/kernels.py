"""Triton kernels on CPU tensors, in Triton's interpreter.

The interpreter must be chosen before Triton is imported, so it has a process of its own, which is fed cases by lines of
JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

import torch

from attnc.bench.cases import Shape
from attnc.compiler import Compiled, import_compiled, plan_source
from attnc.source import SourceFile
from attnc.verify.outcome import Mismatch, Outcome
from attnc.verify.programs import check_gradients, check_outputs
from attnc.verify.trials import Trial

TOPIC = "kernels"


class KernelsUnavailable(Exception):  # noqa: N818 - a statement about the machine rather than a failure
    """Triton is not installed here."""


class KernelWorker:
    """The interpreter's process. It starts with the first case and ends with the `with` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def run(
        self,
        compiled: Compiled,
        params: Mapping[str, Any],
        attention: str,
        variant: str,
        cases: Sequence[Trial],
        *,
        number: int = 0,
    ) -> Outcome:
        """Compare outputs, log-sum-exps and, in float32, gradients of one attention's kernels with the reference.

        Args:
            compiled: the pattern.
            params: its parameters.
            attention: the attention's name.
            variant: what reports call it.
            cases: to be tried.
            number: which of the variants that its plan has by length; the first one is run as the module has it.

        Raises:
            KernelsUnavailable: triton is not installed.
        """
        if find_spec("triton") is None:
            raise KernelsUnavailable("triton is not installed")
        request = {
            "name": compiled.source.name,
            "path": str(compiled.source.path) if compiled.source.path is not None else None,
            "text": compiled.source.text,
            "params": dict(params),
            "attention": attention,
            "number": number,
            "cases": [_as_json(trial) for trial in cases],
        }
        answer = self._ask(request)
        return Outcome(attention, variant, TOPIC, answer["cases"], answer["worst"], answer["problem"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self._process = None
            return {"cases": 0, "worst": None, "problem": f"the interpreter's process ended with code {code}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "attnc.verify.kernels"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TRITON_INTERPRET": "1", "ATTNC_TARGET": "triton"},
            )
        return self._process


def _as_json(trial: Trial) -> dict[str, Any]:
    return {**asdict(trial), "dtype": str(trial.dtype).removeprefix("torch.")}


def _from_json(given: dict[str, Any]) -> Trial:
    return Trial(Shape(**given["shape"]), given["seed"], given["strided"], getattr(torch, given["dtype"]))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request in this process."""
    path = request["path"]
    source = SourceFile(request["name"], request["text"], None if path is None else _path(path))
    compiled = plan_source(source, request["params"])
    plan = next(plan for plan in compiled.plans if plan.attention.name == request["attention"])
    if request["number"]:
        plan = plan.variants[request["number"]]
        compiled = replace(compiled, plans=(plan,))
    module = import_compiled(compiled)
    worst = 0.0
    for number, given in enumerate(request["cases"], start=1):
        trial = _from_json(given)
        try:
            worst = max(worst, check_outputs(module, plan, trial))
            if trial.dtype is torch.float32:
                worst = max(worst, check_gradients(module, plan, trial))
        except Mismatch as mismatch:
            return {"cases": number, "worst": worst, "problem": f"{mismatch} ({trial})"}
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return {"cases": number, "worst": worst, "problem": f"{type(error).__name__}: {lines[-1]} ({trial})"}
    return {"cases": len(request["cases"]), "worst": worst, "problem": ""}


def _path(text: str) -> Any:
    from pathlib import Path

    return Path(text)


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a kernel prints is no reply
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
