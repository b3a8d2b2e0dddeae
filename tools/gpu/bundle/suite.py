"""Cases of the benchmark standard, measured by its rules, as rows that `attnc bench` can read; and long sequences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bundle import checks, peers
from bundle.data import Pattern, Shape, make_arguments, manifest, patterns, widened
from bundle.measure import measure, peak_memory
from bundle.peers import Case, Contender, Make, Unavailable, first_line

SAMPLES = 5

SAMPLED_ROWS = 256
"""Rows of the output that are compared."""

SMALL_LENGTH, SMALL_BATCH = 1024, 2
"""Where gradients are compared before a backward pass is timed."""

TRIED = 128
"""The same without a GPU."""

AT_ONCE = 1 << 26
"""Weights in float64 that are held at once."""

FORWARDS = {"forward": 1.0, "backward": 2.5, "both": 3.5}
"""Work in forward passes."""


@dataclass(frozen=True)
class Truth:
    """Rows of the right output, and the error that plain PyTorch makes in the case's precision."""

    rows: Tensor
    exact: Tensor
    same: Tensor


def shape_of(sizes: dict[str, Any]) -> Shape:
    """Return the sizes of a case of the suite."""
    length = sizes["length"]
    return Shape(sizes["batch"], sizes["heads"], sizes["kv_heads"], length, length, sizes["head_size"])


def measure_case(
    key: str, sizes: dict[str, Any], small: bool, names: list[str], seconds: float, device: str
) -> dict[str, Any]:
    """Check and time attnc and its peers on one case; the row is a `StandardRow` as JSON."""
    pattern, shape, mode = patterns()[key], shape_of(sizes), sizes["mode"]
    name = key.removeprefix("standard/")
    row: dict[str, Any] = {"pattern": name, "idea": pattern.idea, "sizes": sizes, "small": small}
    tensors, inputs = make_arguments(pattern, shape, sizes["dtype"], device)
    case = Case(pattern, shape, tensors, inputs, device, mode != "forward")
    truth = true_rows(case)
    accepted: dict[str, tuple[Contender, dict[str, Any]]] = {}
    results: list[dict[str, Any]] = []
    for who, make in peers.contenders(tuple(names)):
        try:
            problem = "" if mode == "forward" else gradients_problem(who, make, key, sizes, device)
            contender = make(case)
            found = _verdict(contender, case, truth, sizes["dtype"])
            if problem or found["problem"]:
                found["problem"] = problem or found["problem"]
                results.append({"name": contender.name, **found})
            else:
                accepted[contender.name] = (contender, found)
        except Exception as error:
            reason = str(error) if isinstance(error, Unavailable) else f"it fails: {first_line(error)}"
            results.append({"name": who, "problem": reason})
    pairs = count_pairs(case)
    timed = _timed(case, {name: contender for name, (contender, _) in accepted.items()}, mode, seconds)
    dense = timed["sdpa, no mask"][0]
    density = pairs / (shape.queries * shape.keys)
    flops = 4.0 * pairs * shape.head_size * shape.heads * shape.batch * FORWARDS[mode]
    for who, (contender, found) in accepted.items():
        timing, memory = timed[who]
        results.append(
            {"name": who, **found, "timing": asdict(timing), "build_seconds": contender.build_seconds}
            | {"memory": memory, "flops_per_second": flops / timing.median}
            | {"times_floor": timing.median / (density * dense.median)}
        )
    results.sort(key=lambda one: "timing" not in one)
    wide = {"value_size": shape.head_size, **asdict(shape)}
    comparison = {
        "attention": pattern.name, "shape": wide, "pairs": pairs, "density": density, "flops": flops,
        "bytes": least_bytes(case, mode), "dense_seconds": dense.median, "floor_seconds": density * dense.median,
        "mode": mode, "results": results,
    }  # fmt: skip
    return row | {"comparison": comparison, "problem": ""}


def small_shape(sizes: dict[str, Any], device: str) -> Shape:
    """Return sizes at which the dense definition's gradients fit into memory."""
    length = SMALL_LENGTH if device == "cuda" else TRIED
    return Shape(SMALL_BATCH, sizes["heads"], sizes["kv_heads"], length, length, sizes["head_size"])


@functools.cache
def true_gradients(key: str, shape: Shape, dtype: str, device: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the right gradients of query, key and value, and what plain PyTorch makes of them."""
    pattern = patterns()[key]
    dense = partial(checks.with_gradients, pattern, pattern.function("reference"), shape, dtype, device, others=False)
    return dense(wide=True), dense()


_GATES: dict[tuple[str, str, Shape, str], str] = {}


def gradients_problem(who: str, make: Make, key: str, sizes: dict[str, Any], device: str) -> str:
    """Say what is wrong with someone's gradients at a short length, once for all lengths; empty if nothing is."""
    pattern, dtype, shape = patterns()[key], sizes["dtype"], small_shape(sizes, device)
    known = (who, key, shape, dtype)
    if known not in _GATES:
        tensors, inputs = make_arguments(pattern, shape, dtype, device)
        contender = make(Case(pattern, shape, tensors, inputs, device, True))
        with contender.around(), torch.enable_grad():
            run = _alone(contender)
            found = checks.with_gradients(pattern, run, shape, dtype, device, others=False)
        exact, same = true_gradients(key, shape, dtype, device)
        wrong = []
        for name in ("gradient of query", "gradient of key", "gradient of value"):
            values = found[name], same[name], exact[name]
            one = checks.verdict(*values, dtype, checks.BACKWARD_FACTOR, checks.GRADIENT_UNITS)
            if not one["ok"]:
                wrong.append(f"wrong {name}: error {one['error']}, allowed {one['allowed']:.1e}")
        _GATES[known] = "; ".join(wrong)
    return _GATES[known]


def _alone(contender: Contender) -> Callable[..., Tensor]:
    """Return a contender's function, which knows further arguments already."""
    return lambda query, key, value, **inputs: contender.run(query, key, value)


def true_rows(case: Case) -> Truth:
    """Compute the rows that outputs are compared with, in float64 and in the case's precision."""
    count, edge = case.shape.queries, SAMPLED_ROWS // 4
    rows = torch.arange(count)
    if count > SAMPLED_ROWS:
        between = torch.linspace(edge, count - edge - 1, SAMPLED_ROWS - 2 * edge).long()
        rows = torch.cat([rows[:edge], between, rows[-edge:]]).unique()
    rows = rows.to(case.device)
    query, key, value = case.tensors
    at_once = max(1, AT_ONCE // (case.shape.batch * case.shape.heads * case.shape.keys))
    wide = tuple(tensor.double() for tensor in case.tensors)
    with torch.no_grad():
        exact = [_rows(case, part, wide, widened(case.inputs)) for part in rows.split(at_once)]
        same = [_rows(case, part, (query, key, value), case.inputs) for part in rows.split(at_once)]
    return Truth(rows, torch.cat(exact, 2), torch.cat(same, 2))


def _rows(case: Case, rows: Tensor, tensors: tuple[Tensor, ...], inputs: dict[str, Any]) -> Tensor:
    query, key, value = tensors
    group = case.shape.heads // case.shape.kv_heads
    weights = case.pattern.function("weights")(query, key, rows=rows, **inputs)
    return weights.to(value.dtype) @ (value if group == 1 else value.repeat_interleave(group, dim=1))


def _verdict(contender: Contender, case: Case, truth: Truth, dtype: str) -> dict[str, Any]:
    with torch.no_grad(), contender.around():
        out = contender.run(*case.tensors)
    rows = out[:, :, truth.rows]
    found = checks.verdict(rows, truth.same, truth.exact, dtype, checks.FORWARD_FACTOR, checks.UNITS)
    problem = "" if found["ok"] else f"wrong output: error {found['error']}, allowed {found['allowed']:.1e}"
    said = {"error": found["error"], "allowed_error": found["allowed"], "checked_rows": len(truth.rows)}
    return {**said, "problem": problem}


def _timed(case: Case, entered: dict[str, Contender], mode: str, seconds: float) -> dict[str, tuple[Any, int | None]]:
    """Time everyone, and dense SDPA, against each other; with the memory that a call needs."""
    dense = peers.dense(case)
    device = torch.device(case.device)
    with torch.set_grad_enabled(mode != "forward"):
        work = {name: _work(one, case, mode) for name, one in (*entered.items(), (dense.name, dense))}
        around = {name: one.around for name, one in entered.items()}
        times = measure(work, device, seconds=seconds, least=SAMPLES, around=around)
        memory = {}
        for name in work:
            with around.get(name, dense.around)():
                memory[name] = peak_memory(work[name], device) if case.device == "cuda" else None
    held = {name: one.held for name, one in entered.items()}
    total = {name: None if one is None else one + held.get(name, 0) for name, one in memory.items()}
    return {name: (times[name], total[name]) for name in work}


def _work(contender: Contender, case: Case, mode: str) -> Callable[[], object]:
    if mode == "forward":
        return lambda: contender.run(*case.tensors)
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in case.tensors)
    with contender.around():
        out = contender.run(*leaves)
    upstream = torch.randn_like(out)
    if mode == "backward":
        return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(contender.run(*leaves), leaves, upstream)


def count_pairs(case: Case) -> float:
    """Return the allowed pairs of one head: by sets where they could, else counted on the device."""
    pattern, shape = case.pattern, case.shape
    known = manifest()["pairs"].get(pattern.key, {}).get(str(shape.queries))
    if known is not None and shape.queries == shape.keys:
        return float(known)
    made = peers.modifiers(pattern, shape.keys, case.inputs, case.device)
    if made is None:
        one = replace(shape, batch=shape.batch if pattern.by_batch else 1, heads=shape.heads if pattern.by_head else 1)
        mask = pattern.function("mask")(
            one.queries, one.keys, B=one.batch, H=one.heads, device=case.device, **_of_mask(pattern, case.inputs)
        )
        return float(mask.double().mean()) * shape.queries * shape.keys
    if made[0] is None:
        return float(shape.queries * shape.keys)
    copies = (shape.batch if pattern.by_batch else 1, 1)
    total = sum(int(strip.sum()) for _, strip in peers.strips(made[0], None, copies, shape, case.device))
    return total / copies[0]


def _of_mask(pattern: Pattern, inputs: dict[str, Any]) -> dict[str, Any]:
    learned = {one["name"] for one in pattern.learned}
    return {name: value for name, value in inputs.items() if name not in learned}


def least_bytes(case: Case, mode: str) -> int:
    """Return the bytes that cross the memory bus if every tensor does so once."""
    given = sum(tensor.nbytes for tensor in case.tensors)
    out = case.tensors[0].nbytes
    data = sum(value.nbytes for value in case.inputs.values() if isinstance(value, Tensor))
    forward, backward = given + out + data, 2 * given + 2 * out + data
    return {"forward": forward, "backward": backward, "both": forward + backward}[mode]


def prepare_case(key: str, sizes: dict[str, Any], names: list[str], device: str) -> dict[str, Any]:
    """Run attnc and FlexAttention once in each mode, so that what they compile lies on the disk when they are timed."""
    pattern, shape = patterns()[key], shape_of(sizes)
    tensors, inputs = make_arguments(pattern, shape, sizes["dtype"], device)
    said = {}
    for backward in (False, True):
        case = Case(pattern, shape, tensors, inputs, device, backward)
        for who, make in peers.contenders(tuple(name for name in names if name == "flex")):
            try:
                problem = gradients_problem(who, make, key, sizes, device) if backward else ""
                if problem:
                    said[f"{who}, gradients"] = problem
                with torch.set_grad_enabled(backward):
                    _work(make(case), case, "both" if backward else "forward")()
            except Exception as error:
                said[f"{who}, {'both' if backward else 'forward'}"] = first_line(error)
    return {"ok": True, "problems": said}


def measure_long(key: str, sizes: dict[str, Any], seconds: float, device: str) -> dict[str, Any]:
    """Check and time attnc alone on long sequences."""
    pattern, shape = patterns()[key], shape_of(sizes)
    tensors, inputs = make_arguments(pattern, shape, sizes["dtype"], device)
    case = Case(pattern, shape, tensors, inputs, device, True)
    found = _verdict(peers.ours(case), case, true_rows(case), sizes["dtype"])
    row: dict[str, Any] = {"pattern": key, "sizes": sizes, **found, "seconds": {}, "flops": {}, "bytes": {}}
    if found["problem"]:
        return {"ok": False, **row}
    pairs = count_pairs(case)
    for mode in ("forward", "both"):
        with torch.set_grad_enabled(mode != "forward"):
            work = _work(peers.ours(case), case, mode)
            times = measure({"attnc": work}, torch.device(device), seconds=seconds, least=3)
        row["seconds"][mode] = times["attnc"].median
        row["flops"][mode] = 4.0 * pairs * shape.head_size * shape.heads * shape.batch * FORWARDS[mode]
        row["bytes"][mode] = least_bytes(case, mode)
    return {"ok": True, "pairs": pairs, **row}


def measure_long_flex(key: str, sizes: dict[str, Any], seconds: float, device: str) -> dict[str, Any]:
    """Build FlexAttention's mask for long sequences and time a forward pass, or say why that is not possible."""
    pattern, shape = patterns()[key], shape_of(sizes)
    tensors, inputs = make_arguments(pattern, shape, sizes["dtype"], device)
    case = Case(pattern, shape, tensors, inputs, device, False)
    row = {"pattern": key, "sizes": sizes}
    try:
        contender = peers.flex(case)
        with torch.no_grad():
            work = {"flex": _work(contender, case, "forward")}
            times = measure(work, torch.device(device), seconds=seconds, least=3)
        found = {"build_seconds": contender.build_seconds, "forward": times["flex"].median, "held": contender.held}
        return {"ok": True, **row, **found}
    except Exception as error:
        return {"ok": True, **row, "problem": str(error) if isinstance(error, Unavailable) else first_line(error)}
