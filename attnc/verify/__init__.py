"""Brute force over small sizes: sets, tiles, programs, gradients and kernels of a compiled pattern.

Every attention is tried at the parameters that were given, and once more with its large int parameters made small, so
that windows and strides have both sides of their edges inside the sizes that brute force can afford.
"""

from attnc.verify.run import steps, verify_compiled
from attnc.verify.table import report_table

__all__ = ["report_table", "steps", "verify_compiled"]
