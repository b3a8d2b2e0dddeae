"""Causal passes of several on a CPU: by one call where that fits, the same attention everywhere."""

import pytest
import torch
from patterns import module_of, program_in, tensors

from attnc.runtime import cpu_flash

TEXTS = {
    "behind": "mask causal or j < 66\n decompose split(j < 66)",
    "first": "mask causal and j >= 5 or i < 3 and j < 3\n decompose split(j >= 5)",
    "whole": "mask causal or (j - i) % 16 == 0\n decompose split(causal)",
}


def text_of(name):
    return f"attention {name} {{ {TEXTS[name]} }}"


@pytest.fixture
def computed(monkeypatch):
    """Count the passes that are one call."""
    found, original = [], cpu_flash.causal_forward

    def watched(*arguments, **options):
        found.append(arguments[1])
        original(*arguments, **options)

    monkeypatch.setattr(cpu_flash, "causal_forward", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield found
    torch.set_num_threads(threads)


def check(name, made, **options):
    results = []
    for function in ("", "_reference"):
        out, lse = getattr(module_of(text_of(name)), name + function)(*made, return_lse=True, **options)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        loss = (out * upstream).sum() + torch.where(lse.isfinite(), lse, 0.0).to(out.dtype).sum()
        results.append([out, lse, *torch.autograd.grad(loss, made)])
    for one, exact in zip(*results, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("length", [1, 5, 6, 66, 67, 100, 257])
@pytest.mark.parametrize("name", TEXTS)
def test_causal_passes_are_one_call(name, length, computed):
    (first,) = (one.causal_from for one in program_in(text_of(name), name).passes if one.causal_from is not None)
    check(name, tensors(B=2, H=4, G=2, N=length, M=length, D=16, E=16, dtype=torch.float64))
    assert computed == [first] * (length > first)


@pytest.mark.parametrize("given", [{"E": 24}, {"E": 8}, {"G": 1}, {"G": 4}, {"scale": -0.5}], ids=str)
def test_head_sizes_groups_and_scales(given, computed):
    options = {"scale": given["scale"]} if "scale" in given else {}
    sizes = {"B": 1, "H": 4, "G": 2, "N": 90, "M": 90, "D": 16, "E": 16, "dtype": torch.float64}
    check("behind", tensors(**(sizes | {name: size for name, size in given.items() if name != "scale"})), **options)
    assert computed == [66]


def test_any_strides_will_do(computed):
    made = [torch.randn(2, 90, 16, heads).double().permute(0, 3, 1, 2).requires_grad_() for heads in (4, 2, 2)]
    check("behind", made)
    assert computed == [66]


def test_other_numbers_of_keys_go_by_bands(computed):
    for name in TEXTS:
        check(name, tensors(B=1, H=2, G=1, N=70, M=77, dtype=torch.float64))
    assert computed == []


def test_threads_with_unequal_shares_go_by_bands(computed):
    torch.set_num_threads(2)
    check("behind", tensors(B=1, H=3, G=3, N=90, M=90, dtype=torch.float64))
    assert computed == []
    check("behind", tensors(B=2, H=3, G=3, N=90, M=90, dtype=torch.float64))
    assert computed == [66]


def test_values_of_masked_keys_stay_away(computed):
    query, key, value = tensors(B=1, H=2, G=2, N=90, M=90, dtype=torch.float32, grad=False)
    value[:, :, 80, 3] = torch.inf
    key[:, :, 85] = torch.nan
    module = module_of(text_of("behind"))
    found, exact = module.behind(query, key, value), module.behind_reference(query, key, value)
    torch.testing.assert_close(found, exact, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert found[:, :, :80].isfinite().all()
    assert computed == [66]  # and again with care
