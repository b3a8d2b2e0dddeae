"""Loops over blocks of scores use the same memory again, instead of asking for new pages each time."""

import platform
import sys

import pytest
import torch
from patterns import module_of


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="counts page faults of glibc"
)
def test_blocks_of_scores_take_few_new_pages():
    import resource

    function = module_of("attention capped { mask causal\n score softcap(s, 5.0) }").capped
    query, key, value = (torch.randn(1, 8, 2048, 64) for _ in range(3))
    function(query, key, value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    function(query, key, value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 16_000  # 60 000 with new pages each time
