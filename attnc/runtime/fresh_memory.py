"""What tensors cost that a loop makes and drops: new pages from the system, or none where memory is used again."""

from __future__ import annotations

from functools import cache

import torch

_KEPT = (32 << 20) - (64 << 10)
"""Bytes: glibc learns from blocks of up to 32 MiB, headers and alignment included."""


@cache
def keep_freed_memory() -> None:
    """Have glibc's `malloc` keep what a loop frees, instead of giving it back and asking for new pages each time.

    Blocks as large as the largest one that it has ever freed are taken from its heap, and as much again stays there
    when it is free. A block that nobody has touched teaches that too, in microseconds; page faults were up to half of
    the time of scores that flash attention cannot compute. Other allocators do not care.
    """
    torch.UntypedStorage(_KEPT, device="cpu")  # type: ignore[no-untyped-call]
