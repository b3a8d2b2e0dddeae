"""Summaries of ids on tensors, held against those in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnc.algebra.summaries import SUMMARIES
from attnc.algebra.summaries import summarize as summarize_list
from attnc.runtime.summaries import ids_from_cu_seqlens, summarize, with_summaries


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@given(ids=st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), min_size=1, max_size=3))
def test_tensors_are_summarised_as_lists_are(dtype, ids):
    for kind in SUMMARIES:
        found = summarize(torch.tensor(ids, dtype=dtype), kind)
        assert found.dtype is torch.int32
        assert found.tolist() == [summarize_list(line)[kind] for line in ids]


def test_far_apart_ids():
    ids = torch.tensor([[-(2**62), -3, 0, 2**62]])
    assert summarize(ids, "start").tolist() == [[0, 1, 2, 3]]
    assert summarize(ids, "stop").tolist() == [[1, 2, 3, 4]]


def test_strides_and_no_keys():
    ids = torch.tensor([[0, 9, 0, 9, 1, 9]])[:, ::2]
    assert summarize(ids, "stop").tolist() == [[2, 2, 3]]
    assert summarize(ids[:, :0], "stop").shape == (1, 0)


def test_summaries_follow_the_inputs():
    scalar, ids = torch.tensor(3), torch.tensor([[0, 0, 1]])
    found = with_summaries((scalar, ids), (("doc.start", 1, "start"),))
    assert found[:2] == (scalar, ids)
    assert found[2].tolist() == [[0, 0, 2]]


def test_ids_of_packed_sequences():
    found = ids_from_cu_seqlens(torch.tensor([0, 2, 2, 5]), 7)
    assert found.tolist() == [[0, 0, 2, 2, 2, 3, 3]]
    assert found.dtype is torch.int32
    assert ids_from_cu_seqlens(torch.tensor([0, 3], dtype=torch.int32), 3).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([0, 1], TypeError, "cu_seqlens is list, expected a tensor of integers"),
        (torch.zeros(2), TypeError, "cu_seqlens is torch.float32, expected a tensor of integers"),
        (torch.zeros(1, 2, dtype=torch.int64), ValueError, r"cu_seqlens has shape \(1, 2\)"),
    ],
)
def test_wrong_cu_seqlens(given, kind, message):
    with pytest.raises(kind, match=message):
        ids_from_cu_seqlens(given, 3)
