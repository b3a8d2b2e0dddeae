"""Time small calls against `scaled_dot_product_attention` on the same pattern: what they cost besides arithmetic.

    python tools/time_calls.py --markdown docs/results/small_calls.md
    python tools/time_calls.py --device cuda

    python tools/time_calls.py --launches >> docs/results/small_calls.md

Both are called in turn, in rounds that alternate their order, and the median of the rounds counts. The least length
shows what a call costs on the host; the greatest, how much of that is left. With `--launches`, kernels are launched
under a driver that starts none, on any machine: what is left is the host's side of calls on a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attnc
from attnc.bench.machine import describe

LENGTHS = (16, 64, 128, 512, 1024)
PATTERNS = {"causal": "attention causal {\n    mask causal\n}\n", "full": "attention full {\n}\n"}
WAYS = ("forward", "forward, recorded", "forward and backward")
ROUNDS, SECONDS = 15, 0.02
LAUNCHED = ("gpt", "longformer", "sparse_transformer", "packed")
"""Examples whose launches are timed."""


def main() -> None:
    """Measure what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="write the table to this file as well")
    parser.add_argument("--launches", action="store_true", help="time launches that no device starts")
    options = parser.parse_args()
    if options.launches:
        print(report_launches())
        return
    text = report(options.device, options.heads, options.head_size)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)


def report(device: str, heads: int, head_size: int) -> str:
    """Measure everything and lay it out as Markdown."""
    lines = [
        "# Small calls",
        "",
        "Microseconds a call, median; `attnc` and `scaled_dot_product_attention` in turn on the same tensors",
        f"(batch 1, {heads} heads of {head_size}, {dtype_of(device)}).",
        "Written by `python tools/time_calls.py`.",
        "",
        ", ".join(f"{name} {fact}" for name, fact in describe(torch.device(device)).items()) + ".",
        "",
        "| pattern | length | pass | attnc | SDPA | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, pattern in PATTERNS.items():
        call = getattr(attnc.loads(pattern), name)
        for length in LENGTHS:
            for way in WAYS:
                ours, theirs = compare(call, name == "causal", length, way, device, (heads, head_size))
                lines.append(f"| {name} | {length} | {way} | {ours:.1f} | {theirs:.1f} | {ours - theirs:+.1f} |")
    return "\n".join(lines) + "\n"


def report_launches() -> str:
    """Time the host's side of calls that launch kernels, and lay it out as Markdown."""
    os.environ["ATTNC_TARGET"] = "triton"
    from idle_driver import keep_launches, use_idle_driver

    from attnc.runtime.tiles import assume_target

    use_idle_driver()
    lines = [
        "## Launches",
        "",
        "Microseconds on the host of a call that launches kernels for sm_90 under a driver that starts none, median",
        "(batch 1, 2 heads of 64, length 32, torch.float16; tensors on the CPU). Written by",
        "`python tools/time_calls.py --launches`.",
        "",
        ", ".join(f"{name} {fact}" for name, fact in describe(torch.device("cpu")).items()) + ".",
        "",
        "| example | pass | launches | microseconds |",
        "|---|---|---|---|",
    ]
    with assume_target("sm_90"):
        for name in LAUNCHED:
            module = attnc.load(Path(__file__).parents[1] / "examples" / f"{name}.attn")
            call, inputs = getattr(module, module.__all__[0]), {}
            if name == "packed":
                inputs = {"doc": torch.zeros(1, 32, dtype=torch.int64), "slope": torch.ones(2)}
            for way in WAYS:
                run = host_call(call, inputs, needs=way != "forward", backward=way == WAYS[2])
                run()
                launched = keep_launches()
                run()
                count = len(launched)
                found = statistics.median(seconds(run, 200, "cpu") for _ in range(ROUNDS))
                lines.append(f"| {name} | {way} | {count} | {found * 1e6:.1f} |")
    return "\n".join(lines)


def host_call(
    call: Callable[..., Any], inputs: dict[str, Tensor], *, needs: bool, backward: bool
) -> Callable[[], None]:
    """Return a call on small tensors, with the backward pass if that is wanted."""
    made = [torch.randn(1, 2, 32, 64, dtype=torch.float16) for _ in range(3)]
    tensors, upstream = [tensor.requires_grad_(needs) for tensor in made], torch.randn_like(made[0])

    def run() -> None:
        out = call(*tensors, **inputs)
        if backward:
            torch.autograd.grad(out, tensors, upstream)

    return run


def dtype_of(device: str) -> torch.dtype:
    """Return what is measured there."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def compare(
    call: Callable[..., Any], causal: bool, length: int, way: str, device: str, sizes: tuple[int, int]
) -> tuple[float, float]:
    """Return the median microseconds of a call of either."""
    heads, head_size = sizes
    needs = way != "forward"
    made = [torch.randn(1, heads, length, head_size, device=device, dtype=dtype_of(device)) for _ in range(3)]
    tensors = [tensor.requires_grad_(needs) for tensor in made]
    upstream = torch.randn_like(made[0])

    def run(function: Callable[..., Tensor]) -> None:
        out = function(*tensors)
        if way == "forward and backward":
            torch.autograd.grad(out, tensors, upstream)

    def library(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)

    ways = [lambda: run(call), lambda: run(library)]
    times: list[list[float]] = [[], []]
    counts = [max(1, int(SECONDS / seconds(one, 3, device))) for one in ways]
    for number in range(ROUNDS):
        for position in (0, 1) if number % 2 else (1, 0):
            times[position].append(seconds(ways[position], counts[position], device))
    ours, theirs = (statistics.median(found) * 1e6 for found in times)
    return ours, theirs


def seconds(call: Callable[[], None], count: int, device: str) -> float:
    """Return the mean time of some calls in a row, the device's work included."""
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main()
