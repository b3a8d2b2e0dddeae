"""A pass by PyTorch's FlashAttention and the others by kernels: outputs, log-sum-exps, gradients, and when it is done.

Where there is no GPU, a stand-in has the library's rules of alignment and of rows without keys.
"""

import pytest
import torch
from flash_stand_in import StandIn, choose_library
from patterns import module_of, program_in, tensors

from attnc.runtime import gpu_library, tuned
from attnc.runtime.gpu_library import library_label, library_name, window_backward, window_forward
from attnc.runtime.gpu_parts import part_of_call
from attnc.runtime.tuned import watch_kernels

TEXTS = {
    "window": "mask causal and (i - j < 70 or j < 5)\n decompose split(j < 5)",
    "causal": "mask causal or j < 66\n decompose split(j < 66)",
    "columns": "mask j < 66 or i == j\n decompose split(j < 66)",
    "rows": "mask i < 66 or i == j\n decompose split(i < 66)",
    "square": "mask i >= 3 and j >= 3 or i == j\n decompose split(i >= 3 and j >= 3)",
    "both_sides": "mask window(66) or globals(4)\n decompose split(i >= 4 and j >= 4)",
    "empty_rows": "mask causal and i - j < 70 and j >= 40 or i == 50 and j < 3\n decompose split(j >= 40)",
    "residues": "mask causal and (i - j < 70 or (i - j) % 16 == 0)\n decompose split(i - j < 70)",
    "key_runs": "mask causal and (i - j < 70 or j % 16 >= 14)\n decompose split(i - j < 70)",
    "query_runs": "mask causal and (i - j < 70 or i % 16 >= 14)\n decompose split(i - j < 70)",
}


def text_of(name):
    return f"attention {name} {{ {TEXTS[name]} }}"


@pytest.fixture
def library(monkeypatch):
    """Let the stand-in take the place of the library, and nothing be tuned."""
    stand_in = StandIn()
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(gpu_library, "_flash_forward", stand_in.forward)
    monkeypatch.setattr(gpu_library, "_flash_backward", stand_in.backward)
    monkeypatch.setattr(gpu_library, "runs_flash_attention", lambda device: True)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    return stand_in


def choose(name, *, backward):
    choose_library(program_in(text_of(name), name), backward=backward, part=True)


def all_of(name, made, function="", *, with_lse=False, **options):
    """Return the output, the log-sum-exp, and the gradients of query, key and value."""
    call = getattr(module_of(text_of(name)), name + function)
    out, lse = call(*made, return_lse=True, **options)
    draw = torch.Generator().manual_seed(2)
    loss = (out * torch.randn(out.shape, generator=draw).to(out.dtype)).sum()
    if with_lse:
        loss = loss + torch.where(lse.isfinite(), lse, 0.0).to(out.dtype).sum()
    return [out, lse, *torch.autograd.grad(loss, made)]


def assert_right(found, name, made, **options):
    wide = [tensor.detach().double().requires_grad_() for tensor in made]
    for one, exact in zip(found, all_of(name, wide, "_reference", **options), strict=True):
        torch.testing.assert_close(one.double(), exact.double(), rtol=1e-2, atol=1e-2)


def half(length, heads=2, groups=1, **more):
    return tensors(**({"B": 1, "H": heads, "G": groups, "N": length, "M": length, "dtype": torch.float16} | more))


@pytest.mark.parametrize(("name", "length"), [("window", 72), ("columns", 40), ("empty_rows", 65), ("query_runs", 33)])
def test_a_part_by_the_library_is_the_same_attention(name, length, library):
    made = half(length)
    choose(name, backward=False)
    assert_right(all_of(name, made), name, made)
    assert library.calls == ["forward"]
    choose(name, backward=True)
    library.calls.clear()
    assert_right(all_of(name, made, scale=0.4), name, made, scale=0.4)
    assert library.calls == ["forward", "backward"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("given", [(63, 2, 2), (67, 4, 2), (129, 1, 1), (257, 4, 1)], ids=str)
def test_parts_of_many_sizes(name, given, library):
    made = half(*given)
    for backward in (False, True):
        choose(name, backward=backward)
    assert_right(all_of(name, made), name, made)
    program = program_in(text_of(name), name)
    has_part = given[0] > max(program.part.rows[0], program.part.keys[0])
    assert library.calls == ["forward", "backward"] * has_part


@pytest.mark.parametrize("name", [pytest.param("window", marks=pytest.mark.slow), "query_runs"])
def test_a_call_is_recorded_and_repeated_with_the_library(name, library):
    for backward in (False, True):
        choose(name, backward=backward)
    made = half(80)
    first, *others = [all_of(name, made) for _ in range(4)]
    assert library.calls == ["forward", "backward"] * 2  # seen, recorded; what is repeated is not Python's
    assert all(torch.equal(one, two) for other in others for one, two in zip(first, other, strict=True))
    fresh = [torch.randn_like(tensor).requires_grad_() for tensor in made]
    assert_right(all_of(name, fresh), name, fresh)


def test_any_strides_will_do_whose_last_is_1(library):
    for backward in (False, True):
        choose("window", backward=backward)
    made = [
        torch.randn(2, 90, heads, 16, dtype=torch.float16).transpose(1, 2).detach().requires_grad_()
        for heads in (4, 2, 2)
    ]
    assert_right(all_of("window", made), "window", made)
    assert library.calls == ["forward", "backward"]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"M": 130}, {}),
        ({"N": 5, "M": 5}, {}),
        ({"N": 1, "M": 1}, {}),
        ({"dtype": torch.float32}, {}),
        ({"D": 12, "E": 12}, {}),
        ({"E": 32}, {}),
        ({}, {"scale": -0.5}),
    ],
    ids=str,
)
def test_what_the_library_does_not_do_is_left_to_kernels(given, options, library):
    for backward in (False, True):
        choose("window", backward=backward)
    made = half(80, **given)
    assert_right(all_of("window", made, **options), "window", made, **options)
    assert library.calls == []


def test_dropout_and_gradients_of_the_log_sum_exp_are_left_to_kernels(library):
    for backward in (False, True):
        choose("window", backward=backward)
    made = half(80)
    module_of(text_of("window")).window(*made, dropout_p=0.5, seed=1).sum().backward()
    assert library.calls == []
    assert_right(all_of("window", made, with_lse=True), "window", made, with_lse=True)
    assert library.calls == ["forward"]


def test_nothing_is_done_in_this_way_that_was_not_measured(library):
    made = half(80)
    program = program_in(text_of("window"), "window")
    with watch_kernels() as asked:
        assert_right(all_of("window", made), "window", made)
    names = [library_name(program, backward=backward, part=True) for backward in (False, True)]
    assert [one for one in asked if ", library" in one] == names  # tuning learns what could be
    assert [library_label(name) for name in names] == ["pass 2", "pass 2"]
    assert library.calls == []
    choose_library(program, backward=False)  # of the whole attention, which has no such call
    all_of("window", made)
    assert library.calls == []


def test_short_sequences_have_passes_of_their_own(library):
    program = program_in("attention a { mask causal and (i - j < 128 or (i - j) % 128 == 0) }", "a")
    assert program.part.number == 1
    assert program.at(100, 100).part is None
    choose_library(program, backward=False, part=True)
    long = [torch.empty(1, 2, 900, 16, dtype=torch.float16)] * 3
    assert part_of_call(program.at(900, 900), long, None, dropout=False, backward=False) is program.part


@pytest.mark.parametrize(
    "more",
    ["score s + alibi", "score softcap(s, 3.0)", "scale 0.5", "normalize softmax(sink = 1.0)", "weight 0.5 + j",
     "align at(3)", "normalize sigmoid"],
)  # fmt: skip
def test_parts_are_of_plain_softmax_alone(more):
    assert program_in(text_of("window"), "window").part is not None
    text = text_of("window").replace("mask", f"{more}\n mask", 1)
    assert program_in(text, "window").part is None


@pytest.mark.parametrize("name", ["window", "columns"])
def test_the_installed_operators_take_these_arguments(name):
    """On tensors without values: PyTorch holds arguments against the schema, and says which shapes come out."""
    part = program_in(text_of(name), name).part
    query = torch.empty(2, 4, 100, 64, dtype=torch.float16, device="meta")
    key = value = torch.empty(2, 2, 100, 64, dtype=torch.float16, device="meta")
    rows = slice(*part.rows)
    keys = slice(*part.keys)
    own = query[:, :, rows], key[:, :, keys], value[:, :, keys]
    out, lse = window_forward(part.window, own, 0.3)
    assert out.shape == own[0].shape
    grads = window_backward(part.window, torch.empty_like(out), own, (out, lse), None)
    assert [grad.shape for grad in grads] == [one.shape for one in own]
