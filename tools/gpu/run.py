"""Check and time the compiled examples of this bundle on a GPU.

    python build/gpu/run.py --out results [--budget 420] [--device cuda]

Needs torch, triton and numpy alone. Every example is first compared with its dense definition in float64, then forward
passes are timed against the backends of `scaled_dot_product_attention` and compiled FlexAttention, the most important
first. An example whose numbers are wrong gets no time. The script stops by itself near the end of its budget, writes
`results.json` and `results.md` after every step, and goes on from there when it is called again.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).resolve().parent
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BACKENDS = {
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: batch, query heads, key heads, queries, keys, head size."""

    B: int
    H: int
    G: int
    N: int
    M: int
    D: int

    def __str__(self) -> str:
        return f"B{self.B} H{self.H}/{self.G} N{self.N} M{self.M} D{self.D}"


@dataclass(frozen=True)
class Example:
    """One attention of the bundle, as `manifest.json` describes it."""

    name: str
    module: str
    cls: str
    inputs: list[dict[str, Any]]
    learned: list[dict[str, Any]]
    pairs: dict[str, float | None]
    plain: str | None
    score: bool
    softmax: bool
    priority: int


# --- data -------------------------------------------------------------------------------------------------------------


def load(example: Example) -> ModuleType:
    """Import the standalone module of an example."""
    return load_file(example.module)


@functools.cache
def load_file(stem: str) -> ModuleType:
    """Import one Python file of the bundle."""
    spec = importlib.util.spec_from_file_location(f"attnc_gpu_{stem}", HERE / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def make_input(recipe: dict[str, Any], shape: Shape, device: str, generator: torch.Generator) -> Tensor | float | int:
    """Make one input by its recipe: `number`, `lengths` (a length per sequence) or `documents` (sorted ids)."""
    match recipe["kind"]:
        case "number":
            return recipe["value"]
        case "lengths":
            low, high = max(1, int(recipe["low"] * shape.M)), shape.M
            return torch.randint(low, high + 1, (shape.B,), generator=generator).to(device)
        case "documents":
            starts = torch.rand(shape.B, shape.M, generator=generator) < 1.0 / recipe["mean"]
            return starts.long().cumsum(1).to(device)
        case other:
            raise ValueError(f"unknown recipe {other!r}")


def make_arguments(
    example: Example, module: ModuleType, shape: Shape, dtype: torch.dtype, device: str
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Return (query, key, value) and the keyword arguments of one call, the same for the same arguments."""
    generator = torch.Generator().manual_seed(17)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device=device, dtype=dtype)

    query = normal(shape.B, shape.H, shape.N, shape.D)
    key, value = (normal(shape.B, shape.G, shape.M, shape.D) for _ in range(2))
    inputs = {recipe["name"]: make_input(recipe, shape, device, generator) for recipe in example.inputs}
    if example.learned:
        sizes = {"H": shape.H, "D": shape.D}
        needs = {name for recipe in example.learned for name in recipe["sizes"]}
        holder = getattr(module, example.cls)(**{name: sizes[name] for name in sorted(needs)}, device=device)
        for name, parameter in holder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            inputs[name] = parameter.detach() + 0.1 * noise
    return (query, key, value), inputs


# --- correctness ------------------------------------------------------------------------------------------------------


def correctness_shapes(device: str) -> list[tuple[str, Shape]]:
    """Return dtypes and shapes to check: lengths that do not divide, N != M, grouped heads, odd head sizes."""
    if device == "cpu":
        return [("fp32", Shape(1, 2, 1, 65, 65, 16)), ("fp32", Shape(1, 2, 2, 40, 100, 16))]
    common = Shape(2, 4, 2, 257, 257, 64)
    return [
        ("bf16", common),
        ("bf16", Shape(1, 4, 1, 100, 300, 128)),
        ("bf16", Shape(1, 2, 2, 1, 513, 64)),
        ("fp16", common),
        ("fp32", common),
        ("bf16", Shape(1, 2, 2, 1024, 1024, 80)),
        ("bf16", Shape(1, 2, 1, 300, 300, 256)),
    ]


def errors(example: Example, module: ModuleType, shape: Shape, dtype: str, device: str) -> dict[str, float]:
    """Compare outputs with float64: at most twice the error of the dense computation in the same precision."""
    tensors, inputs = make_arguments(example, module, shape, DTYPES[dtype], device)
    wide = [t.double() for t in tensors]
    wide_inputs = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    call, dense = getattr(module, example.name), getattr(module, f"{example.name}_reference")
    expected = dense(*wide, **wide_inputs)
    same = dense(*tensors, **inputs)
    found = call(*tensors, **inputs)
    if not torch.isfinite(found).all():
        return {"error": float("inf"), "allowed": 0.0}
    return limits(found, same, expected, 2.0, dtype)


def limits(found: Tensor, same: Tensor, expected: Tensor, factor: float, dtype: str) -> dict[str, float]:
    """Return the error of a result, and what it may be: so many times that of the dense one in the same precision."""
    floor = 4 * torch.finfo(DTYPES[dtype]).eps * float(expected.abs().max().clamp(min=1e-6))
    allowed = factor * float((same.double() - expected).abs().max()) + floor
    return {"error": float((found.double() - expected).abs().max()), "allowed": allowed}


def gradient_errors(
    example: Example, module: ModuleType, shape: Shape, dtype: str, device: str
) -> dict[str, dict[str, float]]:
    """Compare gradients in the same way: at most thrice the error of the dense computation."""
    tensors, inputs = make_arguments(example, module, shape, DTYPES[dtype], device)
    call, dense = getattr(module, example.name), getattr(module, f"{example.name}_reference")
    learned = [recipe["name"] for recipe in example.learned]
    names = ["query", "key", "value", *learned]

    def gradients(function: Callable[..., Any], wide: bool) -> tuple[Tensor, ...]:
        def leaf(tensor: Tensor) -> Tensor:
            return (tensor.double() if wide else tensor).detach().clone().requires_grad_()

        leaves = [leaf(tensor) for tensor in (*tensors, *(inputs[name] for name in learned))]
        given = {k: v.double() if wide and isinstance(v, Tensor) and v.is_floating_point() else v
                 for k, v in inputs.items()}  # fmt: skip
        out = function(*leaves[:3], **(given | dict(zip(learned, leaves[3:], strict=True))))
        generator = torch.Generator().manual_seed(23)
        upstream = torch.randn(out.shape, generator=generator).to(device=device, dtype=DTYPES[dtype])
        return torch.autograd.grad(out, leaves, upstream.to(out.dtype))

    three = (gradients(call, False), gradients(dense, False), gradients(dense, True))
    found = {name: limits(*ones, 3.0, dtype) for name, *ones in zip(names, *three, strict=True)}
    for name in learned:  # sums over all pairs, in another order
        found[name]["allowed"] *= 4
    return found


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


def graph_errors(example: Example, module: ModuleType, shape: Shape, dtype: str) -> dict[str, float]:
    """Capture a call and its gradients in a CUDA graph, replay it on other data, and compare with the call itself.

    The kernels are the same, so that nothing may differ; a wait for the device inside of the call ends the capture.
    """
    tensors, inputs = make_arguments(example, module, shape, DTYPES[dtype], "cuda")
    call = getattr(module, example.name)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    upstream = torch.randn(*leaves[0].shape[:3], leaves[2].shape[3], device="cuda").to(DTYPES[dtype])

    def step() -> tuple[Tensor, ...]:
        out = call(*leaves, **inputs)
        return (out, *torch.autograd.grad(out, leaves, upstream))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled before anything is captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    torch.cuda.synchronize()
    found = [tensor.clone() for tensor in captured]
    differences = [float((one.double() - same.double()).abs().max()) for one, same in zip(found, step(), strict=True)]
    return {"error": max(differences), "allowed": 0.0}


# --- timing -----------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], device: str) -> float:
    """Return the median time of a call, after warm-up; on a GPU with the level-2 cache cleared between runs."""
    if device != "cpu":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=20, rep=60, return_mode="median")) * 1e-3
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peers(
    example: Example, module: ModuleType, shape: Shape, tensors: tuple[Tensor, ...], inputs: dict[str, Any], device: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what the example is compared with; making one may itself fail, and then has no time."""
    dense = torch.nn.functional.scaled_dot_product_attention
    query, key, value = tensors
    grouped = {"enable_gqa": True} if shape.G != shape.H else {}
    extra: dict[str, Any] = {}
    if example.plain == "causal" and shape.N == shape.M:
        extra = {"is_causal": True}
    elif example.plain is None and (example.score or not example.softmax):
        return  # a mask alone does not say this pattern
    elif example.plain is None:
        if shape.N * shape.M * shape.B * shape.H > 2**32:
            return
        mask = getattr(module, f"{example.name}_mask")(shape.N, shape.M, B=shape.B, H=shape.H, device=device, **inputs)
        extra = {"attn_mask": mask}
    for name, backend in BACKENDS.items():
        if device == "cpu" and name != "sdpa-math":
            continue
        if name == "sdpa-math" and shape.N * shape.M * shape.B * shape.H > 2**31:
            continue

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return dense(query, key, value, **extra, **grouped)

        yield name, run


def flex(
    example: Example, shape: Shape, tensors: tuple[Tensor, ...], inputs: dict[str, Any], device: str
) -> tuple[Callable[[], Any], float] | None:
    """Return compiled FlexAttention and the seconds that its mask build takes; None where it cannot say the example."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    make = load_file("flex_modifiers").MODIFIERS.get((example.name, shape.N))
    if make is None:
        return None
    mask_mod, score_mod = make(inputs, device)
    build = torch.compile(create_block_mask, dynamic=False)

    def make_mask() -> Any:
        return build(mask_mod, shape.B, shape.H, shape.N, shape.M, device=device)

    block_mask = make_mask() if mask_mod is not None else None
    build_time = seconds(make_mask, device) if mask_mod is not None else 0.0
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> Any:
        return compiled(*tensors, score_mod=score_mod, block_mask=block_mask, enable_gqa=shape.G != shape.H)

    return run, build_time


def timing_shapes(device: str, priority: int) -> list[Shape]:
    """Return the sizes at which an example is timed, the most telling first."""
    if device == "cpu":
        return [Shape(1, 2, 2, 128, 128, 16)]
    sizes = [Shape(1, 16, 16, 16384, 16384, 128), Shape(1, 16, 16, 8192, 8192, 64)]
    return [*sizes, Shape(1, 16, 16, 65536, 65536, 128)] if priority == 0 else sizes


def measure(example: Example, module: ModuleType, shape: Shape, dtype: str, device: str) -> dict[str, Any]:
    """Time an example and its peers at one size; seconds, and useful TFLOP/s from the exact number of pairs."""
    tensors, inputs = make_arguments(example, module, shape, DTYPES[dtype], device)
    call = getattr(module, example.name)
    row: dict[str, Any] = {"seconds": {}, "failed": {}}
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(*tensors, **inputs)
        row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    row["seconds"]["attnc"] = seconds(lambda: call(*tensors, **inputs), device)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]

    def both_ways() -> None:
        out = call(*leaves, **inputs)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    attempt(row, "attnc, both ways", lambda: seconds(both_ways, device))
    density = example.pairs.get(str(shape.N))
    if density is not None:
        flops = 4.0 * shape.B * shape.H * shape.D * density
        row["tflops"] = flops / row["seconds"]["attnc"] / 1e12
    for name, run in peers(example, module, shape, tensors, inputs, device):
        attempt(row, name, lambda run=run: seconds(run, device))
    if device != "cpu":
        try:
            made = flex(example, shape, tensors, inputs, device)
            if made is not None:
                run, row["flex_mask_build"] = made
                attempt(row, "flex", lambda: seconds(run, device))
        except Exception as error:
            row["failed"]["flex"] = f"{type(error).__name__}: {str(error)[:160]}"
    return row


def attempt(row: dict[str, Any], name: str, call: Callable[[], float]) -> None:
    """Enter a peer's time, or why it has none."""
    try:
        row["seconds"][name] = call()
    except Exception as error:
        row["failed"][name] = f"{type(error).__name__}: {str(error)[:160]}"


# --- results ----------------------------------------------------------------------------------------------------------


class Results:
    """What was found so far, on disk after every entry."""

    def __init__(self, out: Path, device: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown = out / "results.json", out / "results.md"
        self.data: dict[str, Any] = {"machine": machine(device), "correct": {}, "times": {}}
        if self.json.exists():
            old = json.loads(self.json.read_text())
            if old.get("machine") == self.data["machine"]:
                self.data = old

    def put(self, part: str, key: str, value: dict[str, Any]) -> None:
        """Enter a result and write both files, each to a temporary name first."""
        self.data[part][key] = value
        for path, text in ((self.json, json.dumps(self.data, indent=1)), (self.markdown, table(self.data))):
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(path)


def machine(device: str) -> dict[str, str]:
    """Name the device and the versions that results hold for."""
    found = {"torch": torch.__version__, "python": sys.version.split()[0], "device": "cpu"}
    if device != "cpu":
        import triton

        found |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__}
    return found


def table(data: dict[str, Any]) -> str:
    """Lay the results out as Markdown."""
    lines = ["# Results", "", ", ".join(f"{k} {v}" for k, v in data["machine"].items()), "", "## Correctness", ""]
    wrong = {k: v for k, v in data["correct"].items() if not v["ok"]}
    lines.append(f"{len(data['correct']) - len(wrong)} of {len(data['correct'])} comparisons with float64 passed.")
    lines += [f"- wrong: {k}: {v}" for k, v in wrong.items()]
    columns = ["attnc", *BACKENDS, "flex", "attnc, both ways"]
    lines += [
        "",
        "## Forward (and backward where it says so), milliseconds",
        "",
        "| pattern | " + " | ".join(columns) + " | mask build | TFLOP/s |",
    ]
    lines.append("|---|" + "---|" * (len(columns) + 2))
    for key, row in data["times"].items():
        cells = [f"{row['seconds'][c] * 1e3:.3f}" if c in row["seconds"] else "" for c in columns]
        build = f"{row['flex_mask_build'] * 1e3:.3f}" if "flex_mask_build" in row else ""
        rate = f"{row['tflops']:.0f}" if "tflops" in row else ""
        lines.append(f"| {key} | " + " | ".join([*cells, build, rate]) + " |")
    return "\n".join(lines) + "\n"


def check_all(examples: list[Example], results: Results, device: str, deadline: float) -> None:
    """Compare every example with its definition at every shape; failures are entered, never raised."""
    for example in examples:
        for dtype, shape in correctness_shapes(device):
            key = f"{example.name} {dtype} {shape}"
            if key in results.data["correct"] or time.monotonic() > deadline:
                continue
            try:
                found: dict[str, Any] = errors(example, load(example), shape, dtype, device)
                found["gradients"] = gradient_errors(example, load(example), shape, dtype, device)
                found["ok"] = all(one["error"] <= one["allowed"] for one in (found, *found["gradients"].values()))
            except Exception:
                found = {"ok": False, "why": traceback.format_exc(limit=4)[-800:]}
            results.put("correct", key, found)
            print("ok   " if found["ok"] else "WRONG", key, flush=True)


def capture_all(examples: list[Example], results: Results, device: str, deadline: float) -> None:
    """Capture every example in a CUDA graph, where there are such; failures are entered, never raised."""
    for example in examples if device == "cuda" else []:
        key = f"{example.name} in a CUDA graph"
        if key in results.data["correct"] or time.monotonic() > deadline:
            continue
        try:
            found: dict[str, Any] = graph_errors(example, load(example), Shape(2, 4, 2, 257, 257, 64), "bf16")
            found["ok"] = found["error"] <= found["allowed"]
        except Exception:
            found = {"ok": False, "why": traceback.format_exc(limit=4)[-800:]}
        results.put("correct", key, found)
        print("ok   " if found["ok"] else "WRONG", key, flush=True)


def time_all(examples: list[Example], results: Results, device: str, deadline: float) -> None:
    """Time every example whose numbers are right."""
    rounds = max(len(timing_shapes(device, example.priority)) for example in examples)
    dtype = "fp32" if device == "cpu" else "bf16"
    for number in range(rounds):
        for example in examples:
            shapes = timing_shapes(device, example.priority)
            checks = [v["ok"] for k, v in results.data["correct"].items() if k.split()[0] == example.name]
            if number >= len(shapes) or not checks or not all(checks):
                continue
            key = f"{example.name} {dtype} {shapes[number]}"
            if key in results.data["times"] or time.monotonic() > deadline:
                continue
            try:
                row = measure(example, load(example), shapes[number], dtype, device)
            except Exception as error:
                row = {"seconds": {}, "failed": {"attnc": f"{type(error).__name__}: {str(error)[:300]}"}}
            results.put("times", key, row)
            print(key, {k: f"{v * 1e3:.3f} ms" for k, v in row["seconds"].items()}, row["failed"] or "", flush=True)


def main() -> int:
    """Run what is left to do within the budget; exit code 1 if any example is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and results.md")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--budget", type=float, default=420.0, help="seconds after which nothing new is begun")
    parser.add_argument("--only", nargs="*", help="names of the attentions to run")
    options = parser.parse_args()
    deadline = time.monotonic() + options.budget
    manifest = json.loads((HERE / "manifest.json").read_text())
    examples = sorted((Example(**entry) for entry in manifest), key=lambda e: e.priority)
    if options.only:
        examples = [e for e in examples if e.name in options.only]
    results = Results(options.out, options.device)
    # Compiling for comparisons must not eat the time for measurements; the next run does what is left out.
    check_all(examples, results, options.device, deadline - 0.45 * options.budget)
    capture_all(examples, results, options.device, deadline - 0.4 * options.budget)
    time_all(examples, results, options.device, deadline)
    wrong = [key for key, value in results.data["correct"].items() if not value["ok"]]
    print(f"{len(results.data['correct'])} compared, {len(wrong)} wrong, {len(results.data['times'])} timed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
