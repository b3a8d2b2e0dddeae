"""What the command line calls things before torch is imported: modes and peers."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What of an attention is timed.

    `BACKWARD` is `torch.autograd.grad` alone, after a forward pass that is not timed.
    """

    FORWARD = "forward"
    BACKWARD = "backward"
    BOTH = "both"

    @property
    def words(self) -> str:
        """Say it in a title."""
        return "forward and backward" if self is Mode.BOTH else self.value


BACKENDS = ("sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math")
"""SDPA forced to one of its backends."""

LIBRARIES = ("xformers", "flash-attn", "fla", "natten", "flashinfer")
"""Measured where they are installed."""

PEERS = ("sdpa", *BACKENDS, "flex", *LIBRARIES)
"""What attnc is compared with: `sdpa` is PyTorch's own choice of a backend."""

USUAL_PEERS = ("sdpa", "flex")

NOT_INSTALLED = "not installed"
"""The problem of a library that is not there."""
