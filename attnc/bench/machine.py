"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is the GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated; a cautious 4 GiB where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30


def describe(device: torch.device) -> dict[str, object]:
    """Describe machine and versions, for reports."""
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "attnc": _version("attnc"),
        "triton": _version("triton"),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda or torch.version.hip
    return facts


PEER_DISTRIBUTIONS = ("xformers", "flash-attn", "flash-linear-attention", "natten", "flashinfer-python")


def libraries() -> dict[str, object]:
    """Return the versions of attention libraries that are installed, for reports."""
    found = {name: _version(name) for name in PEER_DISTRIBUTIONS}
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
