"""Who takes part: PyTorch's transformer, Hugging Face's, and the same model with the attention of a pattern."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import nn

from attnc.algebra.counting import count_pairs as count_pairs_by_sets
from attnc.blockwise import count_pairs, mask_blocks, reads_data
from attnc.checking import check_source
from attnc.compiler import Compiled, import_compiled, load
from attnc.diagnostics import CompileError, Diagnostic, Label
from attnc.explanation_layers import count_free
from attnc.files import read_pattern
from attnc.ir.nodes import SizeName
from attnc.ir.program import Attention, TensorKind
from attnc.plan.layer_plan import LayerPlan
from attnc.study.flops import dense_pairs
from attnc.study.hugging_face import bert, gpt2, has_transformers
from attnc.study.models import Attend, Layers, LayerStack, Size, build
from attnc.study.tasks import Task

TORCH, HUGGING_FACE = "torch", "huggingface"

PATTERNS = ("dense", "window", "streaming", "dilated_window", "strided")
"""The patterns that come with the package, by their files."""

SHIPPED = (TORCH, HUGGING_FACE, *PATTERNS)
"""Names of contenders that come with the package; the first that takes part is what budgets are taken from."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A model of a study.

    Attributes:
        name: in tables.
        what: in a few words.
        pairs: allowed pairs of one head, the mean over heads where they differ; 0 where it does not take part.
        make: the model, from a seed.
        missing: why it takes no part; empty if it does.
    """

    name: str
    what: str
    pairs: Fraction
    make: Callable[[int], nn.Module]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Pattern:
    """An attention or a layer of a file, compiled.

    Attributes:
        name: of the attention or the layer.
        attention: that of the layer, if it is one.
        layer: its `nn.Module` in the generated module.
        whole: the plan of the layer; None for an attention, which is put into PyTorch's layer.
    """

    name: str
    attention: Attention
    layer: type[nn.Module]
    whole: LayerPlan | None = None


def shipped(name: str, task: Task, size: Size, width: int) -> Contender:
    """Return a contender that comes with the package, fit for a task.

    Args:
        name: of `SHIPPED`.
        task: what it is for.
        size: of the model.
        width: of windows.
    """
    pairs = dense_pairs(task.length, causal=task.causal)
    if name == TORCH:
        what = "nn.TransformerEncoderLayer"
        return Contender(name, what, pairs, lambda seed: build(task, size, _standard(task, size), seed))
    if name == HUGGING_FACE:
        what, make = ("GPT2Model", gpt2) if task.causal else ("BertModel", bert)
        missing = "" if has_transformers() else "`transformers` is not installed"
        return Contender(name, what, pairs, lambda seed: make(task, size, seed), missing)
    (pattern,) = _shipped_patterns(name, width, two_sided=not task.causal)
    return contender(pattern, task, size, name)


@cache
def _shipped_patterns(name: str, width: int, *, two_sided: bool) -> list[Pattern]:
    """Return the attention of a file that comes with the package; once cached, it needs no stage behind the checker."""
    params = {"two_sided": two_sided} | ({} if name == "dense" else {"width": width})
    file = Path(__file__).parent / "patterns" / f"{name}.attn"
    return patterns(check_source(read_pattern(file), params, complete=True).program.attentions, load(file, **params))


def contender(pattern: Pattern, task: Task, size: Size, name: str) -> Contender:
    """Return the contender of a pattern; one that takes no part where it sees what a causal task asks for."""
    attention = pattern.attention
    if pattern.whole is not None and pattern.whole.sizes.width != size.width:
        missing = f"its width is {pattern.whole.sizes.width}, and the study's is {size.width}"
        return Contender(name, f"layer {pattern.name}", Fraction(0), lambda seed: nn.Identity(), missing)
    size = size if pattern.whole is None else replace(size, heads=pattern.whole.sizes.heads)
    shown = ", ".join(f"{param}={_plain(value.value)}" for param, value in attention.params)
    what = f"{attention.name}({shown})" if shown else attention.name
    if pattern.whole is not None:
        what = f"layer {pattern.name} with {what}"
    if task.causal and _sees_later(attention, task.length, size):
        return Contender(name, what, Fraction(0), lambda seed: nn.Identity(), "it sees later positions")
    pairs = _count(attention, task.length, size, _keys(pattern.whole, task.length))
    return Contender(name, what, pairs, lambda seed: build(task, size, _patterned(pattern, task, size), seed))


def planned_patterns(compiled: Compiled) -> list[Pattern]:
    """Return the layers of a file of the user's, and the attentions that no layer is there for.

    Raises:
        CompileError: one has inputs, or a mask that reads what is learned.
    """
    attentions = [plan.attention for plan in compiled.plans]
    _require_no_data(attentions)
    module = import_compiled(compiled)
    used = {plan.layer.attention for plan in compiled.layers}
    alone = [one for one in patterns(attentions, module) if one.name not in used]
    kinds = _classes(module)[len(attentions) :]
    return alone + [
        Pattern(plan.name, plan.attention.operation, kind, plan)
        for plan, kind in zip(compiled.layers, kinds, strict=True)
    ]


def patterns(attentions: Sequence[Attention], module: ModuleType) -> list[Pattern]:
    """Return the attentions of a generated module."""
    return [Pattern(one.name, one, kind) for one, kind in zip(attentions, _classes(module), strict=False)]


def _classes(module: ModuleType) -> list[type[nn.Module]]:
    """Return the classes of attentions, then those of layers."""
    return [value for value in (getattr(module, name) for name in module.__all__) if isinstance(value, type)]


def _require_no_data(attentions: Sequence[Attention]) -> None:
    """Refuse patterns that need to be given something, or whose pairs change while they learn."""
    mistakes = [
        Diagnostic(
            "input-without-data",
            f"a study has no data for the input `{tensor.name}` of `{attention.name}`",
            () if tensor.span is None else (Label(tensor.span),),
            help="study a pattern without inputs: `learned` tensors are trained, numbers can be parameters (-D)",
        )
        for attention in attentions
        for tensor in attention.tensors
        if tensor.kind is TensorKind.INPUT
    ]
    mistakes = mistakes or [
        Diagnostic(
            "mask-of-learned-tensors",
            f"which pairs `{attention.name}` allows depends on what it learns, so that they cannot be counted",
            help="study a pattern whose mask reads no tensor",
        )
        for attention in attentions
        if reads_data(attention)
    ]
    if mistakes:
        raise CompileError(*mistakes)


def _standard(task: Task, size: Size) -> Callable[[], nn.Module]:
    return lambda: Layers(size, task.length, causal=task.causal)


def _patterned(pattern: Pattern, task: Task, size: Size) -> Callable[[], nn.Module]:
    if pattern.whole is not None:
        own, plan = pattern.whole.sizes, pattern.whole
        # of a convolution with a stride, the part that each position that goes in takes
        kind = pattern.layer
        elements = sum((Fraction(count_free(one), one.outputs) for one in plan.projections), Fraction(0))
        return lambda: LayerStack(own.width, [kind() for _ in range(size.layers)], elements, own.heads * own.head_size)
    sizes = {"H": size.heads, "D": size.head_size}
    wanted = {name: value for name, value in sizes.items() if name in inspect.signature(pattern.layer).parameters}

    def attend() -> Attend:
        return pattern.layer(**wanted)

    return lambda: Layers(size, task.length, causal=False, attend=attend)


def _keys(plan: LayerPlan | None, length: int) -> int:
    """Return how many keys a layer's projections leave of so many positions."""
    if plan is None:
        return length
    matrix = plan.projection("key").matrix
    if matrix.projection.structure != "conv2d":
        return -(-length // matrix.stride)
    width = matrix.number("width")
    return -(-(length // width) // matrix.stride) * -(-width // matrix.stride)


def _count(attention: Attention, length: int, size: Size, keys: int) -> Fraction:
    """Count allowed pairs of one head: by sets where they can, else by looking at each."""
    counted = count_pairs_by_sets(attention, length, keys, size.heads, head_size=size.head_size)
    sizes = {**_sizes(length, size), SizeName.KEYS: keys}
    return count_pairs(attention, sizes) if counted is None else counted


def _sees_later(attention: Attention, length: int, size: Size) -> bool:
    blocks = mask_blocks(attention, _sizes(length, size))
    return any(bool(block.allowed.triu(block.rows.start + 1).any()) for block in blocks)


def _sizes(length: int, size: Size) -> dict[SizeName, int]:
    return {
        SizeName.BATCH: 1,
        SizeName.HEADS: size.heads,
        SizeName.QUERIES: length,
        SizeName.KEYS: length,
        SizeName.HEAD_SIZE: size.head_size,
        SizeName.GROUP: 1,
    }


def distinct(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Number names that are taken already: `streaming`, `streaming 2`."""
    found = list(taken)
    for name in names:
        number, tried = 1, name
        while tried in found:
            number += 1
            tried = f"{name} {number}"
        found.append(tried)
    return found[len(taken) :]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
