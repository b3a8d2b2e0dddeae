"""What a layer can keep of the tokens that it has seen, so that it projects each of them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import prod

from attnc.ir.matrices import LayerSizes, Matrix
from attnc.ir.nodes import SizeName
from attnc.ir.program import AlignKind, Attention
from attnc.ir.shortening import ends_at_last_key
from attnc.plan.kernel_plan import Form, Plan
from attnc.plan.latents import NAMES, LatentPlan
from attnc.plan.linear import lengths_read, read_of_one_call


class Kept(Enum):
    """What a layer keeps."""

    KEYS = "keys"
    """Keys and values, or their latents: more with every token."""
    SUMS = "sums"
    """The state of an attention of linear cost: the same number whatever the length."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What a layer keeps of the tokens so far.

    Attributes:
        key: sizes of what is kept of a token's key: heads and head size, or the rank of latents.
        value: the same of its value.
        refused_because: why nothing is kept.
        call_of: what rows depend on that is of one call alone, `M`, `N` or `r`, so that stretches are not the whole
            sequence; empty where they depend on none.
    """

    kept: Kept
    key: tuple[int, ...] = ()
    value: tuple[int, ...] = ()
    refused_because: str = ""
    call_of: str = ""

    @property
    def numbers(self) -> int:
        """Numbers that each token adds."""
        return prod(self.key) + prod(self.value) if self.kept is Kept.KEYS else 0


def plan_cache(
    matrices: tuple[Matrix, ...], sizes: LayerSizes, plan: Plan, latents: tuple[LatentPlan, ...]
) -> CachePlan:
    """Decide what a layer keeps.

    Args:
        matrices: of the layer.
        sizes: of the layer.
        plan: of its attention.
        latents: its low-rank keys and values.
    """
    reason = next(_reasons(matrices, plan), "")
    if reason:
        return CachePlan(Kept.NOTHING, refused_because=reason)
    if _carries_sums(plan):
        return CachePlan(Kept.SUMS)
    ranks = {one.name: (one.rank,) for one in latents if one.is_choice}
    key, value = (ranks.get(name, (sizes.kv_heads, sizes.head_size)) for name in NAMES)
    return CachePlan(Kept.KEYS, key, value, call_of=_call_of(plan.operation))


def _call_of(attention: Attention) -> str:
    """Return what an attention reads of one call alone, `M`, `N` or `r`; nothing where that is none of them."""
    if attention.feature is not None and attention.feature.form == "cosformer":
        return SizeName.KEYS.value
    normalize = attention.normalize
    stated = (attention.mask, attention.score, attention.scale, attention.weight, normalize.sink, normalize.bias)
    return read_of_one_call(expr for expr in stated if expr is not None)


def _carries_sums(plan: Plan) -> bool:
    """Tell whether the attention can go on from the sums over keys that it has seen."""
    if plan.linear is None or plan.linear.form is not Form.CHUNKED or lengths_read(plan.linear.weights, plan.operation):
        return False
    feature = plan.operation.feature
    return feature is None or feature.form != "cosformer"  # whose features depend on the number of all keys


def _reasons(matrices: tuple[Matrix, ...], plan: Plan) -> Iterator[str]:
    """Yield why a call cannot go on from an earlier one."""
    attention = plan.operation
    for matrix in matrices:
        structure = matrix.projection.structure
        if structure == "conv2d" or (structure == "conv" and (matrix.number("kernel"), matrix.stride) != (1, 1)):
            yield f"the kernels of `{matrix.name}` read tokens that an earlier call had; call with all tokens at once"
    if attention.align.kind is AlignKind.START:
        yield "`align start` puts the first query of each call at the first key; `align end` counts on"
    elif not ends_at_last_key(attention):
        yield "`align at` may put queries elsewhere than behind the keys of earlier calls; `align end` counts on"
    if attention.decompose is not None and attention.decompose.form == "nystrom":
        yield "`decompose nystrom` takes landmarks of all queries; call with all tokens at once"
