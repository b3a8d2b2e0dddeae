"""Whole path, masks: every pattern is written as text and as torch, and everything the module offers is compared."""

import pytest
import torch
from dense_formula import ON_TRITON, compare, make_tensors, pattern, read

import attnc

pytestmark = pytest.mark.filterwarnings("ignore::attnc.compiler.PatternWarning", "ignore:invalid value:RuntimeWarning")

GENERATOR = torch.Generator().manual_seed(3)


def distance(p):
    return (p.i - p.j).abs()


def causal(p, x):
    return p.j <= p.i


def same(p, x):
    return read(x["doc"], p.b, p.i) == read(x["doc"], p.b, p.j)


MASKS = {
    "true": None,
    "causal": causal,
    "window(9)": lambda p, x: distance(p) < 9,
    "causal and (i - j < 20 or sinks(4))": lambda p, x: causal(p, x) & ((p.i - p.j < 20) | (p.j < 4)),
    "window(8) or globals(1)": lambda p, x: (distance(p) < 8) | (p.i < 1) | (p.j < 1),
    "causal and (i - j < 16 or (i - j) % 16 == 0)": lambda p, x: (
        causal(p, x) & ((p.i - p.j < 16) | ((p.i - p.j) % 16 == 0))
    ),
    "dilated(5, 3)": lambda p, x: (distance(p) < 15) & ((p.i - p.j) % 3 == 0),
    "chunk_causal(10)": lambda p, x: p.j // 10 <= p.i // 10,
    "grid_near(8, 2)": lambda p, x: ((p.i // 8 - p.j // 8).abs() <= 2) & ((p.i % 8 - p.j % 8).abs() <= 2),
    "causal if h % 2 == 0 else window(9)": lambda p, x: torch.where(p.h % 2 == 0, p.j <= p.i, distance(p) < 9),
    "causal or j >= M - 10": lambda p, x: causal(p, x) | (p.j >= p.M - 10),
    "0 <= i - j < 9 or 40 < i - j <= 60": lambda p, x: (
        ((p.i - p.j >= 0) & (p.i - p.j < 9)) | ((p.i - p.j > 40) & (p.i - p.j <= 60))
    ),
    "any(t < 3, j == i - 7 * t) and not j == 5": lambda p, x: (
        ((p.i == p.j) | (p.i - p.j == 7) | (p.i - p.j == 14)) & (p.j != 5)
    ),
    "i * j < 500": lambda p, x: p.i * p.j < 500,
    "j < i - 5": lambda p, x: p.j < p.i - 5,
    "causal and same(doc)": lambda p, x: causal(p, x) & same(p, x),
    "doc[b, j] <= doc[b, i + 1]": lambda p, x: read(x["doc"], p.b, p.j) <= read(x["doc"], p.b, p.i + 1),
    "j < stop[b] and causal": lambda p, x: causal(p, x) & (p.j < x["stop"].view(-1, 1, 1, 1)),
    "keep[b, j - 2] or i == j": lambda p, x: read(x["keep"], p.b, p.j - 2) | (p.i == p.j),
    "i // n == j // n": lambda p, x: p.i // x["n"] == p.j // x["n"],
}
"""Text of a mask, and its meaning."""

QUICK_AND_SLOW = [
    (1, 100),
    (100, 65),
    pytest.param(65, 65, marks=pytest.mark.slow),
    pytest.param(150, 257, marks=pytest.mark.slow),
]

DECLARED = {
    "doc": "input doc: int[B, M] sorted",
    "stop": "input stop: int[B]",
    "keep": "input keep: bool[B, M]",
    " n": "input n: int",
}


def declarations(mask, keys):
    """Return the statements that declare what a mask reads, and values for it."""
    values = {
        "doc": torch.randint(0, 5, (2, keys), generator=GENERATOR).sort(-1)[0],
        "stop": torch.tensor([keys // 3, keys + 7]),
        "keep": torch.rand(2, keys, generator=GENERATOR) < 0.7,
        " n": 30,
    }
    found = [name for name in DECLARED if name in mask]
    return [DECLARED[name] for name in found], {name.strip(): values[name] for name in found}


@pytest.mark.parametrize(("queries", "keys"), QUICK_AND_SLOW)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, queries, keys):
    statements, x = declarations(mask, keys)
    compare(
        pattern(*statements, f"mask {mask}"), make_tensors(queries=queries, keys=keys, head_size=4), x, mask=MASKS[mask]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (63, 63), (700, 700), (300, 900), (900, 300)])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_under_a_score(mask, queries, keys):
    statements, x = declarations(mask, keys)
    compare(
        pattern(*statements, f"mask {mask}", "score softcap(s, 3) - 0.01 * abs(i - j)"),
        make_tensors(queries=queries, keys=keys, head_size=4),
        x,
        mask=MASKS[mask],
        score=lambda s, p, x: 3 * torch.tanh(s / 3) - 0.01 * distance(p),
    )


@pytest.mark.parametrize(("queries", "keys"), [(40, 50), pytest.param(9, 150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_in_the_kernel(mask, queries, keys, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", ON_TRITON)
    statements, x = declarations(mask, keys)
    compare(
        pattern(*statements, f"mask {mask}"), make_tensors(queries=queries, keys=keys, head_size=4), x, mask=MASKS[mask]
    )


@pytest.mark.parametrize(
    ("align", "shift"),
    [
        ("start", lambda p, x: 0),
        ("at(pos[b])", lambda p, x: read(x["pos"], p.b)),
        ("at(h * 30 - 20)", lambda p, x: p.h * 30 - 20),
    ],
)
@pytest.mark.parametrize(("queries", "keys"), [(1, 90), (65, 90), (90, 65)])
def test_alignments(align, shift, queries, keys):
    compare(
        pattern("input pos: int[B]", f"align {align}", "mask causal and i - j < 40 or sinks(2)"),
        make_tensors(queries=queries, keys=keys),
        {"pos": torch.tensor([30, -70])},
        mask=lambda p, x: (causal(p, x) & (p.i - p.j < 40)) | (p.j < 2),
        shift=shift,
    )


@pytest.mark.parametrize("align", ["end", "start", "at(pos[b])"])
@pytest.mark.parametrize(("queries", "keys"), [(40, 40), (40, 60), (60, 40)])
def test_plain_causal_alignments(align, queries, keys):
    """Nothing but `causal` may be one library call, which knows a single alignment."""
    shifts = {"end": None, "start": lambda p, x: 0, "at(pos[b])": lambda p, x: read(x["pos"], p.b)}
    compare(
        pattern("input pos: int[B]", f"align {align}", "mask causal"),
        make_tensors(queries=queries, keys=keys),
        {"pos": torch.tensor([3, -5])},
        mask=causal,
        shift=shifts[align],
    )


@pytest.mark.parametrize(("head_size", "value_size"), [(1, 1), (3, 80), (80, 3), (256, 64)])
@pytest.mark.parametrize("score", ["s", "s * (h + 1)"])
def test_head_sizes_and_groups(head_size, value_size, score):
    compare(
        pattern("mask window(12)", f"score {score}"),
        make_tensors(heads=6, kv_heads=2, queries=70, keys=75, head_size=head_size, value_size=value_size),
        mask=lambda p, x: distance(p) < 12,
        score=lambda s, p, x: s * (p.h + 1) if "h" in score else s,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["softmax", "none"])
def test_precisions(dtype, rule):
    compare(
        pattern("mask causal and i - j < 30", f"normalize {rule}", "score softcap(s, 2)"),
        make_tensors(queries=70, keys=100),
        dtype=dtype,
        mask=lambda p, x: causal(p, x) & (p.i - p.j < 30),
        score=lambda s, p, x: 2 * torch.tanh(s / 2),
        rule=rule,
    )


LAYOUTS = {
    "heads last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "positions innermost": lambda t: t.mT.contiguous().mT,
    "one batch entry": lambda t: t[:1].expand(2, -1, -1, -1),
    "one position": lambda t: t[:, :, :1].expand(-1, -1, 70, -1),
    "every other": lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", ["causal", "true", "dilated(5, 3)"])
def test_layouts(layout, mask):
    tensors = make_tensors(heads=4, kv_heads=2, queries=70, keys=70, head_size=16)
    compare(pattern(f"mask {mask}"), [LAYOUTS[layout](tensor) for tensor in tensors], mask=MASKS.get(mask) or (
        (lambda p, x: (distance(p) < 15) & ((p.i - p.j) % 3 == 0)) if mask != "true" else None
    ))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_integer_dtypes(dtype):
    doc = torch.randint(0, 100, (2, 17), generator=GENERATOR).to(dtype)
    compare(
        pattern("input doc: int[B, M]", "mask doc[b, i] * 3 - doc[b, j] < 100"),
        x={"doc": doc},
        mask=lambda p, x: read(doc.long(), p.b, p.i) * 3 - read(doc.long(), p.b, p.j) < 100,
    )


def test_dimensions_that_broadcast():
    compare(
        pattern("input t: float[B, H, M]; input u: bool[B, N]", "mask u[b, r] or j > i", "score s + t[b, h, j]"),
        make_tensors(batch=3, heads=4, queries=9, keys=12),
        {"t": torch.randn(3, 1, 12, dtype=torch.float64), "u": torch.rand(1, 9) < 0.5},
        mask=lambda p, x: read(x["u"], 0 * p.b, p.r) | (p.j > p.i),
        score=lambda s, p, x: s + read(x["t"], p.b, 0 * p.h, p.j),
    )


def test_reads_outside_give_zero():
    x = {"ok": torch.rand(4, 5) < 0.5, "t": torch.randn(2, 7, dtype=torch.float64), "none": torch.zeros(0)}
    compare(
        pattern(
            "input ok: bool[?, 5]; input t: float[H, 7]; input none: float[?]",
            "mask not ok[i - j, j % 7]",
            "score s + t[h, i - j + 3] + t[hash(i), -1] + none[j]",
        ),
        make_tensors(queries=20, keys=31),
        x,
        mask=lambda p, x: ~read(x["ok"], p.i - p.j, p.j % 7),
        score=lambda s, p, x: s + read(x["t"], p.h, p.i - p.j + 3),
    )


def test_broken_promise_of_order_stays_finite():
    module = attnc.loads(pattern("input doc: int[B, M] sorted", "mask same(doc)"))
    doc = torch.randint(-5, 5, (2, 300), generator=GENERATOR)
    assert torch.isfinite(module.foo(*make_tensors(queries=300, keys=300), doc=doc)).all()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_scalar_inputs(as_tensor):
    given = {"n": 5, "t": 0.7, "on": True}
    x = {name: torch.tensor(value) for name, value in given.items()} if as_tensor else given
    x["t"] = torch.tensor(0.7, dtype=torch.float64) if as_tensor else 0.7
    compare(
        pattern("input n: int; input t: float; input on: bool", "mask (j < n or not on) or abs(i - j) < n", "scale t"),
        x=x,
        mask=lambda p, x: (p.j < 5) | (distance(p) < 5),
        scale=lambda p, x: x["t"],
    )
