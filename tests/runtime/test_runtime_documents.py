"""Masks of equal ids: right for sorted ids, and for those that break the promise, on the CPU and in kernels."""

import pytest
import torch

import attnc

TEXT = """
attention packed {
    input doc: int[B, M] sorted
    mask causal and same(doc)
}
attention windowed {
    input doc: int[B, M] sorted
    mask causal and i - j < 40 and same(doc) or j < 2
}
attention apart {
    input doc: int[M] sorted
    mask doc[i] != doc[j]
}
"""
SIZES = [(1, 1), (65, 65), (100, 257), (257, 100)]


def ids(kind, batch, keys, seed=0):
    draw = torch.Generator().manual_seed(seed)
    found = torch.randint(-3, 4, (batch, keys), generator=draw)
    return found.sort(-1).values if kind == "sorted" else found


@pytest.fixture(scope="module")
def module():
    return attnc.loads(TEXT)


@pytest.mark.parametrize("target", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["sorted", "unsorted"])
@pytest.mark.parametrize("name", ["packed", "windowed", "apart"])
def test_ids_decide_which_keys_are_seen(module, name, kind, target, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", target)
    for seed, (queries, keys) in enumerate(SIZES[: 4 if target == "torch" else 2]):
        query = torch.randn(2, 4, queries, 16)
        key, value = torch.randn(2, 2, keys, 16), torch.randn(2, 2, keys, 16)
        doc = ids(kind, 1 if seed == 1 else 2, keys, seed)
        doc = doc[0] if name == "apart" else doc
        found, lse = getattr(module, name)(query, key, value, doc=doc, return_lse=True)
        tensors = (tensor.double() for tensor in (query, key, value))
        wanted, wanted_lse = getattr(module, f"{name}_reference")(*tensors, doc=doc, return_lse=True)
        torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(lse.double(), wanted_lse, atol=2e-5, rtol=1e-4)


def test_gradients_within_documents(module):
    tensors = [torch.randn(1, 2, 21, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    doc = ids("sorted", 1, 21)
    assert torch.autograd.gradcheck(lambda *given: module.packed(*given, doc=doc), tensors)


def test_documents_compile_as_one_graph(module):
    query, key, value = (torch.randn(1, 2, 70, 16) for _ in range(3))
    doc = ids("sorted", 1, 70)
    compiled = torch.compile(module.packed, fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value, doc=doc), module.packed(query, key, value, doc=doc))


def test_unsigned_and_narrow_ids(module):
    query, key, value = (torch.randn(1, 2, 70, 16) for _ in range(3))
    doc = ids("sorted", 1, 70) + 3
    wanted = module.packed(query, key, value, doc=doc)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        torch.testing.assert_close(module.packed(query, key, value, doc=doc.to(dtype)), wanted)


def test_checked_calls_hold_promises_against_the_values(module):
    query, key, value = (torch.randn(2, 2, 6, 8) for _ in range(3))
    doc = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 5, 5]])
    wanted = module.packed(query, key, value, doc=doc)
    with pytest.raises(ValueError, match=r"doc is declared sorted, but decreases from 1 to 0 after index \(1, 2\)"):
        module.packed(query, key, value, doc=doc, checked=True)
    with pytest.raises(ValueError, match="doc is declared sorted"):
        module.Packed()(query, key, value, doc=doc, checked=True)
    torch.testing.assert_close(wanted, module.packed_reference(query, key, value, doc=doc))
    found = module.packed(query, key, value, doc=doc.sort(-1).values, checked=True)
    torch.testing.assert_close(found, module.packed(query, key, value, doc=doc.sort(-1).values))


def test_an_input_may_be_called_checked():
    odd = attnc.loads("attention odd { input checked: int[M] sorted\n mask checked[i] == checked[j] }")
    query, key, value = (torch.randn(1, 1, 4, 8) for _ in range(3))
    assert odd.odd(query, key, value, checked=torch.tensor([0, 0, 1, 1])).shape == (1, 1, 4, 8)
