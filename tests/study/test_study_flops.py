"""Operations and pairs against numbers counted by hand, by torch, and pair by pair."""

from fractions import Fraction

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attnc.compiler import plan_source
from attnc.source import SourceFile
from attnc.study.contenders import PATTERNS, contender, planned_patterns, shipped
from attnc.study.flops import dense_pairs, matrix_elements, step_flops
from attnc.study.listops import listops
from attnc.study.models import Size
from attnc.study.recall import recall

SIZE = Size(8, 2, 2)
CAUSAL, TWO_SIDED = recall(24, 2, 4, 4, 4, 1.0), listops(24, 2, 3, 0.2)

MEANINGS = {
    "dense": lambda i, j: True,
    "window": lambda i, j: abs(i - j) < 5,
    "streaming": lambda i, j: abs(i - j) < 5 or i < 4 or j < 4,
    "dilated_window": lambda i, j: abs(i - j) < 5 or (abs(i - j) < 20 and (i - j) % 4 == 0),
    "strided": lambda i, j: abs(i - j) < 5 or (i - j) % 5 == 0,
}


@pytest.mark.parametrize("task", [CAUSAL, TWO_SIDED], ids=["causal", "two-sided"])
@pytest.mark.parametrize("name", PATTERNS)
def test_pairs_of_shipped_patterns_are_what_they_say(name, task):
    places = range(task.length)
    allowed = sum(MEANINGS[name](i, j) and (j <= i or not task.causal) for i in places for j in places)
    assert shipped(name, task, SIZE, 5).pairs == allowed


def test_pairs_that_differ_between_heads_are_counted_as_their_mean():
    text = "attention mixed { mask causal and (h == 0 or i - j < 3) }"
    (pattern,) = planned_patterns(plan_source(SourceFile("mixed.attn", text)))
    narrow = sum(min(i + 1, 3) for i in range(24))
    assert contender(pattern, CAUSAL, SIZE, "mixed").pairs == Fraction(24 * 25 // 2 + narrow, 2)


def test_dense_pairs():
    assert dense_pairs(5, causal=True) == 15
    assert dense_pairs(5, causal=False) == 25


def test_a_step_counted_by_hand():
    model = shipped("torch", CAUSAL, SIZE, 5).make(0)
    # two layers of 3 x 8 x 8 + 8 x 8 + 2 x 8 x 16, and a head of 8 x 4
    assert matrix_elements(model) == 2 * (192 + 64 + 256) + 32
    # 6 operations for each of 3 x 24 tokens and 1056 elements; 7 products of 2 x 4 operations for 300 pairs, in 4 heads
    assert step_flops(model, SIZE, Fraction(300), 24, 3) == 6 * 72 * 1056 + 7 * 2 * 4 * 300 * 4 * 3


@pytest.mark.parametrize("name", ["torch", "huggingface"])
def test_a_step_counted_by_torch(name):
    one = shipped(name, TWO_SIDED, SIZE, 5)
    if one.missing:
        pytest.skip(one.missing)
    model = one.make(0)
    tokens = torch.zeros(3, 24, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    attention = 7 * 2 * 4 * 24 * 24 * 4 * 3
    assert step_flops(model, SIZE, one.pairs, 24, 3) - attention == 6 * 72 * matrix_elements(model)
    # kernels that keep no N x M matrix compute the scores a second time: the seventh product, which this one spares
    assert counter.get_total_flops() == 6 * 72 * matrix_elements(model) + attention * 6 // 7


def test_what_a_pattern_learns_is_no_matrix():
    text = "attention biased { learned bias: float[H, 9] = 0.0\n score s + bias[h, clamp(i - j, -4, 4) + 4] }"
    (pattern,) = planned_patterns(plan_source(SourceFile("biased.attn", text)))
    model = contender(pattern, TWO_SIDED, SIZE, "biased").make(0)
    plain = shipped("dense", TWO_SIDED, SIZE, 5).make(0)
    assert matrix_elements(model) == matrix_elements(plain)
    learned = sum(one.numel() for one in model.parameters()) - sum(one.numel() for one in plain.parameters())
    assert learned == 2 * 2 * 9


def structured(weight, length, two_sided):
    """Return a model of two layers whose matrices all have a structure, and the pairs of its attention."""
    names = ("query", "key", "value", "output")
    text = f"attention a(all: bool = {str(two_sided).lower()}) {{ mask all or causal }}\n"
    text += f"layer b(width: int = 16) {{ heads 2; attend a; feedforward gelu(hidden = 32, {weight})\n"
    text += "".join(f"{name} {weight}\n" for name in names) + "}"
    (pattern,) = planned_patterns(plan_source(SourceFile("layer.attn", text)))
    one = contender(pattern, recall(length, 2, 4, 4, 4, 1.0), Size(16, 2, 2), "b")
    return one.make(0), one.pairs


@pytest.mark.parametrize("weight", ["dense", "low_rank(4)", "block_diagonal(4)", "monarch(4)", "monarch(2)"])
def test_products_with_structured_matrices_counted_by_torch(weight):
    model, pairs = structured(weight, 24, two_sided=False)
    x = torch.zeros(3, 24, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.layers.layers(x).sum().backward()
    elements = matrix_elements(model) - model.head.weight.numel()
    assert elements == sum(one.numel() for one in model.layers.layers.parameters())
    counts = counter.get_flop_counts()["Global"]  # the attention is one operator, neither mm nor bmm
    more = sum(counts.get(one, 0) for one in (torch.ops.aten.mm, torch.ops.aten.bmm)) - 6 * 72 * elements
    # some forms compute what lies between two factors once more on the way back, instead of keeping it
    first = sum(one.numel() for name, one in model.named_parameters() if name.endswith(".first"))
    assert more in (0, 2 * 72 * first)
    assert step_flops(model, Size(16, 2, 2), pairs, 24, 3) == 6 * 72 * matrix_elements(model) + 14 * 8 * 300 * 4 * 3


@pytest.mark.parametrize("weight", ["banded(3)", "masked(hash(i, j) % 4 == 0)"])
def test_of_sparse_matrices_the_free_parameters_count(weight):
    model, _ = structured(weight, 24, two_sided=False)
    free = sum(one.numel() for one in model.layers.layers.parameters())
    assert matrix_elements(model) == free + model.head.weight.numel()
    assert free < 0.5 * 2 * (4 * 256 + 2 * 512)


@pytest.mark.parametrize(("kernel", "keys"), [("conv(3, 2)", 13), ("conv2d(5, 3, 2)", 9)])
def test_convolutions_that_leave_positions_out(kernel, keys):
    text = f"attention a {{ }}\nlayer b(width: int = 16) {{ heads 2; attend a; key {kernel}; value {kernel} }}"
    (pattern,) = planned_patterns(plan_source(SourceFile("layer.attn", text)))
    task, size = listops(25, 2, 3, 0.2), Size(16, 1, 2)
    one = contender(pattern, task, size, "b")
    model = one.make(0)
    assert one.pairs == 25 * keys
    (layer,) = model.layers.layers
    assert layer.key(torch.zeros(1, 25, 16)).shape[1] == keys
    taps, stride = layer.key.kernel[0].numel(), 2 if kernel.startswith("conv(") else 4
    assert matrix_elements(model) == Fraction(2 * 16 * (16 + taps), stride) + 2 * 256 + model.head.weight.numel()
    assert isinstance(step_flops(model, size, one.pairs, 25, 3), int)
