"""Random functions of FlexAttention against the patterns that they are traced to."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

import attnc
from attnc.checking import check_source
from attnc.reference import dense_mask
from attnc.source import SourceFile

ROWS = torch.tensor([3, 0, 2, 2, 5, 1, 0, 7, 7, 4, 6])
GRID = torch.arange(15).reshape(3, 5) * 7 % 11


def ints():
    positions = st.sampled_from(
        [lambda b, h, q, kv: b, lambda b, h, q, kv: h, lambda b, h, q, kv: q, lambda b, h, q, kv: kv]
    )
    constants = st.integers(-9, 9).map(lambda c: lambda b, h, q, kv: torch.tensor(c))
    return st.recursive(positions | constants, grow_ints, max_leaves=6)


def grow_ints(inner):
    nonzero = st.integers(-6, 6).filter(bool)
    natural = st.integers(0, 40)
    return st.one_of(
        st.builds(lambda x, y: lambda *at: x(*at) + y(*at), inner, inner),
        st.builds(lambda x, y: lambda *at: x(*at) - 2 * y(*at), inner, inner),
        st.builds(lambda x, y: lambda *at: x(*at) * y(*at), inner, inner),
        st.builds(lambda x, c: lambda *at: x(*at) // c, inner, nonzero),
        st.builds(lambda x, c: lambda *at: x(*at) % c, inner, nonzero),
        st.builds(lambda x, c: lambda *at: torch.div(x(*at), c, rounding_mode="trunc"), inner, nonzero),
        st.builds(lambda x, c: lambda *at: torch.fmod(x(*at), c), inner, nonzero),
        st.builds(lambda x, c: lambda *at: x(*at) & c, inner, st.integers(-9, 99)),
        st.builds(lambda x, c: lambda *at: (x(*at) | c) ^ 5, inner, st.integers(-9, 99)),
        st.builds(lambda x, c: lambda *at: (x(*at) >> (c % 5)) << 1, inner, natural),
        st.builds(lambda x, c: lambda *at: x(*at).clamp(-c, c), inner, natural),
        st.builds(lambda x, y: lambda *at: torch.maximum(x(*at).abs(), -y(*at)), inner, inner),
        st.builds(lambda x: lambda *at: ROWS[x(*at) % 11], inner),
        st.builds(lambda x: lambda *at: ROWS[x(*at).clamp(-11, 10)], inner),
        st.builds(lambda x, y: lambda *at: GRID[x(*at) % 3][y(*at) % 5], inner, inner),
        st.builds(lambda x: lambda *at: torch.where(x(*at) > at[2], x(*at), at[3]), inner),
        st.builds(lambda x: lambda *at: (x(*at) / 3).to(torch.int64) + torch.floor(x(*at) / 4).int(), inner),
    )


def bools():
    comparisons = ["__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"]
    compared = st.builds(
        lambda x, y, op: lambda *at: getattr(x(*at), op)(y(*at)), ints(), ints(), st.sampled_from(comparisons)
    )
    return st.recursive(compared, grow_bools, max_leaves=4)


def grow_bools(inner):
    return st.one_of(
        st.builds(lambda x, y: lambda *at: x(*at) & y(*at), inner, inner),
        st.builds(lambda x, y: lambda *at: x(*at) | y(*at), inner, inner),
        st.builds(lambda x, y: lambda *at: torch.logical_xor(x(*at), ~y(*at)), inner, inner),
        st.builds(lambda x, y, z: lambda *at: torch.where(x(*at), y(*at), z(*at)), inner, inner, inner),
        st.builds(lambda x, y: lambda *at: x(*at).int() + y(*at) > 1, inner, inner),
    )


@settings(max_examples=40, deadline=None)
@given(mask=bools(), sizes=st.sampled_from([(11, 11), (5, 11), (11, 3), (1, 1)]))
def test_a_random_mask_is_the_mask(mask, sizes):
    queries, keys = sizes
    mod = lambda b, h, q_idx, kv_idx: mask(b, h, q_idx, kv_idx) & (b >= 0)  # noqa: E731 - that all depend on tensors
    text = attnc.from_flex(mod, B=2, H=2, N=queries, M=keys)
    (attention,) = check_source(SourceFile("<random>", text)).program.attentions
    got = dense_mask(attention, queries, keys, batch=2, heads=2, inputs=text.inputs)
    assert torch.equal(got, create_mask(mod, 2, 2, queries, keys, "cpu")), text
