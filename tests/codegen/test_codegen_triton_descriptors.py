"""Kernels that read keys and values through tensor descriptors, in Triton's interpreter; and which calls may."""

import threading
from pathlib import Path

import pytest
import torch
from kernel_harness import check_kernel, load_kernel, plan_text, render_kernel, sample_inputs, tensors

from attnc.runtime.launch import start_launch
from attnc.runtime.tensor_rows import is_describable
from attnc.runtime.tiles import Tiles, assume_target, choose_tiles

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
TILES = Tiles(query=64, key=64, warps=4, stages=1, descriptors=True)
STREAMING = "attention foo { mask causal and (i - j < 40 or sinks(3)) }"
PATTERNS = {
    "full": "attention foo { score s }",
    "gpt": "attention foo { mask causal }",
    "streaming": STREAMING,
    "globals": "attention foo { mask window(9) or globals(2) }",
    "strided": "attention foo { mask causal and (i - j < 8 or (i - j) % 8 == 0) }",
    "documents": "attention foo { input doc: int[B, M] sorted; mask causal and same(doc) }",
    "nothing": "attention foo { mask i < j and j < i }",
    "positions": "attention foo { mask causal; normalize none; score 0.1 * j }",
    "sigmoid": "attention foo { mask causal; normalize sigmoid(bias = -log(M)) }",
}


def described(query, key, value):
    """Return whether a launch on these tensors reads keys and values through descriptors."""
    out = query.new_empty(*query.shape[:3], value.shape[3])
    call = start_launch(query, key, value, out, None, scale=None, precision=None, tiles={}, kernel="", base_2=True)
    return call.tiles.descriptors


def check(text, query, key, value, *, expected=True, tiles=TILES):
    plan = plan_text(text)
    with assume_target("cpu", tiles):
        assert described(query, key, value) == expected
        return check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("lengths", [(1, 64), (63, 63), (100, 257)], ids=str)
def test_lengths(pattern, lengths):
    check(PATTERNS[pattern], *tensors(1, 1, 1, *lengths, 16))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (64, 65), (65, 130), (130, 65)], ids=str)
def test_more_lengths(pattern, lengths):
    test_lengths(pattern, lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(32, 32), (64, 64), (80, 80), (128, 128), (40, 16), (16, 200)], ids=str)
def test_head_sizes(sizes, dtype):
    check(STREAMING, *tensors(1, 1, 1, 100, 140, *sizes, dtype=dtype))


@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (6, 1)], ids=str)
def test_grouped_heads(heads):
    check("attention foo { mask causal; score s - exp2(-h) * (i - j) }", *tensors(2, *heads, 70, 90, 16))


@pytest.mark.parametrize("tiles", [(16, 16), (128, 32), (32, 128)], ids=str)
def test_tiles_of_any_shape(tiles):
    check(STREAMING, *tensors(1, 2, 1, 100, 257, 64), tiles=Tiles(*tiles, warps=4, stages=2, descriptors=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path):
    query, key, value = tensors(2, 2, 1, 100, 130, 32, 24)
    for plan in plan_text(path.read_text(), every=True):
        with assume_target("cpu", TILES):
            assert described(query, key, value)
            check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("text", ["mask causal", "mask causal and i - j < 9", "mask j % 3 == i % 3 or i < 8"])
def test_masked_pairs_never_matter(text, poison):
    query, key, value = tensors(1, 1, 1, 80, 80, 16, 40)
    value[0, 0, 40, 3] = poison
    value[0, 0, 41, 20:] = poison
    key[0, 0, 75] = poison
    check(f"attention foo {{ {text} }}", query, key, value)


def test_keys_past_a_length_may_hold_anything():
    query, key, value = tensors(2, 2, 1, 70, 90, 16)
    key[0, :, 37:] = float("nan")
    value[0, :, 37:] = float("inf")
    plan = plan_text("attention foo { input length: int[B]; mask j < length[b] }")
    with assume_target("cpu", TILES):
        out = check_kernel(plan, query, key, value, {"length": torch.tensor([37, 90])})
    assert out.isfinite().all()


def test_memory_past_the_last_key_is_not_read():
    query, key, value = tensors(1, 1, 1, 50, 50, 16)
    memory = torch.full((2, 1, 1, 80, 16), float("nan"))
    memory[0, ..., :50, :], memory[1, ..., :50, :] = key, value
    for text in PATTERNS["gpt"], PATTERNS["full"]:
        out = check(text, query, memory[0, ..., :50, :], memory[1, ..., :50, :])
        assert out.isfinite().all()


def test_strided_tensors():
    query, key, value = tensors(2, 2, 2, 70, 90, 16)
    rows_first = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)]
    check(STREAMING, *rows_first)
    fused = torch.cat([key, value], dim=-1)
    check(STREAMING, query, fused[..., :16], fused[..., 16:])
    check(STREAMING, query, key[:, :, ::2], value[:, :, 1::2])
    check(STREAMING, query, key[:, :1].expand(2, 2, 90, 16), value[:1].expand(2, 2, 90, 16))


def test_tensors_that_descriptors_cannot_describe_are_read_by_pointers():
    query, key, value = tensors(1, 2, 2, 70, 90, 18)
    check(STREAMING, query, key, value, expected=False)  # rows of 72 bytes
    wide = torch.randn(1, 2, 90, 33)
    query, key, value = tensors(1, 2, 2, 70, 90, 16)
    check(STREAMING, query, wide[..., 1:17], value, expected=False)
    check(STREAMING, query, key, wide[..., :16], expected=False)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_what_a_descriptor_can_describe(itemsize):
    dtype = {2: torch.float16, 4: torch.float32}[itemsize]
    step = 16 // itemsize
    memory = torch.empty(4, 4, 64, 64, dtype=dtype)
    assert is_describable(memory)
    assert is_describable(memory[..., step:])
    assert is_describable(memory[1:, 1:, 1:, : step + 1])
    assert is_describable(torch.empty(1, 1, 64, 64, dtype=dtype).as_strided((1, 1, 64, 64), (3, 5, 64, 1)))
    assert not is_describable(memory[..., 1:])
    assert not is_describable(memory.transpose(2, 3))
    assert not is_describable(torch.empty(2, 2, 64, step + 1, dtype=dtype))
    assert not is_describable(torch.empty(2, 2, 0, 64, dtype=dtype))
    assert not is_describable(memory[:, :, :1].expand(4, 4, 64, 64))
    unaligned = torch.empty(2 * 64 * (64 + step) + 1, dtype=dtype)[1:]
    assert not is_describable(unaligned.as_strided((1, 2, 64, 64), (0, 64 * 64, 64, 1)))
    assert not is_describable(unaligned.as_strided((2, 1, 64, 64), (64 * 64 + 1, 64, 64, 1), 0))


def test_too_many_programs_make_no_descriptors():
    query = torch.empty(1, 1, 1, 64, device="meta", dtype=torch.float16).expand(2**12, 2**10, 64, 64)
    key = torch.empty(2**12, 2**10, 64, 64, device="meta", dtype=torch.float16)
    with assume_target("cpu", TILES):
        assert not described(query, key, key)
        assert described(query[:16], key[:16], key[:16])


def test_the_first_tiles_that_a_call_allows_are_taken():
    table = {("sm_90", 2, 128): (TILES, Tiles(128, 32, warps=8, stages=2))}
    query = torch.empty(1, 1, 1, 128, dtype=torch.float16)
    with assume_target("sm_90"):
        assert choose_tiles(table, query, 128, 4096, descriptors=True) == TILES
        assert choose_tiles(table, query, 128, 4096) == Tiles(128, 32, warps=8, stages=2)
        assert choose_tiles(table, query, 128, 16, descriptors=True) == Tiles(16, 32, warps=4, stages=2)


def test_second_walk_reads_by_pointers():
    text = render_kernel(plan_text(STREAMING))
    loops, walk = text.split("if is_spoiled(acc)")
    assert "read_tile(keys" in loops
    assert "read_tile(values" in loops
    assert "DESCRIPTORS" not in walk[: walk.index("_foo_tiles = ")]


def test_kernels_without_loops_make_no_sources():
    assert "tile_source" not in render_kernel(plan_text(PATTERNS["nothing"]))
    text = render_kernel(plan_text(PATTERNS["positions"]))
    assert "keys = " not in text
    assert "values = tile_source(" in text


def test_kernels_run_in_any_thread():
    plan = plan_text(STREAMING)
    module = load_kernel(plan)
    query, key, value = tensors(1, 1, 1, 40, 40, 16)
    failures = []

    def call():
        try:
            with assume_target("cpu", TILES):
                check_kernel(plan, query, key, value, module=module)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert not failures
