"""The dense meaning of an attention in eager torch, in any precision: the oracle that everything is tested against."""

from attnc.reference.dense import (
    dense_mask,
    dense_weights,
    initial_value,
    pair_environment,
    reference,
    with_shorter_keys,
)
from attnc.reference.layers import dense_matrix, layer_reference
from attnc.reference.tensors import TensorEnvironment, evaluate_tensor

__all__ = [
    "TensorEnvironment",
    "dense_mask",
    "dense_matrix",
    "dense_weights",
    "evaluate_tensor",
    "initial_value",
    "layer_reference",
    "pair_environment",
    "reference",
    "with_shorter_keys",
]
