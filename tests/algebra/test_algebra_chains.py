"""Orders of products in chains, and what they cost."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from attnc.algebra.chains import Cost, Factor, Product, cost, orders


def chain(*sizes):
    return tuple(Factor(f"a{number}", rows, columns) for number, (rows, columns) in enumerate(pairwise(sizes)))


def test_every_order_once():
    catalan = (1, 1, 2, 5, 14, 42)
    for count, wanted in enumerate(catalan, start=1):
        found = [str(one) for one in orders(chain(*range(1, count + 2)))]
        assert len(found) == len(set(found)) == wanted
    assert [str(one) for one in orders(chain(1, 2, 3, 4))] == ["a0 (a1 a2)", "(a0 a1) a2"]


def test_the_cheapest_order_of_a_known_chain():
    """The chain of Cormen et al., *Introduction to Algorithms*, section 15.2, takes 15,125 multiplications."""
    best = min(orders(chain(30, 35, 15, 5, 10, 20, 25)), key=lambda one: cost(one).flops)
    assert cost(best).flops == 2 * 15125
    assert str(best) == "(a0 (a1 a2)) ((a3 a4) a5)"


def test_elements_are_read_and_written_once_for_each_product():
    left, right = Factor("a", 2, 3), Factor("b", 3, 5)
    assert cost(left) == Cost(0, 0)
    assert cost(Product(left, right)) == Cost(60, 6 + 15 + 10)
    third = Factor("c", 5, 7)
    assert cost(Product(Product(left, right), third)).elements == 6 + 15 + 10 + 10 + 35 + 14


@pytest.mark.parametrize("heads", [(4, 2, 1), (6, 1, 3), (1, 1, 1)])
def test_costs_are_those_of_loops(heads):
    """Count multiplications of scores and of sums one by one, over the pairs that a mask allows."""
    every, some, _ = heads
    queries, keys, size, rank = 3, 5, 4, 2
    mask = torch.rand(queries, keys, generator=torch.Generator().manual_seed(1)) < 0.6
    pairs = int(mask.sum())

    def loops(*ranges):
        return int(torch.tensor(ranges).prod())

    query, up = Factor("q", queries, size, every), Factor("up", size, rank, some)
    expand, absorb = orders((query, up, Factor("c^T", rank, keys)), pairs)
    assert cost(expand).flops == 2 * (some * loops(size, rank, keys) + every * pairs * size)
    assert cost(absorb).flops == 2 * (every * loops(queries, size, rank) + every * pairs * rank)
    weights, latents = Factor("w", queries, keys, every, Fraction(pairs)), Factor("c", keys, rank)
    expand, absorb = orders((weights, latents, Factor("up^T", rank, size, some)))
    assert cost(expand).flops == 2 * (some * loops(keys, rank, size) + every * pairs * size)
    assert cost(absorb).flops == 2 * (every * pairs * rank + every * loops(queries, rank, size))
    assert (
        cost(absorb).elements == keys * rank + 2 * every * queries * rank + some * rank * size + every * queries * size
    )
    assert absorb.copies == every
    turned = Product(Factor("x", 7, queries), weights)  # gradients of values have the pairs on their right
    assert cost(turned) == Cost(2 * every * 7 * pairs, 7 * queries + every * 7 * keys)
