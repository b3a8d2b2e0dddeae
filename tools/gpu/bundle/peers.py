"""Who is measured beside attnc: `scaled_dot_product_attention`, each backend by name, and compiled FlexAttention."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from bundle.data import Inputs, Pattern, Shape, Tensors, load_file

BACKENDS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}

EAGER = ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::_softmax", "aten::_safe_softmax")
"""Operators of FlexAttention's eager form; its compiled form computes scores inside of one kernel."""

EAGER_BYTES = 24
"""Bytes for each pair that FlexAttention's mask build holds at once in eager mode, about."""

STRIP = 1 << 27
"""Pairs of which masks are evaluated at once."""


class Unavailable(Exception):  # noqa: N818 - a statement about a peer rather than a failure
    """A peer cannot compute this case; the text says why."""


@dataclass(frozen=True)
class Contender:
    """A way to compute a case.

    Attributes:
        build_seconds: what preparing its mask took; None where there is none.
        held: bytes of that mask.
        around: entered around each sample, and not timed.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    build_seconds: float | None = None
    held: int = 0
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Case:
    """What is computed."""

    pattern: Pattern
    shape: Shape
    tensors: Tensors
    inputs: Inputs
    device: str
    backward: bool


Make = Callable[[Case], Contender]


def contenders(names: tuple[str, ...]) -> Iterator[tuple[str, Make]]:
    """Yield a name and what makes the contender of a case, attnc first."""
    yield "attnc", ours
    latest: list[tuple[Case, Contender]] = []

    def sdpa(case: Case) -> Contender:
        if not latest or latest[0][0] is not case:
            latest[:] = [(case, _sdpa(case))]
        return latest[0][1]

    for name in names:
        if name == "sdpa":
            yield name, sdpa
        elif name == "flex":
            yield "flex 128", flex
        else:
            yield name, lambda case, name=name: _forced(name, sdpa(case), case)  # type: ignore[misc]


def ours(case: Case) -> Contender:
    """Return the module's own function."""
    return Contender("attnc", partial(_call, case.pattern.function(), case.inputs))


def _call(function: Callable[..., Any], inputs: Inputs, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out: Tensor = function(query, key, value, **inputs)
    return out


def dense(case: Case) -> Contender:
    """Return SDPA on all pairs without a mask: what the floor is measured by."""
    attend = partial(functional.scaled_dot_product_attention, enable_gqa=case.shape.heads != case.shape.kv_heads)
    return Contender("sdpa, no mask", attend)


def modifiers(pattern: Pattern, length: int, inputs: Inputs, device: str) -> tuple[Any, Any] | None:
    """Return FlexAttention's mask and score functions for a pattern at a length; None where it cannot say it."""
    make = load_file("flex_modifiers.py").MODIFIERS.get((pattern.key, length))
    return None if make is None else make(inputs, device)


# -- SDPA


def _sdpa(case: Case) -> Contender:
    pattern, shape = case.pattern, case.shape
    attend = partial(functional.scaled_dot_product_attention, enable_gqa=shape.heads != shape.kv_heads)
    if pattern.plain == "full":
        return Contender("sdpa", attend)
    if pattern.plain == "causal" and shape.queries == shape.keys:
        return Contender("sdpa, causal", partial(attend, is_causal=True))
    if not pattern.softmax or not pattern.additive:
        raise Unavailable("SDPA has no such score")
    begin = time.perf_counter()
    mask = _dense_mask(case)
    synchronize(case.device)
    seconds, held = time.perf_counter() - begin, mask.untyped_storage().nbytes()
    return Contender("sdpa, dense mask", partial(attend, attn_mask=mask), seconds, held)


def _dense_mask(case: Case) -> Tensor:
    """Return the mask, or what is added to the scores where the pattern has a bias, evaluated in strips of rows."""
    pattern, shape = case.pattern, case.shape
    made = modifiers(pattern, shape.keys, case.inputs, case.device)
    if made is None or shape.queries != shape.keys:
        raise Unavailable("no dense mask was written for this length")
    mask_mod, score_mod = made
    dtype = torch.bool if score_mod is None else case.tensors[0].dtype
    by_head = pattern.by_head or (score_mod is not None and pattern.bias_by_head)
    copies = (shape.batch if pattern.by_batch else 1, shape.heads if by_head else 1)
    size = (*copies, shape.queries, shape.keys)
    needed = copies[0] * copies[1] * shape.queries * shape.keys * (5 if score_mod is None else 8)
    if needed > 0.6 * free_memory(case.device):
        raise Unavailable(f"its dense mask takes {needed / 2**30:.1f} GiB")
    whole = torch.empty(size, dtype=dtype, device=case.device)
    for start, strip in strips(mask_mod, score_mod, copies, shape, case.device):
        whole[:, :, start : start + strip.shape[2]] = strip
    return whole


def strips(
    mask_mod: Any, score_mod: Any, copies: tuple[int, int], shape: Shape, device: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield the mask of all pairs, some rows at a time: bool, or a bias where there is a score."""
    batch = torch.arange(copies[0], device=device)[:, None, None, None]
    head = torch.arange(copies[1], device=device)[None, :, None, None]
    keys = torch.arange(shape.keys, device=device)[None, None, None]
    count = max(1, STRIP // (copies[0] * copies[1] * shape.keys))
    for start in range(0, shape.queries, count):
        rows = torch.arange(start, min(start + count, shape.queries), device=device)[None, None, :, None]
        size = (*copies, rows.shape[2], shape.keys)
        allowed = torch.ones((), dtype=torch.bool, device=device)
        if mask_mod is not None:
            allowed = mask_mod(batch, head, rows, keys)
        if score_mod is None:
            yield start, allowed.expand(size)
        else:
            bias = score_mod(torch.zeros((), device=device), batch, head, rows, keys)
            yield start, torch.where(allowed, bias, -torch.inf).expand(size)


def _forced(name: str, free: Contender, case: Case) -> Contender:
    """Return the contender `free` with one backend of SDPA alone, or say why that backend cannot."""
    if case.device == "cpu" and name not in ("sdpa-flash", "sdpa-math"):
        raise Unavailable("PyTorch has no such backend on a CPU")
    shape = case.shape
    if name == "sdpa-math":
        scores = shape.batch * shape.heads * shape.queries * shape.keys * 4
        if scores * 3 * (2 if case.backward else 1) > 0.6 * free_memory(case.device):
            raise Unavailable(f"all of its scores take {scores / 2**30:.1f} GiB, several times over")
    around = partial(sdpa_kernel, BACKENDS[name])
    leaves = [tensor.detach().requires_grad_(case.backward) for tensor in case.tensors]
    with warnings.catch_warnings(record=True) as said, torch.set_grad_enabled(case.backward), around():
        warnings.simplefilter("always")
        try:
            free.run(*leaves)
        except RuntimeError as error:
            told = "; ".join(dict.fromkeys(str(one.message).split("(Triggered")[0].strip() for one in said))
            raise Unavailable((told or first_line(error))[:240]) from None
    _, comma, how = free.name.partition(",")
    return replace(free, name=f"{name}{comma}{how}", around=around)


# -- FlexAttention


def flex(case: Case) -> Contender:
    """Return FlexAttention, compiled, its mask built apart; an error where it would run in eager mode."""
    from torch._dynamo.utils import counters
    from torch.nn.attention.flex_attention import flex_attention

    pattern, shape = case.pattern, case.shape
    if case.device == "cpu" and case.backward:
        raise Unavailable("FlexAttention has no backward pass on a CPU")
    if compiler() is None:
        raise Unavailable("torch.compile needs a C compiler, and none is on this machine's path")
    made = modifiers(pattern, shape.keys, case.inputs, case.device) if shape.queries == shape.keys else None
    if made is None:
        raise Unavailable("FlexAttention cannot express it")
    mask_mod, score_mod = made
    torch._dynamo.reset()
    # a backward pass that is timed alone runs again and again on what one forward pass has kept
    torch._functorch.config.donated_buffer = not case.backward
    block_mask, built = (None, None) if mask_mod is None else block_mask_of(case, mask_mod)
    counters.clear()
    attend: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    options = {"score_mod": score_mod, "block_mask": block_mask, "enable_gqa": shape.heads != shape.kv_heads}

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = attend(query, key, value, **options)
        return out

    leaves = [tensor.detach().requires_grad_(case.backward) for tensor in case.tensors]
    with torch.set_grad_enabled(case.backward):
        run(*leaves)
        lowered = counters["inductor"] or counters["aot_autograd"]  # the latter alone where it was on the disk
        compiled = bool(counters["stats"].get("unique_graphs")) and bool(lowered)
        problem = _eager_fallback(lambda: run(*leaves)) if compiled else "it was not compiled"
    if problem:
        raise Unavailable(problem)
    held = 0 if block_mask is None else sum(p.nbytes for p in block_mask.as_tuple() if isinstance(p, Tensor))
    return Contender("flex 128", run, built, held)


def block_mask_of(case: Case, mask_mod: Any) -> tuple[Any, float]:
    """Build FlexAttention's mask and return it with the seconds it took.

    It is built by compiled code, which does not hold all pairs at once, where eager code would take too much memory.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    pattern, shape = case.pattern, case.shape
    batch = shape.batch if pattern.by_batch else None
    heads = shape.heads if pattern.by_head else None
    needed = (batch or 1) * (heads or 1) * shape.queries * shape.keys * EAGER_BYTES

    def build(compiled: bool) -> Any:
        make = torch.compile(create_block_mask, dynamic=False) if compiled else create_block_mask
        return make(mask_mod, batch, heads, shape.queries, shape.keys, device=case.device)

    compiled = needed > 0.5 * free_memory(case.device)
    if not compiled:
        try:
            build(compiled=False)
        except torch.OutOfMemoryError:
            compiled = True
    if compiled:
        build(compiled=True)  # compiling is no part of what a build takes
    synchronize(case.device)
    begin = time.perf_counter()
    made = build(compiled)
    synchronize(case.device)
    return made, time.perf_counter() - begin


def _eager_fallback(work: Callable[[], object]) -> str:
    """Tell whether a call runs FlexAttention's eager form, by the operators that a profiler sees."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    ran = {event.name for event in profile.events() or ()}
    found = [name for name in EAGER if name in ran]
    return f"it fell back to eager operators ({', '.join(found)}): a time would say nothing" if found else ""


# -- the machine


def compiler() -> str | None:
    """Return the C compiler that Triton and torch.compile will find."""
    return next(
        (found for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name and (found := shutil.which(name))), None
    )


def free_memory(device: str) -> int:
    """Return the bytes that can still be allocated on a device; a cautious 4 GiB of the host's."""
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else 4 << 30


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def first_line(error: BaseException) -> str:
    """Return an error in one line, for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:240]
