"""Who is measured: attnc's module, PyTorch's own attentions, and the libraries that are installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType

from attnc.bench.contender import Case, Contender, Make
from attnc.bench.libraries import library_contender
from attnc.bench.names import BACKENDS, LIBRARIES
from attnc.bench.sdpa import sdpa_contender
from attnc.bench.sdpa_backends import forced
from attnc.plan.kernel_plan import Plan

FLEX_BLOCKS = (128, 64)
"""Block sizes of FlexAttention: its default, and one that is sometimes faster."""


def contenders(plan: Plan, module: ModuleType, peers: Sequence[str]) -> Iterator[tuple[str, Make]]:
    """Yield a name and what makes the contender of a case, for attnc and every peer.

    Args:
        plan: of the attention.
        module: generated from it.
        peers: of `names.PEERS`.
    """

    def ours(case: Case) -> Contender:
        function = getattr(module, case.attention.name)
        return Contender("attnc", lambda query, key, value: function(query, key, value, **case.data))

    yield "attnc", ours
    facts = plan.facts
    sdpa = _remembered(lambda case: sdpa_contender(case, causal=facts.exactly_causal, full=facts.everything))
    for name in peers:
        if name == "sdpa":
            yield name, sdpa
        elif name in BACKENDS:
            yield name, lambda case, name=name: forced(name, sdpa(case), case)  # type: ignore[misc]
        elif name == "flex":
            yield from _flex()
        elif name in LIBRARIES:
            yield name, partial(library_contender, name)
        else:
            raise AssertionError(name)


def _flex() -> Iterator[tuple[str, Make]]:
    from attnc.bench.flex_contender import flex_contender

    for size in FLEX_BLOCKS:
        yield f"flex {size}", lambda case, size=size: flex_contender(case, size)  # type: ignore[misc]


def _remembered(make: Make) -> Make:
    """Let backends share the contender of the latest case, whose dense mask is large."""
    latest: list[tuple[Case, Contender]] = []

    def made(case: Case) -> Contender:
        if not latest or latest[0][0] is not case:
            latest[:] = [(case, make(case))]
        return latest[0][1]

    return made
