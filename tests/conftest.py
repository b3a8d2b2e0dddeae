"""What all tests share. Standing here, this file also puts `tests/` on the path: `from expressions import masks`."""

from hypothesis import settings

settings.register_profile("quick", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("quick")
