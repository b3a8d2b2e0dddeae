"""What all tests share. Standing here, this file also puts `tests/` on the path: `from expressions import masks`."""

import gc
import os

os.environ.setdefault("TRITON_INTERPRET", "1")
"""Before anything imports triton: kernels run on CPU tensors. Ahead-of-time compiles run in processes without it."""

os.environ.setdefault("ATTNC_PINNED", "1")
"""What the user has tuned on this machine is no test's business."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Tensors are small, and as many tests run at once as there are cores: more threads would wait for each other."""

gc.set_threshold(20_000, 10, 10)
"""Collect garbage less often than every 700 objects: expressions, sets and tests are many and long-lived."""

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

busy = [HealthCheck.too_slow]  # on a machine that does other things, random input may take long
settings.register_profile("quick", deadline=None, max_examples=60, derandomize=True, suppress_health_check=busy)
settings.register_profile("thorough", deadline=None, max_examples=2000, suppress_health_check=busy)
settings.load_profile("quick")


def pytest_collection_finish():
    """Let the garbage collector pass over what stays until the end: modules and tests, some million objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def kernels_stay_inside_their_tensors():
    """Check every address of every kernel that the interpreter runs."""
    from kernel_addresses import checked_addresses
    from quick_interpreter import quick_interpreter

    with checked_addresses(), quick_interpreter():
        yield
