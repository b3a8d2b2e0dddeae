"""What LANGUAGE.md says of names, sizes, positions, operators and the prelude, from text to the mask of a module."""

import pytest
import torch

import attnc

N, M, B, H = 11, 17, 2, 4


def mask_of(text, *, queries=N, keys=M, params=None, **inputs):
    """Return the mask of attention `a` and `b h i j r`, as int tensors."""
    module = attnc.loads(text, **(params or {}))
    ranges = [torch.arange(size).view([-1 if axis == k else 1 for axis in range(4)])
              for k, size in enumerate((B, H, queries, keys))]  # fmt: skip
    b, h, r, j = ranges
    return module.a_mask(queries, keys, B=B, H=H, **inputs), (b, h, r + keys - queries, j, r)


def check(mask, meaning, *, head="", statements="", **given):
    got, names = mask_of(f"attention a{head} {{\n{statements}\nmask {mask}\n}}", **given)
    want = torch.as_tensor(meaning(*names)).expand(got.shape)
    assert torch.equal(got, want), f"{int((got != want).sum())} pairs differ"


def mix(*values):
    """Hash integers by the formula of section 5, in Python's own integers."""
    x = 0
    for value in values:
        x = (x + value + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x // 2


def random_blocks(b, h, i, j, r):
    picked = torch.zeros(1, H, N, M, dtype=torch.bool)
    for head in range(H):
        for row in range(N):
            block = (row + M - N) // 4
            for key in range(M):
                picked[0, head, row, key] = key // 4 in {mix(7, head, block, t) % ((M + 3) // 4) for t in range(2)}
    return picked


PRELUDE = {
    "causal": lambda b, h, i, j, r: j <= i,
    "window(3)": lambda b, h, i, j, r: (i - j).abs() < 3,
    "sinks(2)": lambda b, h, i, j, r: j < 2,
    "prefix(5)": lambda b, h, i, j, r: j < 5,
    "globals(7)": lambda b, h, i, j, r: (i < 7) | (j < 7),
    "dilated(2, 3)": lambda b, h, i, j, r: ((i - j).abs() < 6) & ((i - j) % 3 == 0),
    "chunk(4)": lambda b, h, i, j, r: i // 4 == j // 4,
    "chunk_causal(4)": lambda b, h, i, j, r: j // 4 <= i // 4,
    "grid_near(4, 1)": lambda b, h, i, j, r: ((i // 4 - j // 4).abs() <= 1) & ((i % 4 - j % 4).abs() <= 1),
    "random_blocks(4, 2, 7)": random_blocks,
    "alibi < -0.5": lambda b, h, i, j, r: 2.0 ** (-8 * (h + 1) / H) * (i - j).abs() > 0.5,
}

EXPRESSIONS = {
    "0 <= i - j < 3": lambda b, h, i, j, r: (i - j >= 0) & (i - j < 3),
    "(j - i) // 3 == -1": lambda b, h, i, j, r: torch.div(j - i, 3, rounding_mode="floor") == -1,
    "(j - i) % 3 == 1": lambda b, h, i, j, r: torch.remainder(j - i, 3) == 1,
    "-i ** 2 > -j and 2 ** 3 ** 2 == 512": lambda b, h, i, j, r: -(i**2) > -j,
    "2 ** -1 == 0.5 and i / 2 < j": lambda b, h, i, j, r: i / 2 < j,
    "not i < j or j == 3 and i > 2": lambda b, h, i, j, r: (i >= j) | ((j == 3) & (i > 2)),
    "i < 9 if j < 2 else j < 4": lambda b, h, i, j, r: torch.where(j < 2, i < 9, j < 4),
    "where(j < 2, i, j) < clamp(i, 2, 8)": lambda b, h, i, j, r: torch.where(j < 2, i, j) < i.clamp(2, 8),
    "min(i, j, 6) < max(j - 2, 3, 1)": lambda b, h, i, j, r: torch.minimum(i, j).clamp(max=6) < (j - 2).clamp(min=3),
    "(i < 9) == (j < 3)": lambda b, h, i, j, r: (i < 9) == (j < 3),
    "floor(-1.5 * j) == int(-1.5 * j)": lambda b, h, i, j, r: (j % 2 == 0) | (j < 0),
    "int(0 * inf) == 0 and int(inf) > 0 and int(true) == 1": lambda b, h, i, j, r: j >= 0,
    "sum(t < 3, j * t) < i": lambda b, h, i, j, r: 3 * j < i,
    "any(t < 0, true) or all(t < 0, false) and j < 4": lambda b, h, i, j, r: j < 4,
    "hash(3, -1) % 7 == j": lambda b, h, i, j, r: j == mix(3, -1) % 7,
    "h // g == h and B == 2 and H == 4 and r < 3": lambda b, h, i, j, r: (h == 0) & (r < 3),
    "(i + b * 3 + h) % N < M - j": lambda b, h, i, j, r: (i + 3 * b + h) % N < M - j,
    "abs(pi - 3.14159) < 1e-3 and softcap(j, 5) < 4": lambda b, h, i, j, r: 5 * torch.tanh(j / 5) < 4,
}


@pytest.mark.parametrize("mask", [*PRELUDE, *EXPRESSIONS])
def test_masks(mask):
    check(mask, {**PRELUDE, **EXPRESSIONS}[mask], **({"g": 2} if "// g" in mask else {}))


def test_statements_end_and_continue():
    text = "# first\nattention a { let w = 3; mask i - j < w # so\n mask causal and\n not\n (j\n ==\n 2) }"
    got, (_, _, i, j, _) = mask_of(text)
    assert torch.equal(got, ((i - j < 3) & (j <= i) & (j != 2)).expand(got.shape))


def test_definitions_see_their_own_surroundings_and_hide_the_prelude():
    got, (_, _, i, j, _) = mask_of("def near = causal\nattention a { let causal = j < 2; mask near and causal }")
    assert torch.equal(got, ((j <= i) & (j < 2)).expand(got.shape))
    got, (_, _, i, j, _) = mask_of("def causal = j < i\nattention a { mask causal }")
    assert torch.equal(got, (j < i).expand(got.shape))


def test_an_untyped_argument_takes_a_table():
    ids = torch.randint(0, 3, (B, M))
    got, (b, _, i, j, _) = mask_of(
        "def mine(t, n: int) = t[b, i] == t[b, j] - n\nattention a { input d: int[B, M]\n mask mine(d, 1) }", d=ids
    )
    assert torch.equal(got, (ids[b, i] == ids[b, j] - 1).expand(got.shape))


@pytest.mark.parametrize(("align", "shift"), [("start", 0), ("end", M - N), ("at(pos[b])", None), ("at(2 * h)", None)])
def test_positions(align, shift):
    places = torch.tensor([0, 9])
    inputs = {"pos": places} if "pos" in align else {}
    declared = "input pos: int[B]\n" if inputs else ""
    got, (b, h, _, j, r) = mask_of(f"attention a {{ {declared} align {align}\n mask causal }}", **inputs)
    offset = shift if shift is not None else places[b] if inputs else 2 * h
    assert torch.equal(got, (j <= r + offset).expand(got.shape))


def test_parameters_of_every_type():
    text = "attention a(w: int, f: float = 1, open: bool = true) { mask open and i - j < w * f }"
    got, (_, _, i, j, _) = mask_of(text, params={"w": 2, "f": 1.5})
    assert torch.equal(got, (i - j < 3).expand(got.shape))
    assert not mask_of(text, params={"w": 2, "open": False})[0].any()


def test_scalar_inputs_and_division_by_nothing():
    check("i % n == 0 and i // n == 0", lambda *names: True, statements="input n: int", n=0)
    check("i % n == 1", lambda b, h, i, j, r: i % 5 == 1, statements="input n: int", n=torch.tensor(5))
    check("causal or open", lambda b, h, i, j, r: j <= i, statements="input open: bool", open=False)


def test_dimensions_of_inputs_and_learned_tensors():
    module = attnc.loads(
        "attention a(radius: int = 2) {\n"
        " input keep: bool[B, (M + 3) // 4]\n"
        " learned bias: float[H, 2 * radius + 1] = h + 10 * d1 + 0.5 * d0\n"
        " learned gain: float = 0.25\n"
        " mask keep[b, j // 4]\n"
        " score gain * s + bias[h, clamp(i - j, -radius, radius) + radius]\n"
        "}"
    )
    layer = module.A(H=2)
    assert layer.bias.tolist() == [[0, 10, 20, 30, 40], [1.5, 11.5, 21.5, 31.5, 41.5]]
    assert layer.gain.item() == 0.25
    keep = torch.tensor([[True, False, True]])
    assert module.a_mask(5, 9, keep=keep)[0, 0].tolist() == [[True] * 4 + [False] * 4 + [True]] * 5
    with pytest.raises(ValueError, match=r"keep has shape \(1, 2\), expected \(1, 3\)"):
        module.a_mask(5, 9, keep=keep[:, :2])
