"""Attention libraries as peers, each by its documented interface: thin adapters that say what they can express."""

from attnc.bench.libraries.adapters import library_contender

__all__ = ["library_contender"]
