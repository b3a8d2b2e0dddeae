"""What a step of training takes: a rule that counts the same for every contender.

A multiply-add is two operations. Products with a matrix of weights: one forward, two backward. Attention, of each
allowed pair and head: two products over the head size forward, five backward (the scores once more, and the gradients
of weights, values, queries and keys). Looking up embeddings, norms, activations, softmax and the optimiser are not
counted.
"""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from attnc.study.models import LayerStack, PatternLayer, Size

MATRIX_PRODUCTS = 1 + 2
"""Products with each matrix of weights: forward and backward."""

PAIR_PRODUCTS = 2 + 5
"""Products over the head size of each allowed pair: forward and backward."""


def matrix_elements(model: nn.Module) -> Fraction:
    """Count the elements of matrices that every token is multiplied with; of structured ones, the free parameters.

    A convolution that leaves positions out counts with the part of them that it keeps. Embeddings are looked up, and
    what a pattern has learned is read pair by pair: neither is one.
    """
    others: set[int] = set()
    structured = Fraction(0)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            others.update(map(id, module.parameters()))
        elif isinstance(module, PatternLayer) and isinstance(module.attend, nn.Module):
            others.update(map(id, module.attend.parameters()))
        elif isinstance(module, LayerStack):
            structured += module.elements
            others.update(map(id, module.layers.parameters()))
    return structured + sum(one.numel() for one in model.parameters() if one.dim() == 2 and id(one) not in others)


def step_flops(model: nn.Module, size: Size, pairs: Fraction, length: int, batch: int) -> int:
    """Count the operations of one step.

    Args:
        model: whose matrices count.
        size: of the model.
        pairs: allowed pairs of one head, the mean over heads where they differ.
        length: positions of an example.
        batch: examples.
    """
    matrices = MATRIX_PRODUCTS * 2 * batch * length * matrix_elements(model)
    stack = next((one for one in model.modules() if isinstance(one, LayerStack)), None)
    features = size.layers * size.heads * size.head_size if stack is None else stack.features
    attention = PAIR_PRODUCTS * 2 * batch * pairs * features
    return round(matrices + attention)


def dense_pairs(length: int, *, causal: bool) -> Fraction:
    """Count the pairs of attention without a pattern."""
    return Fraction(length * (length + 1), 2) if causal else Fraction(length * length)
