"""Derivatives as expressions against those of autograd, in float64."""

from dataclasses import replace

import pytest
import torch
from expressions import TENSORS, scores
from hypothesis import given, settings
from hypothesis import strategies as st

from attnc.algebra.gradients import ONE, ZERO, Axes, axes_of, differentiate, read_gradients, write_out_sums
from attnc.algebra.simplify import simplify_attention
from attnc.ir.nodes import Score, SizeName
from attnc.reference import evaluate_tensor, pair_environment
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

SIZES = {
    SizeName.BATCH: 2, SizeName.HEADS: 3, SizeName.QUERIES: 4, SizeName.KEYS: 5, SizeName.HEAD_SIZE: 8,
    SizeName.GROUP: 1,
}  # fmt: skip


def attention(text):
    program = check_program(parse_source(SourceFile("test.attn", f"attention a {{ {text} }}")))
    return simplify_attention(program.attentions[0])[0]


def inputs_of(example, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"B": 2, "H": 3, "N": 4, "M": 5, "D": 8}
    found = {}
    for tensor in example.tensors:
        shape = [dim.value if hasattr(dim, "value") else sizes[dim.name.value] for dim in tensor.dims]
        match tensor.type.value:
            case "int":
                found[tensor.name] = torch.randint(0, 5, shape, generator=generator)
            case "bool":
                found[tensor.name] = torch.rand(shape, generator=generator) < 0.5
            case _:
                found[tensor.name] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2
    return found


def check(example, expr, seed=0):
    """Compare the derivatives of an expression by the score and by tables, where both are numbers."""
    expr = write_out_sums(expr)
    generator = torch.Generator().manual_seed(seed)
    given_inputs = inputs_of(example, seed)
    floats = {name: value.requires_grad_() for name, value in given_inputs.items() if value.is_floating_point()}
    score = (3 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    env = replace(pair_environment(example, SIZES, given_inputs), score=score)
    value = evaluate_tensor(expr, env).expand(2, 3, 4, 5)
    weights = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    leaves = [score, *floats.values()]
    if not value.requires_grad:
        assert differentiate(expr, Score()) == ZERO
        assert not read_gradients(expr)
        return
    expected = torch.autograd.grad(value, leaves, weights, allow_unused=True)
    slope = evaluate_tensor(differentiate(expr, Score()), env).expand(2, 3, 4, 5)
    wanted = torch.zeros_like(score) if expected[0] is None else expected[0]
    compare(slope * weights, wanted)
    totals = {name: torch.zeros_like(table) for name, table in floats.items()}
    for one in read_gradients(expr):
        places = [evaluate_tensor(index, env).expand(2, 3, 4, 5) for index in one.read.index]
        table = floats[one.read.table]
        inside = torch.ones(2, 3, 4, 5, dtype=torch.bool)
        for place, size in zip(places, table.shape, strict=True):
            inside &= (place >= 0) & (place < size)
        part = torch.where(inside, (evaluate_tensor(one.slopes[0], env) * weights).expand(2, 3, 4, 5), 0.0).detach()
        if places:
            clamped = tuple(place.clamp(0, size - 1) for place, size in zip(places, table.shape, strict=True))
            totals[one.read.table].index_put_(clamped, part, accumulate=True)
        else:
            totals[one.read.table] += part.sum()
    for (name, _), found in zip(floats.items(), expected[1:], strict=True):
        compare(totals[name], torch.zeros_like(totals[name]) if found is None else found)


def compare(found, expected):
    both = expected.isfinite() & found.isfinite()
    torch.testing.assert_close(found[both].detach(), expected[both], rtol=1e-9, atol=1e-9)
    assert bool((found.isfinite() | ~expected.isfinite()).all())


SCORES = [
    "s",
    "2 * s - 1",
    "abs(s)",
    "softcap(s, 3.0)",
    "max(s, 0.0) ** 2",
    "min(s, 1.0, 0.5 * s)",
    "exp(s) / (1 + exp(s))",
    "log(1 + s * s) + log2(2 + abs(s)) + sqrt(1 + s ** 2)",
    "erf(s) + sin(s) * cos(2 * s) + tanh(s) + sigmoid(s) + exp2(s)",
    "s % 1.5",
    "where(j <= i, s, 0.5 * s * s)",
    "s * w[h] + u[b, j] * v[h, i - j + 4]",
    "s * w[h] ** (i - j) + w[h] ** u[b, j]",
    "sum(t < 3, v[h, t] * s ** t)",
    "sum(t < 3, s * t) + c * s",
    "where(s > 0, s / u[b, j], w[h] * 2.0)",
    "u[b, 7] + s",
]

HEAD = "input w: float[H]; input u: float[B, M]; input v: float[H, 9]; input c: float"


@pytest.mark.parametrize("score", SCORES)
def test_derivatives(score):
    example = attention(f"{HEAD}; score {score}")
    check(example, example.score)


@given(scores(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_random_scores(score, seed):
    example = replace(attention("score s"), tensors=TENSORS)
    check(example, score, seed)


def test_slopes_of_plain_scores_are_plain():
    example = attention(f"{HEAD}; score s + w[h] * (j - i)")
    assert differentiate(example.score, Score()) == ONE
    (one,) = read_gradients(example.score)
    assert one.axes is Axes.HEAD


@pytest.mark.parametrize(
    ("read", "axes"),
    [
        ("w[h]", "head"),
        ("v[h, i]", "row"),
        ("v[h, r]", "row"),
        ("u[b, j]", "column"),
        ("v[h, i - j]", "diagonal"),
        ("v[h, clamp(i - j, -4, 4) + 4]", "diagonal"),
        ("v[h, int(log(1 + abs(i - j)))]", "diagonal"),
        ("v[h, i + j]", "pair"),
        ("v[h, r - j]", "pair"),
        ("v[h, i // 2 - j // 2]", "pair"),
        ("c", "head"),
    ],
)
def test_axes(read, axes):
    example = attention(f"{HEAD}; score s + {read}")
    (one,) = read_gradients(example.score)
    assert axes_of(one.read) is Axes(axes)
