"""The patterns of the bundle, and the tensors that they are called with."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent.parent

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key, value."""

Inputs = dict[str, Any]
"""Further arguments of a call by name."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads}/{self.kv_heads} N{self.queries} M{self.keys} D{self.head_size}"


@dataclass(frozen=True)
class Pattern:
    """One attention of the bundle, as `manifest.json` describes it.

    Attributes:
        key: how results call it.
        module: its file, from the bundle's folder.
        plain: `causal` or `full` where `scaled_dot_product_attention` has a flag for it.
        additive: whether its score is the scaled dot product, or that and something that is added.
        softmax: whether it normalises by softmax, without a sink.
        by_batch, by_head: whether the mask differs by batch entry or head.
        bias_by_head: whether what is added to the score differs by head.
        priority: what is checked first; less is earlier.
    """

    key: str
    name: str
    module: str
    cls: str
    idea: str
    inputs: list[dict[str, Any]]
    learned: list[dict[str, Any]]
    plain: str | None
    additive: bool
    softmax: bool
    by_batch: bool
    by_head: bool
    bias_by_head: bool
    priority: int

    @property
    def differentiable(self) -> list[str]:
        """Return the names of further arguments that have gradients."""
        return [one["name"] for one in self.learned] + [one["name"] for one in self.inputs if one["kind"] == "number"]

    def function(self, what: str = "") -> Callable[..., Any]:
        """Return the module's function for the attention, or for its `reference`, `weights` or `mask`."""
        found: Callable[..., Any] = getattr(load_file(self.module), f"{self.name}_{what}" if what else self.name)
        return found


@functools.cache
def manifest() -> dict[str, Any]:
    """Return what `tools/gpu_bundle.py` has written down."""
    found: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
    return found


@functools.cache
def patterns() -> dict[str, Pattern]:
    """Return the patterns by key, the most telling first."""
    made = [Pattern(**entry) for entry in manifest()["patterns"]]
    return {one.key: one for one in sorted(made, key=lambda one: (one.priority, one.key))}


@functools.cache
def load_file(path: str) -> ModuleType:
    """Import one Python file of the bundle."""
    name = f"attnc_gpu_{path.removesuffix('.py').replace('/', '_')}"
    spec = importlib.util.spec_from_file_location(name, HERE / path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def module_of(pattern: Pattern) -> ModuleType:
    """Return the module of a pattern, with the runtime that it brings."""
    return load_file(pattern.module)


def make_arguments(
    pattern: Pattern, shape: Shape, dtype: str, device: str, *, seed: int = 17
) -> tuple[Tensors, Inputs]:
    """Return the arguments of one call, the same for the same arguments: large ones are drawn on the device."""
    pairs = shape.batch * shape.heads * max(shape.queries, shape.keys) * shape.head_size
    place = device if pairs > 1 << 24 else "cpu"
    generator = torch.Generator(place).manual_seed(seed)

    def normal(heads: int, positions: int) -> Tensor:
        size = (shape.batch, heads, positions, shape.head_size)
        precision = DTYPES[dtype] if place != "cpu" else torch.float32
        return torch.randn(size, generator=generator, device=place, dtype=precision).to(device, DTYPES[dtype])

    query = normal(shape.heads, shape.queries)
    key, value = (normal(shape.kv_heads, shape.keys) for _ in range(2))
    return (query, key, value), make_inputs(pattern, shape, device, seed)


def make_inputs(pattern: Pattern, shape: Shape, device: str, seed: int = 17) -> Inputs:
    """Return the further arguments of a call; learned ones are near where they start."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {one["name"]: _make_input(one, shape, device, generator) for one in pattern.inputs}
    if pattern.learned:
        sizes = {"H": shape.heads, "D": shape.head_size}
        needs = {name for recipe in pattern.learned for name in recipe["sizes"]}
        layer = getattr(module_of(pattern), pattern.cls)
        for name, parameter in layer(**{name: sizes[name] for name in sorted(needs)}, device=device).named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            inputs[name] = parameter.detach() + 0.1 * noise
    return inputs


def _make_input(recipe: dict[str, Any], shape: Shape, device: str, generator: torch.Generator) -> Tensor:
    """Make one input by its recipe.

    A `number`, `lengths` (one for each sequence), `documents` (sorted ids, cut at random) or `runs` (of one length).
    """
    match recipe["kind"]:
        case "number":
            return torch.tensor(recipe["value"], device=device)
        case "lengths":
            low = max(1, int(recipe["low"] * shape.keys))
            return torch.randint(low, shape.keys + 1, (shape.batch,), generator=generator).to(device)
        case "documents":
            mean = max(2, min(recipe["mean"], shape.keys // 4))
            starts = torch.rand(shape.batch, shape.keys, generator=generator) < 1.0 / mean
            return starts.long().cumsum(1).to(device)
        case "runs":
            ids = torch.arange(shape.keys) // recipe["length"]
            return ids.expand(shape.batch, -1).contiguous().to(device)
        case other:
            raise ValueError(f"unknown recipe {other!r}")


def widened(inputs: Inputs) -> Inputs:
    """Return the arguments with floats in float64."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
