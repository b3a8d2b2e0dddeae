"""Nothing of N x M is ever made, whatever the pattern."""

import pytest
import torch
from patterns import LargestStorage, module_of


def largest_storage(text, name, length, heads=1, backward=False):
    from attnc.runtime.cpu import cpu_backward, cpu_forward

    program = getattr(module_of(text), f"_{name}_program")
    query, key, value = (torch.randn(1, heads, length, 16) for _ in range(3))
    with LargestStorage() as seen:
        out, lse = cpu_forward(program, query, key, value, [], None)
        if backward:
            cpu_backward(program, (torch.ones_like(out), None), (query, key, value, []), (out, lse), None, [])
    return seen.largest


@pytest.mark.parametrize("backward", [False, True])
def test_a_window_takes_memory_linear_in_the_length(backward):
    text = "attention narrow { mask causal and i - j < 64 }"
    largest = largest_storage(text, "narrow", 32768, backward=backward)
    assert largest <= 32768 * 16 * 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("capped", "attention capped { mask causal and i - j < 64\n score softcap(s, 5.0) }"),
        ("sunk", "attention sunk { mask causal and (i - j < 64 or j < 4) }"),
        ("spaced", "attention spaced { mask causal and i - j < 256 and (i + j) % 3 != 1 }"),
        ("gated", "attention gated { mask causal and i - j < 64\n normalize sigmoid(bias = -3.0) }"),
    ],
)
def test_no_pattern_makes_a_square(name, text):
    assert largest_storage(text, name, 16384) <= 1 << 22


def test_full_attention_makes_no_square():
    text = "attention all_pairs { score softcap(s, 5.0) }"
    assert largest_storage(text, "all_pairs", 4096, heads=2, backward=True) <= 1 << 21
