"""What tensors a function captures, and what its author calls them."""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

MOST_VISITED = 10_000
"""Objects that are looked at before the search for names gives up."""


def captured_tensors(*functions: Callable[..., Any] | None) -> list[tuple[str, Tensor]]:
    """Return the tensors that functions can reach, with their shortest name: a variable's, an attribute's.

    Looks into closures, the globals that the code names, default arguments, `functools.partial`, `self`, containers
    and the functions among all these.
    """
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque(("", function) for function in functions if function is not None)
    while waiting and len(seen) < MOST_VISITED:
        name, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append((name, value))
            continue
        waiting.extend(_parts(name, value))
    return found


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case None | str() | bytes() | bool() | int() | float() | complex() | ModuleType() | type():
            return
        case FunctionType():
            yield from function_variables(value)
        case MethodType():
            yield "", value.__self__
            yield "", value.__func__
        case functools.partial():
            yield "", value.func
            yield from _partial_arguments(value)
        case list() | tuple() | set() | frozenset():
            yield from ((f"{name}_{position}", item) for position, item in enumerate(value))
        case Mapping():
            yield from ((str(key), item) for key, item in value.items())
        case torch.nn.Module():
            for members in (value._parameters, value._buffers, value.__dict__, value._modules):
                yield from _members(name, members)
            yield "", type(value).forward
        case _ if type(value).__module__.partition(".")[0] in ("torch", "builtins", "numpy"):
            return
        case _:
            yield from _members(name, getattr(value, "__dict__", {}))
            call = type(value).__dict__.get("__call__")
            if isinstance(call, FunctionType):
                yield "", call


def _members(name: str, members: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"{name}_{member}" if name else member, value) for member, value in members.items())


def function_variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function's code can name besides its own variables: closure, defaults, globals."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue
    arguments = inspect.signature(function).parameters.values()
    yield from ((one.name, one.default) for one in arguments if one.default is not inspect.Parameter.empty)
    names = dict.fromkeys(_global_names(function.__code__))
    yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _partial_arguments(partial: functools.partial[Any]) -> Iterator[tuple[str, Any]]:
    try:
        names = list(inspect.signature(partial.func).parameters)
    except (TypeError, ValueError):
        names = []
    for position, value in enumerate(partial.args):
        yield names[position] if position < len(names) else f"argument_{position}", value
    yield from partial.keywords.items()
