"""FlexAttention as a peer: compiled, its mask built apart, and never its silent eager fallback."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from attnc.bench.cases import surroundings
from attnc.bench.contender import Case, Contender, Unavailable, first_line
from attnc.bench.flex import FlexFunctions, NotExpressible, flex_functions
from attnc.bench.machine import free_memory
from attnc.blockwise import varies
from attnc.ir.nodes import Binary, BinaryOp, Call, Expr, Function, IndexName
from attnc.ir.program import NormalizeKind
from attnc.ir.types import Type
from attnc.reference import evaluate_tensor, pair_environment


def flex_contender(case: Case, block_size: int) -> Contender:
    """Return FlexAttention for a case, compiled and warmed up.

    Raises:
        Unavailable: it cannot express or compile the pattern, or has no backward pass here.
    """
    attention = case.attention
    if surroundings(attention):
        raise Unavailable(f"FlexAttention has no `{surroundings(attention)}`")
    if attention.normalize.kind is not NormalizeKind.SOFTMAX:
        raise Unavailable(f"FlexAttention has no normalize {attention.normalize.kind.value}")
    on_cpu = case.device.type == "cpu"
    if on_cpu and case.backward:
        raise Unavailable("FlexAttention has no backward pass on a CPU")
    if on_cpu and attention.normalize.sink is not None:
        raise Unavailable("FlexAttention gives no log-sum-exp on a CPU, which a sink needs")
    try:
        functions = flex_functions(attention, case.shape, case.data, case.device, _score(case))
    except NotExpressible as reason:
        raise Unavailable(f"FlexAttention cannot express it: {reason}") from None
    begin = time.perf_counter()
    mask = _block_mask(case, functions, block_size)
    _synchronize(case.device)
    built = None if mask is None else time.perf_counter() - begin
    held = 0 if mask is None else sum(part.nbytes for part in mask.as_tuple() if isinstance(part, torch.Tensor))
    return Contender(f"flex {block_size}", _compiled(case, functions, mask), built, held, audit=eager_fallback)


EAGER = ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::_softmax", "aten::_safe_softmax")
"""Operators of FlexAttention's eager form. Its compiled form computes scores inside of one kernel."""


def eager_fallback(work: Callable[[], object]) -> str:
    """Tell whether a call runs FlexAttention's eager form, by the operators that a profiler sees; empty if it does not.

    Nothing else shows it for sure: a graph that was compiled once may be left for eager code at a later call, for other
    tensors or in the backward pass.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports its start and end on standard error
    work()  # what it compiles now is no part of it
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    ran = {event.name for event in profile.events() or ()}
    found = [name for name in EAGER if name in ran]
    return f"it fell back to eager operators ({', '.join(found)}): a time would say nothing" if found else ""


def _score(case: Case) -> Expr:
    """Return the score with the logarithm of the weight in it."""
    score, weight = case.attention.score, case.attention.weight
    if weight is None:
        return score
    return Binary(BinaryOp.ADD, score, Call(Function.LOG, (weight,), Type.FLOAT), Type.FLOAT)


def _block_mask(case: Case, functions: FlexFunctions, block_size: int) -> BlockMask | None:
    if functions.mask_mod is None:
        return None
    attention, shape = case.attention, case.shape
    batch = shape.batch if varies(attention, IndexName.BATCH) else None
    heads = shape.heads if varies(attention, IndexName.HEAD) else None
    pairs = (batch or 1) * (heads or 1) * shape.queries * shape.keys
    compiled = pairs * 12 > 0.5 * free_memory(case.device)  # eager, it holds several tensors of all pairs
    try:
        return create_block_mask(
            functions.mask_mod,
            batch,
            heads,
            shape.queries,
            shape.keys,
            device=case.device,
            BLOCK_SIZE=block_size,
            _compile=compiled,
        )
    except Exception as error:
        raise Unavailable(f"its mask fails: {first_line(error)}") from None


def _compiled(case: Case, functions: FlexFunctions, mask: BlockMask | None) -> Callable[..., torch.Tensor]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    # a backward pass that is timed alone runs again and again on what one forward pass has kept
    torch._functorch.config.donated_buffer = not case.backward
    counters.clear()
    attend: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    options: dict[str, Any] = {
        "score_mod": functions.score_mod,
        "block_mask": mask,
        "enable_gqa": case.shape.group > 1,
    }
    scale, sink = _row_factors(case)

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        factor = 1.0
        if isinstance(scale, float):
            factor = scale
        else:
            query = query * scale
        if sink is None:
            out: torch.Tensor = attend(query, key, value, scale=factor, **options)
            return out
        out, lse = attend(query, key, value, scale=factor, return_lse=True, **options)
        kept: torch.Tensor = out * torch.sigmoid(lse - sink).unsqueeze(-1).to(out.dtype)
        return kept

    try:
        with torch.set_grad_enabled(case.backward):
            run(*(tensor.detach().requires_grad_(case.backward) for tensor in (case.query, case.key, case.value)))
    except Exception as error:
        raise Unavailable(f"it does not compile: {first_line(error)}") from None
    if not _compiled_anything():
        raise Unavailable("it was not compiled: a time of its eager form would say nothing")
    return run


def _compiled_anything() -> bool:
    """Tell whether a graph was made and lowered since the counters were cleared."""
    from torch._dynamo.utils import counters

    return bool(counters["stats"].get("unique_graphs")) and bool(counters["inductor"])


def _row_factors(case: Case) -> tuple[float | torch.Tensor, torch.Tensor | None]:
    """Return the factor on the dot product and the sink of each row, `(B, H, N)`."""
    attention = case.attention
    env = pair_environment(attention, case.shape.sizes(), case.data, dtype=torch.float32, device=case.device)
    sink = None
    if attention.normalize.sink is not None:
        rows = (case.shape.batch, case.shape.heads, case.shape.queries, 1)
        sink = evaluate_tensor(attention.normalize.sink, env).expand(rows).squeeze(-1)
    if attention.scale is None:
        return 1 / math.sqrt(case.shape.head_size), sink
    scale = evaluate_tensor(attention.scale, env)
    return (float(scale) if scale.dim() == 0 else scale.to(case.dtype)), sink


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
