"""Check, time and tune the compiled patterns of this bundle on a GPU.

    python build/gpu/run.py --out results [--budget 480] [--steps check,standard] [--only causal,window]

Needs torch, triton and numpy alone. Outputs and gradients of every example are first compared with their dense
definitions in float64; then calls are captured in CUDA graphs; then come the benchmark standard, tuning and long
sequences. Every step runs in a process of its own kind, which may fail, hang or break the device without the others.
`results.json`, `results.md` and `tuned.json` are written after every step. The script stops by itself near the end of
its budget and goes on from there when it is called again; results of another bundle or device are put aside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bundle.plan import PEERS, SECONDS, Steps
from bundle.results import Results
from bundle.workers import Job, Pool, Worker

HERE = Path(__file__).resolve().parent

SHARES = {
    "check": 0.32,
    "graphs": 0.38,
    "prepare": 0.46,
    "standard": 0.70,
    "gluon": 0.74,
    "gates": 0.80,
    "tune": 0.90,
    "long": 1.0,
    "rest": 1.0,
}
"""By which part of the budget each step ends; what one leaves goes to those behind it."""

GLUON = "gluon_check.py"
"""A script that checks kernels of another kind, if the bundle has it. It is called without arguments; its exit code,
what it prints, and its last line, if that is JSON, are entered."""


def main() -> int:
    """Run what is left to do within the budget; exit code 1 if any example is wrong."""
    options = arguments()
    begin = time.monotonic()
    environment(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "workers.log"
    asker = Worker(options.device, log)
    described = asker.call(Job("machine", "machine", "describe"), 120)
    asker.close()
    if not described["ok"]:
        print(f"nothing runs here: {described['why']}", file=sys.stderr)
        return 2
    results = Results(options.out, described["machine"], {"peers": list(PEERS), "seconds": SECONDS, "samples": 5})
    if options.again:
        results.forget_failures()
    print(", ".join(f"{key} {value}" for key, value in described["machine"].items()), flush=True)
    pool = Pool(options.workers, options.device, log)
    try:
        for step in SHARES:
            if step in options.steps:
                take(
                    step, Steps(options.device, options.only), results, pool, begin + SHARES[step] * options.budget, log
                )
    finally:
        pool.close()
    print((options.out / "results.md").read_text())
    return 1 if results.wrong else 0


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, results.md, tuned.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the steps, at tiny sizes")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which nothing new is begun")
    parser.add_argument("--again", action="store_true", help="do again what failed")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 2) - 2)))
    names = {"type": lambda text: text.split(","), "metavar": "NAME,..."}
    parser.add_argument("--only", default=[], help="names of patterns", **names)
    parser.add_argument("--steps", default=list(SHARES), help=f"of {', '.join(SHARES)}", **names)
    return parser.parse_args()


def environment(device: str) -> None:
    """Let processes share what they compile, in the bundle's folder; without a GPU, let kernels be interpreted."""
    cache = HERE / "cache"
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each worker compiles for itself
    os.environ.setdefault("ATTNC_PINNED", "1")
    if device == "cpu":
        os.environ["TRITON_INTERPRET"], os.environ["ATTNC_TARGET"] = "1", "triton"


def take(step: str, steps: Steps, results: Results, pool: Pool, deadline: float, log: Path) -> None:
    """Take one step as far as its deadline."""

    def run(jobs: Iterable[Job], *, alone: bool) -> None:
        waiting = [job for job in jobs if job.key not in results.part(job.part)]
        if waiting:
            print(f"{step}: {len(waiting)} to do", flush=True)
        pool.run(waiting, deadline, lambda job, row: enter(job, row, results), alone=alone)

    match step:
        case "check":
            run(steps.checks(), alone=False)
        case "graphs":
            run(steps.captures(), alone=False)
        case "prepare":
            run(steps.prepared(), alone=False)
        case "standard":
            run(steps.ceilings(), alone=True)
            run(steps.standard(first=True), alone=True)
            run(steps.profiles(), alone=True)
        case "gluon":
            check_gluon(results, deadline, log)
        case "gates":
            run(steps.kernels(), alone=False)
            run(steps.gates(results), alone=False)
        case "tune":
            run(steps.tunings(results, library=False), alone=True)
            run(steps.tunings(results, library=True), alone=True)
        case "long":
            run(steps.long(), alone=True)
        case "rest":
            run(steps.standard(first=False), alone=True)


def enter(job: Job, row: dict[str, Any], results: Results) -> None:
    """Keep a row, and say so in a line; one without results says what was asked."""
    if not row["ok"]:
        row["given"] = job.given
    results.put(job.part, job.key, row)
    said = "ok   " if row["ok"] else "WRONG" if job.part in ("correct", "graphs") else "no   "
    why = "" if row["ok"] else str(row.get("wrong") or row.get("why") or row.get("problem")).strip().splitlines()[-1]
    print(f"{said} {row.get('took', 0):6.1f} s  {job.part} {job.key} {why[:200]}", flush=True)


def check_gluon(results: Results, deadline: float, log: Path) -> None:
    """Run the check of kernels of another kind, if it came with the bundle and has not been run."""
    script = HERE / GLUON
    left = deadline - time.monotonic()
    if not script.exists() or GLUON in results.part("gluon") or left <= 0:
        return
    try:
        with log.open("ab") as errors:
            done = subprocess.run(
                [sys.executable, str(script)], cwd=HERE, stdout=subprocess.PIPE, stderr=errors, timeout=max(30.0, left)
            )
        said = done.stdout.decode(errors="replace").strip()
        row = {"ok": done.returncode == 0, "code": done.returncode, "said": said[-4000:]}
        last = said.rpartition("\n")[2]
        if last.startswith("{"):
            row["report"] = json.loads(last)
    except Exception as error:
        row = {"ok": False, "why": f"{type(error).__name__}: {error}"[:400]}
    enter(Job("gluon", GLUON, "gluon"), row, results)


if __name__ == "__main__":
    sys.exit(main())
