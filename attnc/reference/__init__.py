"""The dense meaning of an attention in eager torch, in any precision: the oracle that everything is tested against."""

from attnc.reference.dense import (
    dense_mask,
    dense_weights,
    initial_value,
    pair_environment,
    reference,
    with_shorter_keys,
)
from attnc.reference.tensors import TensorEnvironment, evaluate_tensor

__all__ = [
    "TensorEnvironment",
    "dense_mask",
    "dense_weights",
    "evaluate_tensor",
    "initial_value",
    "pair_environment",
    "reference",
    "with_shorter_keys",
]
