"""What computes in the place of PyTorch's FlashAttention where there is no GPU: its operators' signatures and rules."""

import torch

from attnc.runtime.gpu_library import library_name
from attnc.runtime.tuned import LibraryCall, TunedTiles, use_tuned, versions_of_library


class StandIn:
    """Has the signatures of both operators; computes with the one for CPUs.

    Windows lie as they do there: around the diagonal through the last query and the last key; a bound that is no
    shorter than the keys is none; and a row without keys has a log-sum-exp of infinity.
    """

    def __init__(self):
        self.calls = []

    @staticmethod
    def laid_out(one, heads):
        return one.transpose(1, 2).float().repeat_interleave(heads // one.shape[2], 1)

    @staticmethod
    def mask(lengths, causal, left, right):
        left, right = -1 if left is None else left, 0 if causal else -1 if right is None else right
        left, right = (-1 if bound >= lengths[1] else bound for bound in (left, right))
        i, j = torch.arange(lengths[0])[:, None] + lengths[1] - lengths[0], torch.arange(lengths[1])[None, :]
        allowed = ((left < 0) | (i - j <= left)) & ((right < 0) | (j - i <= right))
        return torch.where(allowed, 0.0, -torch.inf)

    def forward(
        self, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *,
        scale=None, window_size_left=None, window_size_right=None,
    ):  # fmt: skip
        assert (cum_seq_q, cum_seq_k, dropout_p, return_debug_mask) == (None, None, 0.0, False)
        assert scale is None or scale >= 0
        self.calls.append("forward")
        heads = query.shape[2]
        given = [self.laid_out(one, heads) for one in (query, key, value)]
        mask = self.mask((max_q, max_k), is_causal, window_size_left, window_size_right)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given, attn_mask=mask, scale=scale)
        lse = torch.where((mask == -torch.inf).all(-1), torch.inf, lse)
        return out.to(query.dtype).transpose(1, 2).contiguous(), lse, torch.empty(2), torch.empty(()), torch.empty(0)

    def backward(
        self, grad_out, query, key, value, out, lse, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
    ):  # fmt: skip
        assert (cum_seq_q, cum_seq_k, dropout_p) == (None, None, 0.0)
        assert lse.is_contiguous()
        assert scale is None or scale >= 0
        self.calls.append("backward")
        heads, groups = query.shape[2], key.shape[2]
        given = [self.laid_out(one, heads) for one in (grad_out, query, key, value, out)]
        mask = self.mask((max_q, max_k), is_causal, window_size_left, window_size_right)
        library = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = list(library(*given, lse, 0.0, False, attn_mask=mask, scale=scale))
        for number in (1, 2):
            found[number] = found[number].unflatten(1, (groups, heads // groups)).sum(2)
        return [one.to(query.dtype).transpose(1, 2) for one in found]


def choose_library(program, *, backward, part=False, device="interpreter", versions=None):
    """Enter that the library was measured to be faster for a program, or for a part of it."""
    kernel = library_name(program, backward=backward, part=part)
    versions = versions or versions_of_library()
    use_tuned([TunedTiles(kernel, device, versions, "float16", 16, 16, 64, 64, LibraryCall())])
