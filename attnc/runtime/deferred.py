"""Kernels that Triton is given when they are first launched.

`triton.jit` reads the source of its function token by token, which for the kernels of one pattern takes longer than all
else that importing their module does; a call on a CPU, or of one direction alone, needs none or few of them.
"""

# mypy: disable-error-code="no-untyped-call, attr-defined"

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from attnc.runtime.kernel_math import triton


class DeferredKernel:
    """A function that becomes a kernel of Triton's where one is needed."""

    def __init__(self, function: Callable[..., Any], do_not_specialize: Sequence[str]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self._function, self._do_not_specialize = function, do_not_specialize
        self._lock, self._jitted = Lock(), None

    @property
    def jitted(self) -> Any:
        """The kernel, the same for every launch."""
        with self._lock:
            if self._jitted is None:
                self._jitted = triton.jit(do_not_specialize=self._do_not_specialize)(self._function)
            return self._jitted


def jit_when_launched(*, do_not_specialize: Sequence[str]) -> Callable[[Callable[..., Any]], DeferredKernel]:
    """Decorate a kernel; the argument is `triton.jit`'s."""
    return lambda function: DeferredKernel(function, do_not_specialize)
