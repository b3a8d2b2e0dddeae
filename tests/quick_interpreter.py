"""Triton's interpreter without work that has no effect, which is most of what kernels take in it.

It describes the types of all results anew, replaces the functions of `triton.language` again wherever one kernel calls
another, and computes integers twice to see whether they overflow, but says so only while debugging.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


class _Replaced:
    """What `_patch_lang` has replaced for the launch that runs, and for all kernels that its kernel calls."""

    def __init__(self, replace_functions):
        self.replace_functions = replace_functions
        self.scope = None

    def __call__(self, function):
        if self.scope is None:
            self.scope = self.replace_functions(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        return self

    def restore(self):
        self.scope.restore()
        self.scope = None


def _numpy_type_once(numpy_type):
    """Return a cached `_get_np_dtype`, which asks for the scalar type alone."""
    of_scalar = cache(numpy_type)
    pointer = np.dtype(np.uint64)

    def find(kind):
        scalar = kind.scalar
        return pointer if scalar.is_ptr() else of_scalar(scalar)

    return find


def _block_once(initialize):
    """Return the `__init__` of types of blocks, which describes each shape with elements of one name once."""
    known = {}

    def initialize_once(self, element_ty, shape):
        sizes = tuple([getattr(size, "value", size) for size in shape])
        described = known.get((element_ty.name, sizes))
        if described is None:
            initialize(self, element_ty, shape)
            known[element_ty.name, sizes] = {name: value for name, value in vars(self).items() if name != "element_ty"}
        else:
            vars(self).update(described, element_ty=element_ty)

    return initialize_once


def _tensor_once(initialize):
    """Return the `__init__` of tensors, which describes those with types of one name once."""
    known = {}

    def initialize_once(self, handle, type):
        described = known.get(type.name)
        if described is None:
            initialize(self, handle, type)
            own = {"handle", "type", "dtype"}
            known[type.name] = {name: value for name, value in vars(self).items() if name not in own}
        else:
            vars(self).update(described, handle=handle, type=type, dtype=type.scalar)

    return initialize_once


@contextmanager
def quick_interpreter():
    """Let kernels that the interpreter runs compute the same in less time."""
    builder, block, tensor = interpreter.interpreter_builder, tl.core.block_type, tl.core.tensor
    with (
        patch.object(interpreter, "_patch_lang", _Replaced(interpreter._patch_lang)),
        patch.object(interpreter, "_get_np_dtype", _numpy_type_once(interpreter._get_np_dtype)),
        patch.object(builder, "options", replace(builder.options, sanitize_overflow=False)),
        patch.object(block, "__init__", _block_once(block.__init__)),
        patch.object(tensor, "__init__", _tensor_once(tensor.__init__)),
    ):
        yield
