"""Processes that compile or trace for a device that is not there; the one of the tests interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

DRIVER = """
import triton
from triton.backends.compiler import GPUTarget

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
"""
"""Code that has Triton believe in an sm_90."""


def run_python(code, *arguments, **more):
    """Run code with these arguments, and `more` in its environment; it has to succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | more
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result
