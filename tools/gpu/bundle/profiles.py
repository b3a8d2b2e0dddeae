"""Where the time of a call goes: what the device runs in a forward and in a backward pass, and how long each takes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bundle.data import make_arguments, patterns
from bundle.suite import shape_of

CALLS = 5

SHOWN = 12
"""Kernels of a pass that are entered, those with the most time first."""


def profile_calls(key: str, sizes: dict[str, Any], device: str) -> dict[str, Any]:
    """Return the seconds of each kernel in one forward and in one backward pass, and how often it runs."""
    pattern = patterns()[key]
    tensors, inputs = make_arguments(pattern, shape_of(sizes), sizes["dtype"], device)
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
    call = pattern.function()
    out = call(*leaves, **inputs)
    upstream = torch.randn_like(out)

    def forward() -> None:
        with torch.no_grad():
            call(*tensors, **inputs)

    def backward() -> None:
        torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    passes = {"forward": forward, "backward": backward}
    return {"pattern": key, "sizes": sizes, "kernels": {name: _profiled(run, device) for name, run in passes.items()}}


def _profiled(run: Any, device: str) -> list[dict[str, Any]]:
    on_device = device == "cuda"
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as found:
        for _ in range(CALLS):
            run()
        if on_device:
            torch.cuda.synchronize()
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in found.events() or ():
        if on_device and event.device_type is not torch.autograd.DeviceType.CUDA:
            continue
        seconds[event.name] += (event.time_range.elapsed_us() if on_device else event.self_cpu_time_total) * 1e-6
        counts[event.name] += 1
    ordered = sorted(seconds, key=lambda name: -seconds[name])[:SHOWN]
    return [{"name": name, "seconds": seconds[name] / CALLS, "calls": counts[name] / CALLS} for name in ordered]
