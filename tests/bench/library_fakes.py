"""Attention libraries that are not installed: their documented signatures and layouts, computed densely."""

import math
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


def install(monkeypatch, name, **members):
    """Put a module into `sys.modules`, with its parents."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        if path not in sys.modules or not isinstance(sys.modules[path], Fake):
            monkeypatch.setitem(sys.modules, path, Fake(path))
        if count > 1:
            setattr(sys.modules[".".join(parts[: count - 1])], parts[count - 1], sys.modules[path])
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


class Fake(ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__ = []


def dense(query, key, value, mask, scale, cap=None, bias=None):
    """Return the attention of (batch, position, head, size) tensors, all pairs at once."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    score = query @ key.transpose(2, 3) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if cap:
        score = cap * torch.tanh(score / cap)
    if bias is not None:
        score = score + bias
    score = score.masked_fill(~mask, -math.inf)
    return (torch.softmax(score, -1) @ value).transpose(1, 2)


def distances(length):
    at = torch.arange(length)
    return at[:, None] - at[None, :]


def reach(length, causal, window):
    """Return FlashAttention's mask: `window` keys to both sides, -1 for all."""
    away = distances(length)
    mask = torch.ones(length, length, dtype=torch.bool)
    if causal:
        mask &= away >= 0
    left, right = window
    mask &= (away <= left) if left >= 0 else mask
    mask &= (-away <= right) if right >= 0 else mask
    return mask


def each_document(query, key, value, starts, one):
    """Apply a function of (1, position, head, size) to every sequence of packed (position, head, size) tensors."""
    assert starts[0] == 0
    assert starts[-1] == len(query)
    parts = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts.append(one(*(tensor[None, begin:end] for tensor in (query, key, value)))[0])
    return torch.cat(parts)


# --- flash_attn -------------------------------------------------------------------------------------------------------


def alibi(query, slopes):
    if slopes is None:
        return None
    assert slopes.dtype == torch.float32
    assert slopes.shape == (query.shape[2],)
    return -slopes[:, None, None] * distances(query.shape[1]).abs()


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False,
):  # fmt: skip
    assert q.dim() == 4
    assert all(tensor.is_contiguous() for tensor in (q, k, v)), "laid out by position"
    assert isinstance(softcap, float)
    bias = alibi(q, alibi_slopes)
    return dense(q, k, v, reach(q.shape[1], causal, window_size), softmax_scale, softcap, bias)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    assert q.dim() == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())

    def one(query, key, value):
        bias = alibi(query, alibi_slopes)
        return dense(query, key, value, reach(query.shape[1], causal, window_size), softmax_scale, softcap, bias)

    return each_document(q, k, v, cu_seqlens_q, one)


# --- xformers ---------------------------------------------------------------------------------------------------------


class LowerTriangularMask:
    def mask(self, length):
        return distances(length) >= 0


@dataclass
class LocalAttentionFromBottomRightMask:
    window_left: int
    window_right: int

    def mask(self, length):
        return reach(length, False, (self.window_left, self.window_right))


@dataclass
class BlockDiagonalMask:
    q_seqlen: list
    causal: bool = False
    window: int | None = None

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        assert all(type(count) is int for count in q_seqlen)
        return cls(q_seqlen)

    def make_causal(self):
        return BlockDiagonalMask(self.q_seqlen, True)

    def make_local_attention(self, window_size):
        assert self.causal
        return BlockDiagonalMask(self.q_seqlen, True, window_size)

    def mask(self, length):
        assert sum(self.q_seqlen) == length
        blocks = [torch.ones(count, count, dtype=torch.bool) for count in self.q_seqlen]
        mask = torch.block_diag(*blocks).bool()
        mask &= (distances(length) >= 0) if self.causal else mask
        return mask & (distances(length) < self.window) if self.window else mask


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    if query.dim() == 5:  # (batch, position, key heads, group, size), keys expanded along the group
        assert key.shape == (*key.shape[:3], query.shape[3], key.shape[4])
        assert key.stride(3) == 0 == value.stride(3)
        grouped = query.shape
        query, key, value = query.flatten(2, 3), key[:, :, :, 0], value[:, :, :, 0]
    else:
        grouped = None
        assert query.shape[2] == key.shape[2]
    if isinstance(attn_bias, BlockDiagonalMask):
        assert query.shape[0] == 1
    length = query.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool) if attn_bias is None else attn_bias.mask(length)
    out = dense(query, key, value, mask, scale)
    return out if grouped is None else out.unflatten(2, grouped[2:4])


# --- natten -----------------------------------------------------------------------------------------------------------


def na1d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, **others):
    length = query.shape[1]
    assert query.dim() == 4
    assert not others
    assert kernel_size >= 2
    assert kernel_size * dilation <= length
    assert is_causal, "windows of both sides are not faked"
    away = distances(length)
    return dense(query, key, value, (away >= 0) & (away % dilation == 0) & (away // dilation < kernel_size), scale)


def na2d(query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, **others):
    assert query.dim() == 5
    assert not others
    assert (stride, dilation, is_causal) == (1, 1, False)
    height, width = query.shape[1:3]
    assert kernel_size % 2 == 1
    assert kernel_size <= min(height, width)
    near = [starts_at(size, kernel_size) for size in (height, width)]
    mask = (near[0][:, None, :, None] & near[1][None, :, None, :]).flatten(0, 1).flatten(1, 2)
    out = dense(*(tensor.flatten(1, 2) for tensor in (query, key, value)), mask, scale)
    return out.unflatten(1, (height, width))


def starts_at(size, kernel):
    """Return which of `size` places each sees: `kernel` of them, as near to its middle as the border allows."""
    begin = (torch.arange(size) - kernel // 2).clamp(0, size - kernel)
    at = torch.arange(size)
    return (at >= begin[:, None]) & (at < begin[:, None] + kernel)


# --- flashinfer -------------------------------------------------------------------------------------------------------


def single_prefill_with_kv_cache(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None,
    causal=False, kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None,
    window_left=-1, logits_soft_cap=None, rope_scale=None, rope_theta=None, backend="auto", return_lse=False,
):  # fmt: skip
    assert q.dim() == 3
    mask = reach(len(q), causal, (window_left, -1))
    return dense(q[None], k[None], v[None], mask, sm_scale, logits_soft_cap)[0]


class BatchPrefillWithRaggedKVCacheWrapper:
    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, backend="auto"):
        assert float_workspace_buffer.dtype == torch.uint8
        assert kv_layout == "NHD"

    def plan(
        self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo=None, custom_mask=None,
        packed_custom_mask=None, causal=False, pos_encoding_mode="NONE", use_fp16_qk_reduction=False, window_left=-1,
        logits_soft_cap=None, sm_scale=None, rope_scale=None, rope_theta=None, q_data_type="float16",
        kv_data_type=None,
    ):  # fmt: skip
        assert qo_indptr.dtype == kv_indptr.dtype == torch.int32
        self.planned = (qo_indptr, num_qo_heads, num_kv_heads, head_dim_qk, q_data_type)
        self.options = (causal, window_left, logits_soft_cap, sm_scale)

    def run(self, q, k, v):
        starts, heads, kv_heads, size, dtype = self.planned
        causal, left, cap, scale = self.options
        assert (q.shape[1:], k.shape[1:], q.dtype) == ((heads, size), (kv_heads, size), dtype)

        def one(query, key, value):
            return dense(query, key, value, reach(query.shape[1], causal, (left, -1)), scale, cap)

        return each_document(q, k, v, starts, one)


# --- fla --------------------------------------------------------------------------------------------------------------


def parallel_attn(q, k, v, g=None, scale=None, cu_seqlens=None, **others):
    assert not others

    def one(query, key, value):
        return dense(query, key, value, distances(query.shape[1]) >= 0, scale)

    if cu_seqlens is None:
        return one(q, k, v)
    assert q.shape[0] == 1
    assert cu_seqlens.dtype == torch.int64
    return each_document(q[0], k[0], v[0], cu_seqlens, one)[None]


def install_all(monkeypatch):
    """Install every library."""
    install(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    install(monkeypatch, "xformers.ops", memory_efficient_attention=memory_efficient_attention)
    install(
        monkeypatch, "xformers.ops.fmha.attn_bias", LowerTriangularMask=LowerTriangularMask,
        LocalAttentionFromBottomRightMask=LocalAttentionFromBottomRightMask, BlockDiagonalMask=BlockDiagonalMask,
    )  # fmt: skip
    install(monkeypatch, "natten", na1d=na1d, na2d=na2d)
    install(
        monkeypatch, "flashinfer", single_prefill_with_kv_cache=single_prefill_with_kv_cache,
        BatchPrefillWithRaggedKVCacheWrapper=BatchPrefillWithRaggedKVCacheWrapper,
    )  # fmt: skip
    install(monkeypatch, "fla.ops.attn.parallel", parallel_attn=parallel_attn)
