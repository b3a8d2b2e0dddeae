"""Recording what a call does: every torch operation below autograd, and every launch of a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from attnc.runtime.call_steps import NOWHERE, CallPlan, Given, KernelStep, MemoryStep, Slot, Step, TorchStep, make_plan

MOST_STEPS = 200
"""Steps beyond which a call takes so long that nothing is gained, as do gradients strip by strip."""

_aten = torch.ops.aten

_EMPTY = {
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip
_ZEROS = {_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default}
_CONSTANTS = bool | int | float | str | torch.dtype | torch.device | torch.layout | torch.memory_format
"""Arguments that are the same for every call of a signature; a storage is none, say."""

_READS = {_aten.item.default, _aten._local_scalar_dense.default}


class CallRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one call in one thread. Its launcher asks `recorder_here` for it."""

    def __init__(self, given: Given) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given, self._count = len(given), 0
        self._steps: list[Step] = []
        self._known: Any = WeakTensorKeyDictionary()
        self._starts: dict[int, int] = {}
        self._possible, self._is_launching = True, False
        for tensor in given:
            if tensor is not None:
                self._learn(tensor)
            else:
                self._count += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is asked for, and write it down."""
        named = kwargs or {}
        found = func(*args, **named)
        if self._possible and not self._is_launching:
            try:
                self._note(func, args, named, found)
            except _UntoldError:
                self._possible = False
        return found

    def plan(self, results: Sequence[Tensor]) -> CallPlan | None:
        """Return what the call did, given what it returned; None if that cannot be told."""
        if not self._possible or len(self._steps) > MOST_STEPS:
            return None
        try:
            numbers = [self._number(one) for one in results]
        except _UntoldError:
            return None
        return make_plan(self._steps, self._given, self._count, numbers)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int],
        options: dict[str, bool | int],
        prepare: Callable[[], None] | None,
        named: dict[str, Any],
    ) -> None:
        """Launch a kernel, and write it down.

        Args:
            kernel: of Triton.
            grid: numbers of programs.
            options: how it is compiled.
            prepare: what a launch that goes by no hook of the kernel's must do before.
            named: its arguments.
        """
        self._is_launching = True
        try:
            compiled = kernel[grid](**named, **options)
        finally:
            self._is_launching = False
        start, names = kernel[grid], (*named, *options)
        if _is_direct(compiled) and set(kernel.arg_names) <= set(named):
            named, options = {name: named[name] for name in kernel.arg_names}, {}
            start, names = compiled[(*grid, 1, 1)], ()
        else:
            prepare = None
        try:
            values = [self._templated(one) for one in (*named.values(), *options.values())]
        except _UntoldError:
            self._possible = False
            return
        # of a view that begins where its tensor does, a kernel sees no more than of that tensor
        numbers = [self._starts.get(one.number, one.number) if isinstance(one, Slot) else None for one in values]
        tensors = tuple((place, number) for place, number in enumerate(numbers) if number is not None)
        values = [None if isinstance(one, Slot) else one for one in values]
        self._steps.append(KernelStep(start, tuple(values), tensors, names, prepare))

    def _note(self, func: Any, args: tuple[Any, ...], named: dict[str, Any], found: Any) -> None:
        if func in _READS:
            # numbers on the CPU that a caller gives are part of the call's signature
            if self._number(args[0]) >= self._given or not args[0].is_cpu or args[0].dim():
                raise _UntoldError
            return
        if func in _EMPTY or func in _ZEROS:
            place = found.shape, found.stride(), found.dtype, found.device
            self._steps.append(MemoryStep(*place, func in _ZEROS, self._learn(found)))
            return
        if func is _aten.as_strided.default:  # where its memory begins is no part of a signature
            raise _UntoldError
        arguments = tuple(self._templated(one) for one in args)
        options = {name: self._templated(one) for name, one in named.items()}
        many = isinstance(found, list | tuple)
        results = tuple(NOWHERE if one is None else self._learn(one) for one in (found if many else (found,)))
        self._steps.append(TorchStep(func, arguments, options, results, many, func._schema.is_mutable))
        if args and not many and found is not args[0] and _begins_alike(found, args[0]):
            whole = self._number(args[0])
            self._starts[results[0]] = self._starts.get(whole, whole)

    def _learn(self, tensor: Any) -> int:
        """Return the number of a result, which may be a tensor that is known."""
        if not isinstance(tensor, Tensor):
            raise _UntoldError
        number: int = self._known.setdefault(tensor, self._count)
        self._count += number == self._count
        return number

    def _number(self, tensor: Tensor) -> int:
        number: int | None = self._known.get(tensor)
        if number is None:
            raise _UntoldError
        return number

    def _templated(self, argument: Any) -> Any:
        """Return an argument with numbers in the places of tensors; a list only where tensors are in it."""
        if isinstance(argument, Tensor):
            return Slot(self._number(argument))
        if isinstance(argument, list | tuple) and any(isinstance(one, Tensor | list | tuple) for one in argument):
            return [self._templated(one) for one in argument]
        if isinstance(argument, list | tuple):
            return tuple(self._templated(one) for one in argument)
        if argument is not None and not isinstance(argument, _CONSTANTS):
            raise _UntoldError
        return argument


class _UntoldError(ValueError):
    """A step depends on something that is neither given nor made by an earlier one."""


class _ThreadRecorder(local):
    """The recorder of each thread."""

    recorder: CallRecorder | None = None


_RECORDING = _ThreadRecorder()


def recorder_here() -> CallRecorder | None:
    """Return what records the call that this thread computes; None if nothing does."""
    return _RECORDING.recorder


def record_call(compute: Callable[..., Sequence[Tensor]], given: Given) -> tuple[Sequence[Tensor], CallPlan | None]:
    """Compute, and return the results with what was done, if that can be told.

    A tensor that is given twice counts as two, which the next call may have.
    """
    own = [None if tensor is None else tensor.detach() for tensor in given]
    recorder = CallRecorder(own)
    _RECORDING.recorder = recorder
    try:
        with recorder:
            results = compute(*own)
    finally:
        _RECORDING.recorder = None
    return results, recorder.plan(results)


def _begins_alike(view: Any, tensor: Any) -> bool:
    """Tell whether two tensors have the same address and type."""
    if not (isinstance(view, Tensor) and isinstance(tensor, Tensor)) or not view.numel() or not tensor.numel():
        return False
    return view.dtype == tensor.dtype and view.data_ptr() == tensor.data_ptr()


def _is_direct(compiled: Any) -> bool:
    """Tell whether a launch gave a kernel that can be launched without looking at its arguments again.

    On AMD's devices kernels depend on how much memory lies behind an address, which is no part of a signature.
    """
    if compiled is None or torch.version.hip is not None:
        return False
    from triton.compiler import CompiledKernel

    return isinstance(compiled, CompiledKernel)
