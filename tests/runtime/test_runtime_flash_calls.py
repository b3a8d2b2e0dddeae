"""Equal rectangles at any equal distances are one call of the flash operator, however its tensors lie in memory."""

import pytest
import torch

import attnc
from attnc.runtime import calls, costs, cpu_flash
from attnc.runtime.bands import FULL, Band, bands_in_step

TEXT = """
attention packed {
    input doc: int[B, M] sorted
    mask causal and same(doc)
}
attention windowed {
    mask causal and (i - j < 40 or sinks(2))
}
attention blocks {
    mask i // 50 == j // 50
}
attention sloped {
    mask causal
    score s - 0.1 * (h + 1) * (i - j)
}
"""


@pytest.fixture(scope="module")
def module():
    return attnc.loads(TEXT)


@pytest.fixture
def shapes(monkeypatch):
    """Return a list that gets the shape of the queries and keys of each call of the operator."""
    found = []
    attend = cpu_flash._attend

    def record(query, key, *more, **named):
        found.append((tuple(query.shape), tuple(key.shape)))
        return attend(query, key, *more, **named)

    monkeypatch.setattr(cpu_flash, "_attend", record)
    return found


def tensors(batch, heads, kv_heads, length, layout="plain"):
    """Return query, key and value, in memory as `[B, H, N, D]` or as projections give them."""
    found = []
    for number in (heads, kv_heads, kv_heads):
        if layout == "plain":
            found.append(torch.randn(batch, number, length, 16))
        elif layout == "rows outside":
            found.append(torch.randn(batch, length, number, 16).transpose(1, 2))
        else:
            found.append(torch.randn(1, number, length, 16).expand(batch, -1, -1, -1))
    return found


def check(module, name, given, **inputs):
    """Compare output and gradients with those of the reference in float64."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    double = [tensor.detach().double().requires_grad_() for tensor in given]
    out = getattr(module, name)(*leaves, **inputs)
    wanted = getattr(module, f"{name}_reference")(*double, **inputs)
    torch.testing.assert_close(out.double(), wanted, atol=2e-5, rtol=1e-4)
    upstream = torch.randn(out.shape)
    grads = torch.autograd.grad(out, leaves, upstream)
    for one, right in zip(grads, torch.autograd.grad(wanted, double, upstream.double()), strict=True):
        torch.testing.assert_close(one.double(), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["plain", "rows outside", "expanded"])
@pytest.mark.parametrize("heads", [(1, 2, 2), (3, 4, 2), (3, 4, 1), (2, 2, 1)])
@pytest.mark.parametrize("name", ["packed", "windowed", "blocks"])
def test_any_layout_of_entries_and_heads(module, name, heads, layout):
    given = tensors(*heads, 203, layout)
    doc = torch.arange(203)[None] // 61 + torch.tensor([[0], [0], [7]])[: heads[0]] * (torch.arange(203) > 100)
    check(module, name, given, **({"doc": doc} if name == "packed" else {}))


def test_equal_documents_are_computed_together(module, shapes, monkeypatch):
    monkeypatch.setattr(costs, "CALL", 0.0)
    monkeypatch.setattr("attnc.runtime.parts._SCHEDULES", calls.Store(8))
    given = tensors(1, 2, 2, 600)
    doc = torch.arange(600)[None] // 100
    module.packed(*given, doc=doc)
    assert [query[1] for query, _ in shapes] == [6, 6, 6, 5, 1], shapes  # no keys beside the last ones fill a vector
    assert all(key[2] <= 112 for _, key in shapes), shapes
    assert sum(query[1] * query[2] for query, _ in shapes) == 600
    check(module, "packed", given, doc=doc)


def test_blocks_that_no_power_of_two_divides_are_full_rectangles(module, shapes):
    given = tensors(1, 2, 2, 400)
    module.blocks(*given)
    assert shapes == [((2, 8, 50, 16), (2, 8, 50, 16))]
    check(module, "blocks", given)


def test_ragged_documents_are_cut_where_they_begin(module, shapes, monkeypatch):
    monkeypatch.setattr(costs, "CALL", 0.0)
    monkeypatch.setattr("attnc.runtime.parts._SCHEDULES", calls.Store(8))
    given = tensors(1, 2, 2, 300)
    starts = [0, 41, 130, 133, 290]
    doc = torch.bucketize(torch.arange(300), torch.tensor(starts[1:]), right=True)[None]
    module.packed(*given, doc=doc)
    area = sum(query[1] * query[2] * key[2] for query, key in shapes)
    lengths = [stop - start for start, stop in zip(starts, [*starts[1:], 300], strict=True)]
    assert area < 1.7 * sum(length * (length + 1) / 2 for length in lengths)
    check(module, "packed", given, doc=doc)


def test_masks_follow_the_data_even_where_it_changes_in_place(module):
    given = tensors(2, 2, 2, 150)
    doc = torch.zeros(2, 150, dtype=torch.int64)
    for start in (0, 50, 75, 51):
        doc[:, start:] += 1
        doc[1, 140:] += 1
        for _ in range(2):
            out = module.packed(*given, doc=doc)
            torch.testing.assert_close(out, module.packed_reference(*given, doc=doc), atol=2e-5, rtol=1e-4)


def test_what_is_remembered_is_not_made_again(module, monkeypatch):
    given = tensors(1, 2, 2, 150)
    doc = torch.arange(150)[None] // 70
    wanted = module.packed(*given, doc=doc)
    for name in ("attnc.runtime.parts.choose_schedules", "attnc.runtime.cpu_flash._make_mask"):
        monkeypatch.setattr(name, None)
    monkeypatch.setattr("attnc.runtime.blocks.summarize_inputs", None)
    torch.testing.assert_close(module.packed(*given, doc=doc.clone()), wanted)


def test_short_first_slabs_are_merged_where_calls_are_dear(module, shapes, monkeypatch):
    given, called = tensors(1, 2, 2, 1024), []
    for call in (0.0, 1e6):
        monkeypatch.setattr(costs, "CALL", call)
        monkeypatch.setattr("attnc.runtime.parts._SCHEDULES", calls.Store(8))
        shapes.clear()
        check(module, "windowed", given)
        called.append(len(shapes))
    assert called[0] > called[1] > 0


def test_bands_take_turns_where_their_blocks_lie_side_by_side():
    def band(row, rows, count=4, step=100, key_step=100):
        return Band(row, rows, 0, ((20, FULL),), count, step, key_step)

    one, two, other, far = band(0, 32), band(32, 68), band(0, 32, step=50, key_step=50), band(100, 32)
    assert list(bands_in_step([one, two, other])) == [(one, two), (other,)]
    assert list(bands_in_step([one, far])) == [(one,), (far,)]  # block 1 of the one is block 0 of the other
    still = [band(0, 32, key_step=0), band(32, 68, key_step=0)]
    assert list(bands_in_step(still)) == [(still[0],), (still[1],)]


def test_a_store_lets_go_of_what_was_not_used_for_longest():
    store = calls.Store(10)
    for name in "abc":
        store.put(name, name.upper(), 3)
    assert store.get("a") == "A"
    store.put("d", "D", 3)
    assert [store.get(name) for name in "abcd"] == ["A", None, "C", "D"]
    store.put("a", "long", 9)
    assert [store.get(name) for name in "abcd"] == ["long", None, None, None]
    store.put("e", "too long", 11)
    assert [store.get(name) for name in "ae"] == [None, None]


@pytest.mark.parametrize("layout", ["plain", "rows outside", "expanded"])
@pytest.mark.parametrize("heads", [(1, 4, 2), (3, 4, 1), (2, 6, 3), (1, 4, 1)])
@pytest.mark.parametrize("name", ["packed", "windowed", "blocks", "sloped"])
def test_one_row_of_several_heads(module, shapes, name, heads, layout):
    """The heads that share keys are the rows of a call, where each has one row."""
    query, key, value = tensors(*heads, 203, layout)
    doc = torch.arange(203)[None] // 61 + torch.tensor([[0], [0], [7]])[: heads[0]] * (torch.arange(203) > 100)
    check(module, name, (query[:, :, :1], key, value), **({"doc": doc} if name == "packed" else {}))
    assert shapes
    joined = 1 in (heads[0], heads[2]) or (layout == "plain" and name != "sloped")  # whose key heads have biases
    if joined and name != "packed":  # whose entries have different keys
        assert {shape[:3] for shape, _ in shapes} == {(heads[0] * heads[2], 1, heads[1] // heads[2])}
        assert {shape[1] for _, shape in shapes} == {1}


def test_threads_are_not_left_without_heads(module, shapes, monkeypatch):
    query, key, value = tensors(1, 32, 1, 203)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    module.windowed(query[:, :, :1], key, value)
    assert {shape[:3] for shape, _ in shapes} == {(1, 32, 1)}
    shapes.clear()
    module.windowed(query[:, :, :1].expand(3, -1, -1, -1), key.expand(3, -1, -1, -1), value.expand(3, -1, -1, -1))
    assert {shape[:3] for shape, _ in shapes} == {(3, 1, 32)}
