"""Attentions that hypothesis writes, against the dense oracle."""

import torch
from expressions import attentions, tables_for
from hypothesis import given, settings
from hypothesis import strategies as st
from patterns import module_of_plans, outputs_and_gradients, tensors

from attnc.ir.program import NormalizeKind
from attnc.plan.choose import plan_attention
from attnc.reference.dense import reference


@settings(max_examples=25)
@given(attentions(), st.integers(1, 70), st.integers(1, 70), st.integers(0, 50))
def test_random_attentions_are_the_oracles(attention, queries, keys, seed):
    module = module_of_plans((plan_attention(attention),))
    query, key, value = tensors(N=queries, M=keys, D=4, E=3, seed=seed)
    tables = tables_for(2, 4, keys, seed)
    inputs = {
        name: torch.tensor(table, dtype=torch.float64 if name == "bias" else None) for name, table in tables.items()
    }
    inputs["bias"].requires_grad_()
    lse = attention.normalize.kind is NormalizeKind.SOFTMAX
    leaves = [query, key, value, inputs["bias"]]
    ours = outputs_and_gradients(lambda: module.pattern(query, key, value, **inputs, return_lse=lse), leaves, lse)
    dense = outputs_and_gradients(
        lambda: module.pattern_reference(query, key, value, **inputs, return_lse=lse), leaves, lse
    )
    theirs = outputs_and_gradients(lambda: reference(attention, query, key, value, inputs, return_lse=lse), leaves, lse)
    for mine, eager, expected in zip(ours, dense, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-8, equal_nan=True)
        torch.testing.assert_close(eager, expected, rtol=1e-7, atol=1e-8, equal_nan=True)
