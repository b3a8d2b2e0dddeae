"""Examples of layers and of attentions of linear cost train, in small models."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import attnc

EXAMPLES = Path(__file__).parents[2] / "examples"
LENGTH, WIDTH = 24, 64


class OfAttention(nn.Module):
    """A layer around an attention of a module, as a user would write it."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        heads = self.project(self.norm(x)).view(*x.shape[:2], 12, 16).transpose(1, 2)
        found = self.attend(*heads.chunk(3, 1))
        return x + self.output(found.transpose(1, 2).flatten(2))


def layer_of(name):
    match name:
        case "ssnn_block":
            return attnc.load(EXAMPLES / "ssnn_block.attn", width=WIDTH, rank=8).SsnnBlock
        case "strassen_projection":
            with pytest.warns(attnc.compiler.PatternWarning, match="scheme-loses"):
                return attnc.load(EXAMPLES / "strassen_projection.attn", width=WIDTH).StrassenProjection
        case "cvt":
            return attnc.load(EXAMPLES / "cvt.attn", columns=6).Cvt
        case "mla":
            return attnc.load(EXAMPLES / "mla.attn", width=WIDTH, rank=8, query_rank=24).Mla
        case "performer":
            module = attnc.load(EXAMPLES / "performer.attn", features=32)
            return lambda: OfAttention(module.Performer())
        case "linformer":
            module = attnc.load(EXAMPLES / "linformer.attn", rank=8, length=LENGTH)
            return lambda: OfAttention(module.Linformer())
        case "nystrom":
            module = attnc.load(EXAMPLES / "nystrom.attn", landmarks=8)
            return lambda: OfAttention(module.Nystromformer())
        case _:
            module = attnc.load(EXAMPLES / f"{name}.attn")
            made = getattr(module, "".join(part.capitalize() for part in name.split("_")))
            return lambda: OfAttention(made())


@pytest.mark.parametrize(
    "name",
    ["ssnn_block", pytest.param("strassen_projection", marks=pytest.mark.slow), "cvt", "performer",
     "linear_transformer", "retention", "linformer", "nystrom", "pooled", "mla"],
)  # fmt: skip
def test_a_stack_learns_which_token_is_the_most_frequent(name):
    make = layer_of(name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, WIDTH), make(), make(), nn.LayerNorm(WIDTH))
    head = nn.Linear(WIDTH, 4)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        tokens = torch.randint(0, 4, (32, LENGTH))
        favourite = torch.randint(0, 4, (32, 1))
        tokens = torch.where(torch.rand(32, LENGTH) < 0.5, favourite, tokens)
        loss = functional.cross_entropy(head(model(tokens)[:, -1]), favourite.squeeze(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
