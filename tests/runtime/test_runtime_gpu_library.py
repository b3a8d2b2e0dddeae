"""Windows by PyTorch's FlashAttention: when it is called, with which arguments, and that either side may do a pass.

Where there is no GPU, PyTorch's flash operator for CPUs stands in for it, with a mask in the place of a window.
"""

from itertools import product

import flash_stand_in
import pytest
import torch
from flash_stand_in import StandIn
from patterns import module_of, program_in, tensors

from attnc.runtime import gpu_library, tuned
from attnc.runtime.gpu_library import has_windows, library_name, suits_flash_attention, window_backward, window_forward
from attnc.runtime.tuned import watch_kernels

TEXTS = {
    "window": "attention window {{ mask causal and i - j < 9 }}",
    "band": "attention band {{ mask window(7) }}",
    "lopsided": "attention lopsided {{ mask i - j <= 3 and j - i <= 11 }}",
    "ahead": "attention ahead {{ mask j >= i - 5 }}",
    "causal": "attention causal {{ mask causal }}",
    "full": "attention full {{ }}",
}


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


def program_of(name):
    return program_in(TEXTS[name].format(), name)


def choose_library(name, **options):
    flash_stand_in.choose_library(program_of(name), **options)


def both_ways(name, made, function="", **options):
    for tensor in made:
        tensor.grad = None
    call = getattr(module_of(TEXTS[name].format()), name + function)
    out = call(*made, **options)
    draw = torch.Generator().manual_seed(2)
    upstream = torch.randn(out.shape, generator=draw).to(out.dtype)
    return [out, *torch.autograd.grad(out, made, upstream)]


def assert_close(found, made, name, **options):
    wide = [tensor.detach().double().requires_grad_() for tensor in made]
    for one, exact in zip(found, both_ways(name, wide, "_reference", **options), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("name", "length"), [*product(TEXTS, (1, 20)), ("window", 65), ("band", 65)])
def test_either_side_may_compute_a_pass(name, length, library):
    made = tensors(B=1, H=4, G=2, N=length, M=length, dtype=torch.float16)
    assert_close(both_ways(name, made), made, name)
    assert library.calls == []  # nothing was measured
    for backward in (False, True):
        choose_library(name, backward=backward)
        library.calls.clear()
        for _ in range(3):  # seen, recorded, repeated
            assert_close(both_ways(name, made, scale=0.4), made, name, scale=0.4)
        assert library.calls == ["forward", "backward"][: 1 + backward] * 2  # what is repeated is not Python's
    found = both_ways(name, made)
    assert length == 1 or found[0].stride() == (length * 64, 16, 64, 1)
    found[0].add_(1.0)  # it is no view of anything


def test_replays_are_of_the_library(library):
    choose_library("window", backward=False)
    made = tensors(B=1, H=2, G=1, N=20, M=20, dtype=torch.float16, grad=False)
    call = module_of(TEXTS["window"].format()).window
    found = [call(*made) for _ in range(4)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"M": 24}, {}),
        ({"dtype": torch.float32}, {}),
        ({"D": 12, "E": 12}, {}),
        ({"E": 32}, {}),
        ({}, {"dropout_p": 0.5, "seed": 1}),
    ],
    ids=str,
)
def test_what_the_library_does_not_do_is_left_to_kernels(given, options, library):
    for backward in (False, True):
        choose_library("window", backward=backward)
    made = tensors(**({"B": 1, "H": 2, "G": 1, "N": 20, "M": 20, "dtype": torch.float16} | given))
    found = both_ways("window", made, **options)
    assert library.calls == []
    assert_close(found, made, "window", **options)


def test_gradients_of_the_log_sum_exp_are_left_to_kernels(library):
    for backward in (False, True):
        choose_library("band", backward=backward)
    made = tensors(B=1, H=2, G=1, N=20, M=20, dtype=torch.float16)
    module, results = module_of(TEXTS["band"].format()), []
    for function, given in ((module.band, made), (module.band_reference, [one.detach().double() for one in made])):
        given = [one.detach().requires_grad_() for one in given]
        out, lse = function(*given, return_lse=True)
        results.append([out, lse, *torch.autograd.grad(out.sum() + lse.sum(), given)])
    for one, exact in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), exact.double(), rtol=1e-2, atol=1e-2)
    assert library.calls == ["forward"]


@pytest.mark.parametrize("given", [{"device": "cpu"}, {"versions": "triton 0.1"}, {"device": "another"}], ids=str)
def test_only_what_was_measured_here_counts(given, library):
    """Entries for a whole target are ranked, never measured; a library is none of those that are written so."""
    choose_library("window", backward=False, **given)
    made = tensors(B=1, H=2, G=1, N=20, M=20, dtype=torch.float16, grad=False)
    module_of(TEXTS["window"].format()).window(*made)
    assert library.calls == (["forward"] if given == {"device": "cpu"} else [])


def test_tuning_learns_which_calls_a_library_could_do(library):
    made = tensors(B=1, H=2, G=1, N=20, M=20, dtype=torch.float16)
    with watch_kernels() as asked:
        both_ways("window", made)
    program = program_of("window")
    assert asked[0] == library_name(program, backward=False)
    assert library_name(program, backward=True) in asked
    assert len(asked) == 5
    with watch_kernels() as asked:
        module_of(TEXTS["window"].format()).window(*tensors(B=1, H=2, G=1, N=20, M=24, dtype=torch.float16))
    assert len(asked) == 1


def test_no_window_is_no_library_call():
    program = vars(module_of("attention a { mask causal and (i - j < 9 or sinks(2)) }"))["_a_program"]
    assert program.window is None
    half = [torch.empty(1, 2, 20, 16, dtype=torch.float16)] * 3
    assert not suits_flash_attention(program, *half)
    assert not suits_flash_attention(program_of("window"), *half)  # on a CPU


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_the_installed_operators_take_these_arguments(name, heads):
    """On tensors without values: PyTorch holds arguments against the schema, and says which shapes come out."""
    assert has_windows()
    program = program_of(name)
    query = torch.empty(2, heads[0], 40, 64, dtype=torch.float16, device="meta")
    key = value = torch.empty(2, heads[1], 40, 64, dtype=torch.float16, device="meta")
    out, lse = window_forward(program.window, (query, key, value), 0.3)
    assert (out.shape, out.dtype) == (query.shape, torch.float16)
    assert (lse.shape, lse.dtype) == ((2, heads[0], 40), torch.float32)
    grads = window_backward(program.window, torch.empty_like(out), (query, key, value), (out, lse), None)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, value.shape]


def test_a_module_may_be_written_with_a_library_s_call(tmp_path):
    from attnc.codegen.tuned_text import tuned_lines
    from attnc.plan.configs import LibraryConfig, TunedConfig

    config = TunedConfig("k 0, library", "d", "v", "float16", 16, 16, 64, 64, LibraryConfig("flash"), "measured")
    assert '            tiles=LibraryCall("flash"),' in tuned_lines([config])


def test_a_mask_that_is_everything_for_equal_lengths_alone_is_no_call_for_others(library):
    text = "attention few { mask j < N }"
    program = program_in(text, "few")
    assert program.window == (-1, -1)
    half = [torch.empty(1, 2, length, 16, dtype=torch.float16) for length in (20, 24, 24)]
    assert not suits_flash_attention(program, *half)
    assert suits_flash_attention(program, half[1], *half[1:])
    assert suits_flash_attention(program_of("full"), *half)


def test_the_library_takes_no_negative_scale(library):
    choose_library("window", backward=False)
    made = tensors(B=1, H=2, G=1, N=20, M=20, dtype=torch.float16)
    assert_close(both_ways("window", made, scale=-0.5), made, "window", scale=-0.5)
    assert library.calls == []
