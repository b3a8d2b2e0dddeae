"""Models: a pattern's is PyTorch's own but for the attention, and everything in it is learned."""

import pytest
import torch
from torch.nn import functional

from attnc.compiler import plan_source
from attnc.source import SourceFile
from attnc.study.contenders import contender, planned_patterns, shipped
from attnc.study.listops import listops
from attnc.study.models import Size
from attnc.study.recall import recall

SIZE = Size(16, 2, 2)
CAUSAL, TWO_SIDED = recall(24, 2, 4, 4, 4, 1.0), listops(24, 2, 3, 0.2)

LEARNED = """attention biased {
    mask causal
    learned bias: float[H, 9] = 0.25
    learned sink: float[H] = 0.0
    score s + bias[h, clamp(i - j, 0, 8)]
    normalize softmax(sink = sink[h])
}"""


def compiled(text, name):
    (pattern,) = planned_patterns(plan_source(SourceFile(f"{name}.attn", text)))
    return contender(pattern, CAUSAL, SIZE, name)


def drawn(task):
    return task.draw(5, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("task", [CAUSAL, TWO_SIDED], ids=["causal", "two-sided"])
def test_with_every_pair_allowed_it_computes_what_pytorchs_does(task):
    models = [shipped(name, task, SIZE, 5).make(3).double() for name in ("torch", "dense")]
    tokens = drawn(task).tokens
    outputs = [model(tokens) for model in models]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    for one in outputs:
        one.square().sum().backward()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-8)


def test_a_narrow_window_is_pytorchs_layer_under_a_mask():
    ours = shipped("window", CAUSAL, SIZE, 3).make(3).double()
    theirs = shipped("torch", CAUSAL, SIZE, 3).make(3).double()
    position = torch.arange(24)
    distance = position[:, None] - position
    mask = torch.zeros(24, 24, dtype=torch.float64).masked_fill((distance < 0) | (distance >= 3), -torch.inf)
    tokens = drawn(CAUSAL).tokens
    x = theirs.token(tokens) + theirs.position.weight
    for layer in theirs.layers.layers:
        x = layer(x, src_mask=mask)
    torch.testing.assert_close(ours(tokens), theirs.head(theirs.layers.norm(x)), rtol=1e-10, atol=1e-10)


def test_all_but_learned_tensors_begin_alike():
    plain = dict(shipped("torch", CAUSAL, SIZE, 5).make(7).named_parameters())
    other = dict(shipped("torch", CAUSAL, SIZE, 5).make(8).named_parameters())
    biased = dict(compiled(LEARNED, "biased").make(7).named_parameters())
    assert all(torch.equal(biased[name], plain[name]) for name in plain)
    assert not torch.equal(plain["token.weight"], other["token.weight"])
    more = sorted(set(biased) - set(plain))
    assert more == [f"layers.layers.{layer}.attend.{name}" for layer in (0, 1) for name in ("bias", "sink")]
    assert biased[more[0]].shape == (2, 9)
    assert bool((biased[more[0]] == 0.25).all())


def test_learned_tensors_of_patterns_get_gradients():
    model = compiled(LEARNED, "biased").make(0)
    batch = drawn(CAUSAL)
    functional.cross_entropy(model(batch.tokens).flatten(0, 1), batch.targets.flatten()).backward()
    assert all(one.grad is not None and bool(one.grad.abs().sum() > 0) for one in model.parameters())


def test_making_a_model_leaves_torchs_random_numbers_alone():
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    shipped("torch", CAUSAL, SIZE, 5).make(3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("task", [CAUSAL, TWO_SIDED], ids=["causal", "two-sided"])
def test_hugging_faces_model_sees_what_the_task_lets_it_see(task):
    one = shipped("huggingface", task, SIZE, 5)
    if one.missing:
        pytest.skip(one.missing)
    model = one.make(0)
    tokens = drawn(task).tokens
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % task.vocabulary
    early = slice(0, task.length - 1)
    assert torch.allclose(model(tokens)[:, early], model(changed)[:, early], atol=1e-6) == task.causal
