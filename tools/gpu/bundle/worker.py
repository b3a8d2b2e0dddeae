"""One process of the bundle: reads a step a line, writes its row a line.

python -m bundle.worker cuda
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from bundle import checks, machine, profiles, scans, structures, suite, tuning
from bundle.data import Shape, patterns


def check(pattern: str, shape: list[int], dtype: str, device: str) -> dict[str, Any]:
    """Compare outputs and gradients of a pattern with float64."""
    return checks.check(patterns()[pattern], Shape(*shape), dtype, device)


def capture(pattern: str, shape: list[int], dtype: str, device: str) -> dict[str, Any]:
    """Capture a pattern in a CUDA graph."""
    return checks.capture(patterns()[pattern], Shape(*shape), dtype)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "describe": machine.describe,
    "ceilings": machine.ceilings,
    "check": check,
    "capture": capture,
    "scan": scans.check,
    "structure": structures.check,
    "case": suite.measure_case,
    "prepare": suite.prepare_case,
    "profile": profiles.profile_calls,
    "long": suite.measure_long,
    "long-flex": suite.measure_long_flex,
    "kernels": tuning.kernels,
    "gate": tuning.gate,
    "tune": tuning.tune,
}


def do(kind: str, given: dict[str, Any], device: str) -> dict[str, Any]:
    """Do one step; a failure is a row."""
    try:
        return {"ok": True} | STEPS[kind](**given, device=device)
    except Exception:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        return {"ok": False, "why": traceback.format_exc(limit=-3).strip()[-600:]}


def settle(device: str) -> bool:
    """Give memory back after a step; tell whether the device still works in this process."""
    gc.collect()
    if device == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            return False
    return True


def main() -> None:
    """Answer until there is nothing more to read."""
    device = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1 if device == "cpu" else 4)
    for line in sys.stdin:
        asked = json.loads(line)
        row = do(asked["kind"], asked["given"], device)
        row |= {} if settle(device) else {"broken": True}
        answers.write(json.dumps(row) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
