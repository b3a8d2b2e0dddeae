"""Plans of several passes, each in an order of its own, against the dense oracle."""

import pytest
from layout_plans import SPLITS, compare

SIZES = [(65, 65), (40, 150)]
MORE_SIZES = [(1, 1), (63, 63), (64, 64), (100, 100), (257, 257), (1, 65), (150, 40)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SPLITS)
def test_outputs_and_gradients_are_the_oracles(name, size):
    compare(SPLITS[name], N=size[0], M=size[1])


@pytest.mark.slow
@pytest.mark.parametrize("size", MORE_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", SPLITS)
def test_outputs_and_gradients_are_the_oracles_at_more_sizes(name, size):
    compare(SPLITS[name], N=size[0], M=size[1])
