"""Time what stands between a pattern and its first result, in fresh processes, one pattern after the other.

    python tools/time_compile.py --markdown docs/results/compile_time.md
    python tools/time_compile.py --only gpt bigbird

For every pattern of `examples/` and of `attnc/bench/patterns/`: the command `attnc compile`; what importing its module
adds to importing torch and triton; and the first call of its CPU program beside the second. Medians of `--repeat` runs,
after one that leaves the byte code of everything, as an installation does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from attnc.bench.machine import describe

ROOT = Path(__file__).resolve().parent.parent

CALLS = """
import json, sys, time
import torch, triton, triton.language
folder, name = sys.argv[1:]
sys.path.insert(0, folder)
start = time.perf_counter()
module = __import__(name)
times = [time.perf_counter() - start]
from attnc.runtime.pairs import Sizes
sizes = Sizes(B=1, H=4, N=256, M=256, D=32, g=1, value_size=32)
kinds = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
programs = [key for key, value in vars(module).items() if key.endswith("_program") and hasattr(value, "launch")]
attention = programs[0][1:-8]
inputs = {}
for tensor in vars(module)[f"_{attention}_program"].tensors:
    shape = [64 if dim is None else int(dim(sizes)) for dim in tensor.dims]
    inputs[tensor.name] = torch.ones(shape, dtype=kinds[tensor.type])
tensors = [torch.randn(1, 4, 256, 32, requires_grad=True) for _ in range(3)]
for _ in range(2):
    start = time.perf_counter()
    out = vars(module)[attention](*tensors, **inputs)
    middle = time.perf_counter()
    out.sum().backward()
    times += [middle - start, time.perf_counter() - middle]
print(json.dumps(times))
"""


def main() -> None:
    """Measure what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of pattern files, without .attn")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        text = report(options.only, options.repeat)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


def report(only: list[str] | None, repeat: int) -> str:
    """Measure everything and lay it out as Markdown."""
    facts = ", ".join(f"{name} {fact}" for name, fact in describe(torch.device("cpu")).items())
    lines = [
        "# Compile time",
        "",
        f"Fresh processes, medians of {repeat}, with the byte code that Python leaves at the first import. Import is",
        "what the module adds to torch's and triton's own imports.",
        "Calls are of the CPU program: batch 1, 4 heads of 32, 256 positions. Where a score is differentiated by",
        "`torch.autograd.grad`, PyTorch imports sympy at the first backward pass, a sixth of a second.",
        "Written by `python tools/time_compile.py`.",
        "",
        f"{facts}.",
        "",
        "| command | seconds |",
        "|---|---|",
    ]
    example = str(ROOT / "examples" / "streaming.attn")
    for arguments in (["--help"], ["check", example], ["explain", example]):
        shown = " ".join(Path(part).name for part in arguments)
        lines.append(f"| `attnc {shown}` | {median([command(arguments) for _ in range(repeat + 1)][1:]):.2f} |")
    lines += [
        "",
        "| pattern | `attnc compile`, s | import, ms | first call, ms | second | first backward, ms | second |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in patterns():
        if not only or path.stem in only:
            lines.append(row(path, repeat))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def patterns() -> list[Path]:
    """Return the examples, and then the patterns of the suites."""
    return [*sorted((ROOT / "examples").glob("*.attn")), *sorted((ROOT / "attnc/bench/patterns").rglob("*.attn"))]


def row(path: Path, repeat: int) -> str:
    """Measure one pattern."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"generated_{path.stem}"
        compile_ = ["compile", str(path), "-o", f"{folder}/{name}.py"]
        compiling = median([command(compile_) for _ in range(repeat + 1)][1:])
        runs = [calls(folder, name) for _ in range(repeat + 1)][1:]  # the first leaves the module's byte code
    imported, *found = (median(list(times)) * 1e3 for times in zip(*runs, strict=True))
    first, backward, second, second_backward = found
    shown = " | ".join(f"{value:.1f}" for value in (imported, first, second, backward, second_backward))
    return f"| {path.relative_to(ROOT)} | {compiling:.2f} | {shown} |"


def command(arguments: list[str]) -> float:
    """Return the seconds that a command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "attnc", *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def calls(folder: str, name: str) -> list[float]:
    """Return the seconds of an import, a call and its backward pass, and of the same once more."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, folder, name], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found: list[float] = json.loads(done.stdout)
    return found


def median(times: list[float]) -> float:
    """Return the median."""
    return statistics.median(times)


if __name__ == "__main__":
    main()
