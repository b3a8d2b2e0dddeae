"""Integer sets of pairs: contexts, operation budgets, and the questions that the compiler asks of them.

Every set lives over the pair `[i, j]` with everything else as a parameter. isl objects never leave this package.

Reference: S. Verdoolaege, "isl: An Integer Set Library for the Polyhedral Model" (ICMS 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import islpy as isl

DEFAULT_OPERATIONS = 200_000
"""isl operations that one question may take: about 0.2 s at worst."""

MOST_FAILURES = 3
"""After so many exhausted budgets, the others of a derivation are cut to a twentieth."""

_most: ContextVar[int] = ContextVar("most", default=DEFAULT_OPERATIONS)

_failures: ContextVar[list[int] | None] = ContextVar("failures", default=None)

T = TypeVar("T")


class OutOfBudgetError(Exception):
    """A question took more isl operations than it was given: the caller must answer soundly without it."""


@contextmanager
def budget(context: isl.Context, operations: int = DEFAULT_OPERATIONS, *, counts: bool = True) -> Iterator[None]:
    """Run isl under an operation budget. An inner one has its own count, after which the outer one starts afresh.

    Args:
        context: of the sets.
        operations: that may be taken.
        counts: whether exhausting it says that the mask is a hard one.

    Raises:
        OutOfBudgetError: the budget is exhausted. The context stays usable.
    """
    outer = context.get_max_operations()
    failures = _failures.get()
    context.reset_operations()
    operations = operations if operations > DEFAULT_OPERATIONS else min(operations, _most.get())
    hard = failures is not None and failures[0] >= MOST_FAILURES
    context.set_max_operations(operations // 20 if hard else operations)
    try:
        yield
    except isl.Error:
        # near the limit isl fails in many words (`syntax error` among them), so any error counts as exhaustion
        if failures is not None and counts:
            failures[0] += 1
        raise OutOfBudgetError from None
    finally:
        context.set_max_operations(outer)
        context.reset_operations()


@contextmanager
def allowance(context: isl.Context, operations: int = DEFAULT_OPERATIONS) -> Iterator[list[int]]:
    """Run a whole derivation so that no isl call in it is without a budget, and so that failures do not add up.

    After a few questions have exhausted their budgets, further ones get little: the mask is a hard one. The block is
    given a list whose only element counts them.

    Args:
        context: of the derivation.
        operations: that one question may take.

    Raises:
        OutOfBudgetError: a call outside of every inner budget took too long.
    """
    counted = [0]
    failures, most = _failures.set(counted), _most.set(operations)
    try:
        with budget(context, operations):
            yield counted
    finally:
        _failures.reset(failures)
        _most.reset(most)


def attempt(
    context: isl.Context, question: Callable[[], T], operations: int = DEFAULT_OPERATIONS, *, counts: bool = True
) -> T | None:
    """Answer a question under a budget, or None where it is exhausted; see `budget`."""
    try:
        with budget(context, operations, counts=counts):
            return question()
    except OutOfBudgetError:
        return None


def integer(value: isl.Val) -> int:
    """Return isl's integer as Python's.

    Raises:
        isl.Error: the budget is exhausted; isl then gives no text, and islpy does not say so by itself.
    """
    text: str | None = value.to_str()
    if text is None:
        raise isl.Error("no operations are left to write a number")
    return int(text)


def new_context() -> isl.Context:
    """Make a context in which an error raises instead of printing."""
    return isl.Context()


def pair_space(context: isl.Context) -> isl.Space:
    """Return the space of pairs `[i, j]` without parameters."""
    return isl.Space.create_from_names(context, set=["i", "j"])


def included(inner: isl.Set, outer: isl.Set) -> bool:
    """Tell whether `inner` is a subset of `outer`; False where the budget is exhausted."""
    return bool(attempt(inner.get_ctx(), lambda: bool(inner.is_subset(outer))))


def apart(left: isl.Set, right: isl.Set) -> bool:
    """Tell whether two sets have no point in common; False where the budget is exhausted."""
    return bool(attempt(left.get_ctx(), lambda: bool(left.is_disjoint(right))))


def empty(points: isl.Set) -> bool:
    """Tell whether a set has no point; False where the budget is exhausted."""
    return bool(attempt(points.get_ctx(), lambda: bool(points.is_empty())))
