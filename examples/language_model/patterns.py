"""The attentions that are trained: compiled patterns, and PyTorch's attention with the mask of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional

import attnc
from language_model.mistakes import MistakeError

HERE = Path(__file__).parent.parent

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query, key and value (B, H, N, D) to the output of the same shape."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern at one length.

    Attributes:
        name: as the user calls it.
        attend: the compiled attention.
        pairs: allowed pairs of a query and a key, of one head.
        length: queries and keys.
        mask: gives the dense mask (1, 1, N, N), which is made only where somebody asks.
    """

    name: str
    attend: Attend
    pairs: int
    length: int
    mask: Callable[[], Tensor]

    @property
    def density(self) -> float:
        """Allowed pairs of all pairs."""
        return self.pairs / self.length**2

    def attention_flops(self, heads: int, head_size: int) -> int:
        """Count what the allowed pairs take, forward and backward, a multiply-add being two.

        Forward there are two products over the head size, of query and key and of weight and value. Backward there are
        five: the scores once more, and the gradients of weights, values, queries and keys.
        """
        return self.pairs * heads * (2 + 5) * 2 * head_size


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pattern stands, and which of its parameters is the window."""

    file: str
    attention: str
    window: str | None = None


SOURCES = {
    "dense": Source("gpt.attn", "gpt"),
    "streaming": Source("streaming.attn", "streaming", "window"),
    "dilated": Source("language_model/dilated_window.attn", "dilated_window", "window"),
}
"""The patterns by the names of the command line."""


def parse_names(text: str) -> list[str]:
    """Split `dense,streaming`.

    Raises:
        MistakeError: a pattern is not known, or none is named.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        what = f"there is no pattern `{unknown[0]}`" if unknown else "--patterns names no pattern"
        raise MistakeError(f"{what}; choose from {', '.join(SOURCES)}")
    return names


def load_pattern(name: str, length: int, window: int) -> Pattern:
    """Compile one of `SOURCES` and count its pairs, which takes no mask."""
    source = SOURCES[name]
    file = HERE / source.file
    params = {source.window: window} if source.window else {}
    module = attnc.load(file, **params)
    (explained,) = attnc.explain(file, params, length=length)
    return Pattern(
        name=name,
        attend=getattr(module, source.attention),
        pairs=int(explained["pairs"]),
        length=length,
        mask=partial(getattr(module, f"{source.attention}_mask"), length, length),
    )


def torch_attend(pattern: Pattern) -> tuple[str, Attend]:
    """Return PyTorch's attention for a pattern and what to call it: with its flag where that says the same as the mask.

    The flag spares PyTorch the pairs above the diagonal, so that it is met at its best.
    """
    mask = pattern.mask()
    if bool((mask == mask.new_ones(mask.shape).tril()).all()):
        return "sdpa, causal", partial(functional.scaled_dot_product_attention, is_causal=True)
    return "sdpa, mask", partial(functional.scaled_dot_product_attention, attn_mask=mask)
