"""What is measured on: names, versions, and the rates that the device reaches in two plain operations."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from bundle.measure import measure
from bundle.peers import compiler


def describe(device: str) -> dict[str, Any]:
    """Describe machine and versions, as reports of `attnc bench` do."""
    import triton

    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "compiler": compiler(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts |= {"cuda": torch.version.cuda or torch.version.hip, "capability": f"{major}.{minor}"}
        facts |= {
            "cudnn": str(torch.backends.cudnn.version()),
            "memory": torch.cuda.get_device_properties(0).total_memory,
        }
    return {"machine": facts}


def ceilings(device: str) -> dict[str, Any]:
    """Measure a large product of matrices and a large copy: FLOP/s, and bytes a second, read and written."""
    on_device = device == "cuda"
    size, count = (8192, 1 << 30) if on_device else (64, 1 << 12)
    dtype = torch.bfloat16 if on_device else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(count, device=device, dtype=dtype)
    goal = torch.empty_like(source)
    work = {"product": lambda: left @ right, "copy": lambda: goal.copy_(source)}
    times = measure(work, torch.device(device), seconds=0.3 if on_device else 0.0)
    return {
        "flops_per_second": 2.0 * size**3 / times["product"].median,
        "bytes_per_second": 2.0 * source.nbytes / times["copy"].median,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
