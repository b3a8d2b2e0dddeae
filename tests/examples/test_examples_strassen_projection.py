"""The example of projections by Winograd's scheme trains, and computes what plain products would."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import attnc

EXAMPLE = Path(__file__).parents[2] / "examples" / "strassen_projection.attn"
pytestmark = pytest.mark.filterwarnings("ignore::attnc.compiler.PatternWarning")


def test_a_stack_learns_to_repeat_what_came_some_tokens_before():
    module = attnc.load(EXAMPLE, width=64, head_size=16)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 64), *[module.StrassenProjection() for _ in range(2)], nn.Linear(64, 8))
    assert "by <2, 2, 2; 7>" in repr(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        tokens = torch.randint(0, 8, (16, 4)).repeat(1, 5)  # each repeats what came four tokens before
        loss = functional.cross_entropy(model(tokens[:, :-1])[:, 4:].flatten(0, 1), tokens[:, 5:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]


def test_its_width_is_one_where_the_scheme_is_expected_to_pay():
    pattern = attnc.explain(EXAMPLE, length=4096)[-1]
    by_name = {one["name"]: one["via"] for one in pattern["projections"]}
    assert by_name["down"]["additions"] == [4, 4, 7]
    assert by_name["key"] is None
    assert attnc.check(EXAMPLE) == ()
