"""The loop over whole tiles takes no more instructions than FlexAttention's, compiled by the same Triton."""

import pytest
from without_device import run_python

COMPARE = """
import sys
from tools.compare_flex import PATTERNS, Case, flex_instructions, full_tile_instructions, tiles_of

target, head_size, count, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
for tiles in list(tiles_of(target, head_size))[:count]:
    case = Case(target, head_size, tiles)
    flex, theirs = flex_instructions(case)
    assert theirs > 200
    for name in names:
        report, ours = full_tile_instructions(case, PATTERNS[name])
        assert 200 < ours <= theirs, (name, tiles, ours, theirs)
"""


def test_whole_tiles_of_causal_attention_take_fewer_instructions():
    run_python(COMPARE, "sm_90", "128", "1", "causal")


@pytest.mark.slow
@pytest.mark.parametrize("head_size", ["64", "128"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_whole_tiles_take_fewer_instructions(target, head_size):
    run_python(COMPARE, target, head_size, "3", "causal", "window", "sinks")
