"""A driver for Triton without a device: kernels are compiled for sm_90, and launches are counted or kept, not started.

All that a launch costs on the host happens as it does with a device, but for the driver's own call.
"""

from __future__ import annotations

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

Launched = tuple[Any, ...]
"""Name, grid, stream, function and arguments."""


class _Launcher:
    """What a compiled kernel is launched by."""

    kept: list[Launched] | None = None

    def __init__(self, src: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: Any) -> None:
        if self.kept is not None:
            self.kept.append((self.name, arguments[:3], *arguments[3:5], *arguments[9:]))


class _Utils:
    """What Triton asks of a driver about binaries and devices."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, hash(name), 32, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class _Driver:
    """Stands for one device of sm_90."""

    utils, launcher_cls = _Utils(), _Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def use_idle_driver() -> None:
    """Take this driver from now on."""
    driver.set_active(_Driver())


def keep_launches() -> list[Launched]:
    """Return a list that learns what is launched from now on."""
    _Launcher.kept = []
    return _Launcher.kept
