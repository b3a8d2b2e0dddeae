"""The example of a layer with Monarch matrices trains, in a model that is a stack of it."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import attnc

EXAMPLE = Path(__file__).parents[2] / "examples" / "monarch_ffn.attn"


def test_a_stack_learns_to_repeat_what_came_some_tokens_before():
    module = attnc.load(EXAMPLE, width=64, blocks=8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 64), *[module.MonarchFfn() for _ in range(2)], nn.Linear(64, 8))
    layer = model[1]
    assert sum(one.numel() for one in layer.down.parameters()) == 64 * (64 + 256) // 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        tokens = torch.randint(0, 8, (16, 4)).repeat(1, 6)  # each repeats what came four tokens before
        loss = functional.cross_entropy(model(tokens[:, :-1])[:, 4:].flatten(0, 1), tokens[:, 5:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
