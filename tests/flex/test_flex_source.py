"""FlexAttention's functions as patterns: equal masks, equal scores, at every size."""

import functools
import math
import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks, create_block_mask, create_mask, flex_attention, or_masks

import attnc
from attnc.compiler import plan_source, render
from attnc.source import SourceFile

SIZES = [(1, 1), (40, 40), (33, 40), (40, 17)]
TABLE = torch.tensor([0, 0, 1, 1, 1, 2, 2, 5, 5, 5, 5, 7, 7, 7, 9, 9, 9, 9, 9, 9, 11, 12, 12, 12, 12, 14, 14, 14, 15,
                      15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 16])  # fmt: skip


def loads(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of reads that torch would refuse, and the language makes 0
        return attnc.loads(text)


def mask_of(text, B, H, N, M):
    inputs = dict(text.inputs)
    return loads(text).traced_mask(N, M, B=B, H=H, **inputs)


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def sliding_window(window):
    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx) & (q_idx - kv_idx <= window)

    return mask_mod


def dilated(window, step):
    def mask_mod(b, h, q_idx, kv_idx):
        distance = (q_idx - kv_idx).abs()
        return (distance <= window * step) & (distance % step == 0)

    return mask_mod


def prefix_lm(length):
    return or_masks(lambda b, h, q, kv: kv < length, causal)


def natten(width, height, kernel):
    def coordinates(index):
        return index // width, index % width

    def mask_mod(b, h, q_idx, kv_idx):
        q_x, q_y = coordinates(q_idx)
        kv_x, kv_y = coordinates(kv_idx)
        center_x = q_x.clamp(kernel // 2, (height - 1) - kernel // 2)
        center_y = torch.clamp(q_y, min=kernel // 2, max=(width - 1) - kernel // 2)
        return ((center_x - kv_x).abs() <= kernel // 2) & ((center_y - kv_y).abs() <= kernel // 2)

    return mask_mod


def document(offsets):
    ids = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets[1:] - offsets[:-1])

    def mask_mod(b, h, q_idx, kv_idx):
        same = ids[q_idx] == ids[kv_idx]
        return same & causal(b, h, q_idx - offsets[ids[q_idx]], kv_idx - offsets[ids[kv_idx]])

    return mask_mod


class PerHead:
    def __init__(self):
        self.reach = torch.tensor([3, 9], dtype=torch.int32)

    def __call__(self, b, h, q_idx, kv_idx):
        return (q_idx - kv_idx).abs() < self.reach[h]


def in_place(b, h, q_idx, kv_idx):
    mask = q_idx >= kv_idx
    mask &= kv_idx != 3
    mask.logical_or_(kv_idx == 0)
    return mask


GLOBALS = torch.tensor([0, 5, 9])
KEEP = torch.rand(10, 10, generator=torch.manual_seed(0)) > 0.5
BYTES = torch.arange(250, 290).to(torch.uint8)
LENGTHS = torch.tensor([5, 30])
LIMIT = torch.tensor(12)

MASKS = {
    "causal": causal,
    "window": sliding_window(5),
    "and": and_masks(causal, dilated(4, 3)),
    "or": or_masks(sliding_window(2), lambda b, h, q, kv: q % 8 == 0),
    "empty and": and_masks(),
    "empty or": or_masks(),
    "prefix": prefix_lm(9),
    "prefix of each batch": lambda b, h, q, kv: (kv < LENGTHS[b]) | (kv <= q),
    "natten": natten(8, 5, 3),
    "document": document(torch.tensor([0, 7, 8, 20, 40])),
    "one document table": lambda b, h, q, kv: TABLE[q] == TABLE[kv],
    "per head": PerHead(),
    "partial": functools.partial(lambda width, b, h, q, kv: (q - kv).abs() < width, 4),
    "in place": in_place,
    "block table": lambda b, h, q, kv: KEEP[q // 4, kv // 4],
    "global tokens": lambda b, h, q, kv: (kv == GLOBALS).any() | torch.isin(q, GLOBALS),
    "negative index": lambda b, h, q, kv: TABLE[kv - 3] == 15,
    "scalar tensor": lambda b, h, q, kv: q - kv < LIMIT,
    "bits": lambda b, h, q, kv: ((q ^ 5) & 6 == 2) | ((kv >> 2) & 1 == 1) | (kv | 3 == 7),
    "negative bits": lambda b, h, q, kv: ((q - kv) & ~3) == -4,
    "logic": lambda b, h, q, kv: torch.logical_xor(q > kv, torch.logical_not(q % 3 == 1)) | ~(kv < 5),
    "bool arithmetic": lambda b, h, q, kv: ((q > kv) * (q < 20)) + (kv == 7),
    "truncation": lambda b, h, q, kv: torch.div(q - kv, 3, rounding_mode="trunc") == torch.fmod(q - kv, 4),
    "floors": lambda b, h, q, kv: (q - kv) // -3 == (q - kv) % -5,
    "run-time division": lambda b, h, q, kv: torch.div(q - kv, kv + 1, rounding_mode="trunc") == q // (kv + 2),
    "rounding": lambda b, h, q, kv: (q / 4).round() == torch.ceil(kv / 4) + torch.floor(-kv / 7) + torch.trunc(q / 9),
    "float compare": lambda b, h, q, kv: (q < 3.5) | (kv.float() > 10.25) | (q / 2 == kv),
    "casts": lambda b, h, q, kv: (q > kv).int() + (kv > 3).to(torch.float32) > 1,
    "where": lambda b, h, q, kv: torch.where(q > 8, kv < 4, kv >= q),
    "int where": lambda b, h, q, kv: torch.where(q > 8, q - 8, 0) <= kv,
    "narrow integers": lambda b, h, q, kv: BYTES[q] - BYTES[kv] < 7,
    "always": lambda b, h, q, kv: b.new_ones((), dtype=torch.bool),
    "never": lambda b, h, q, kv: torch.zeros((), dtype=torch.bool),
    "powers": lambda b, h, q, kv: (q - kv) ** 2 <= 2 ** (h + 3),
    "batch and head": lambda b, h, q, kv: (q + b) % (h + 2) == kv % (h + 2),
    "minimum": lambda b, h, q, kv: torch.minimum(q, kv) * 2 >= torch.maximum(q, kv - 3),
    "stack": lambda b, h, q, kv: torch.stack([q > kv, q == 3, kv == 5]).any() & torch.stack([q, kv]).sum().ge(4),
    "sum of table": lambda b, h, q, kv: KEEP[q // 4].sum() > KEEP[:, 2][kv // 4] * 5,
    "a view of a table": lambda b, h, q, kv: KEEP.t()[q // 4][kv // 4] | KEEP[3:, None][kv % 7, 0, q % 10],
    "sign": lambda b, h, q, kv: torch.sign(q - kv) * 3 > torch.clamp(q - kv, max=2),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_a_traced_mask_is_the_mask(name):
    mod = MASKS[name]
    for queries, keys in SIZES:
        known = {} if (queries, keys) == (40, 40) else {"B": 2, "H": 2, "N": queries, "M": keys}
        text = attnc.from_flex(mod, **known)
        wanted = create_mask(mod, 2, 2, queries, keys, "cpu")
        assert torch.equal(mask_of(text, 2, 2, queries, keys), wanted), f"{queries} x {keys}\n{text}"


BIAS = torch.nn.Parameter(torch.randn(2, 79, generator=torch.manual_seed(1)))
FULL_BIAS = torch.randn(2, 2, 40, 40, generator=torch.manual_seed(2))
SLOPES = torch.exp2(-torch.arange(1, 3).float())


def softcap(cap):
    def score_mod(score, b, h, q_idx, kv_idx):
        score = score / cap
        score = torch.tanh(score)
        return score * cap

    return score_mod


SCORES = {
    "nothing": lambda score, b, h, q, kv: score,
    "softcap": softcap(5.0),
    "alibi": lambda score, b, h, q, kv: score + SLOPES[h] * (kv - q),
    "computed alibi": lambda score, b, h, q, kv: score + torch.exp2(-((h + 1) * 8.0 / 2)) * (q - kv),
    "relative": lambda score, b, h, q, kv: score + (q - kv),
    "relative table": lambda score, b, h, q, kv: score + BIAS[h, q - kv + 39],
    "clamped table": lambda score, b, h, q, kv: score + BIAS[h][(q - kv).clamp(-39, 39) + 39],
    "full bias": lambda score, b, h, q, kv: score + FULL_BIAS[b, h, q, kv],
    "old causal": lambda score, b, h, q, kv: torch.where(q >= kv, score, -float("inf")),
    "old window": lambda score, b, h, q, kv: score + torch.where((q - kv).abs() < 5, 0.0, -torch.inf),
    "used twice": lambda score, b, h, q, kv: (score / 3) * torch.sigmoid(score / 3) + score / 3,
    "functions": lambda score, b, h, q, kv: torch.exp(-score.abs()) + torch.log1p(score**2) + torch.sqrt(score.abs())
    + torch.sin(score) * torch.cos(score) + torch.erf(score) + torch.relu(score) + torch.rsqrt(score**2 + 1),
    "selected": lambda score, b, h, q, kv: torch.where(q == kv, score * 2, torch.where(kv < 3, score - 1.0, score)),
    "log": lambda score, b, h, q, kv: score - math.log(3) + (1 + (q - kv).abs()).log(),
    "row of a table": lambda score, b, h, q, kv: score + FULL_BIAS[0, :, 3][h, kv] + FULL_BIAS[-1][h, q][-1],
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("mask", [None, pytest.param("causal", marks=pytest.mark.slow), "natten"])
def test_a_traced_score_gives_the_same_outputs(name, mask):
    score_mod, mask_mod = SCORES[name], None if mask is None else MASKS[mask]
    torch.manual_seed(3)
    query, key, value = (torch.randn(2, 2, 40, 8) for _ in range(3))
    text = attnc.from_flex(mask_mod, score_mod)
    out = loads(text).traced(query, key, value, **text.inputs)
    block_mask = None if mask_mod is None else create_block_mask(mask_mod, None, None, 40, 40, "cpu", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = flex_attention(query, key, value, score_mod=score_mod, block_mask=block_mask)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_captured_parameters():
    query, key, value = (torch.randn(1, 2, 40, 8) for _ in range(3))
    text = attnc.from_flex(None, SCORES["relative table"])
    assert text.inputs["BIAS"] is BIAS
    (grad,) = torch.autograd.grad(loads(text).traced(query, key, value, **text.inputs).square().sum(), BIAS)
    assert grad.abs().sum() > 0


def test_the_text_says_what_was_captured():
    assert attnc.from_flex(MASKS["prefix of each batch"], SCORES["alibi"], name="prefix") == (
        "# Traced from the mask_mod `<lambda>` and the score_mod `<lambda>` of FlexAttention.\n"
        "attention prefix {\n"
        "    input LENGTHS: int[B]  # the captured `LENGTHS`: int64 of shape (2,)\n"
        "    input SLOPES: float[H]  # the captured `SLOPES`: float32 of shape (2,)\n"
        "    align start\n"
        "    mask j < LENGTHS[b] or j <= i\n"
        "    score s + SLOPES[h] * (j - i)\n"
        "}\n"
    )


def test_numbers_in_closures_become_parameters():
    def make(window, cap, block, scale):
        size = block * 2

        def mask_mod(b, h, q_idx, kv_idx):
            near = (q_idx - kv_idx <= window) & (kv_idx - q_idx >= -window)
            return near | (q_idx // size == kv_idx // size)

        def score_mod(score, b, h, q_idx, kv_idx):
            return torch.tanh(score / cap) * cap + (q_idx + block // 2) * scale

        return mask_mod, score_mod

    text = attnc.from_flex(*make(5, 20, 3, 0.25))
    assert text == (
        "# Traced from the mask_mod `mask_mod` and the score_mod `score_mod` of FlexAttention.\n"
        "attention traced(size: int = 6, window: int = 5, cap: int = 20, scale_value: float = 0.25) {\n"
        "    align start\n"
        "    mask i - j <= window and j - i >= -window or i // size == j // size\n"
        "    score tanh(s / cap) * cap + (i + 1) * scale_value\n"
        "}\n"
    )
    wider = attnc.loads(text, window=9, size=12).traced_mask(40, 40)
    assert torch.equal(wider, create_mask(make(9, 20, 6, 0.25)[0], 1, 1, 40, 40, "cpu"))


def test_a_number_that_python_computes_with_stays_a_constant():
    def make(width):
        def mask_mod(b, h, q_idx, kv_idx):
            if width > 3:
                return (q_idx - kv_idx < width) & (q_idx - kv_idx > -(width // 2))
            return q_idx >= kv_idx

        return mask_mod

    assert "attention traced {" in attnc.from_flex(make(7))
    assert "mask i - j > -3" in attnc.from_flex(make(7))


def test_a_number_that_a_table_is_computed_from_stays_a_constant():
    def make(width):
        return lambda b, h, q_idx, kv_idx: (torch.arange(40) % width)[q_idx] + width > kv_idx

    assert "attention traced {" in attnc.from_flex(make(7))


def test_numbers_and_tables_together():
    def make(block, keep):
        return lambda b, h, q_idx, kv_idx: keep[q_idx // block, kv_idx // block]

    mod = make(4, KEEP)
    text = attnc.from_flex(mod)
    assert "attention traced(block: int = 4) {" in text
    assert "input keep: bool[(N + block - 1) // block, (M + block - 1) // block]" in text
    assert torch.equal(mask_of(text, 1, 1, 40, 40), create_mask(mod, 1, 1, 40, 40, "cpu"))


def test_members_are_named_after_their_owner():
    class Bias(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Embedding(79, 2)

        def forward(self, score, b, h, q_idx, kv_idx):
            return score + self.inner.weight[q_idx - kv_idx + 39, h]

    module = Bias()
    text = attnc.from_flex(None, module.forward)
    assert text.inputs["inner_weight"] is module.inner.weight
    assert "input inner_weight: float[79, H]" in text


def test_a_compiled_pattern_comes_back():
    source = "attention a(w: int = 9) { input ids: int[M]; align start; mask causal and (i - j < w or ids[j] == 2) }"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_source(SourceFile("<test>", source))
        scope = {}
        exec(render(plan, target="flex"), scope)  # the module's text, as it is
        text = attnc.from_flex(scope["a_mask_mod"](40, 40, ids=TABLE))
    assert torch.equal(mask_of(text, 1, 1, 40, 40), attnc.loads(source).a_mask(40, 40, ids=TABLE))


def test_a_block_mask_tells_its_lengths():
    block_mask = create_block_mask(MASKS["one document table"], None, None, 40, 40, "cpu")
    text = attnc.from_flex(block_mask)
    assert "input TABLE: int[max(N, M)]" in text
    assert "input TABLE: int[40]" in attnc.from_flex(MASKS["one document table"], N=20, M=20)


def test_shared_parts_are_written_once():
    def doubling(score, b, h, q_idx, kv_idx):
        distance = torch.sqrt((q_idx - kv_idx).abs() + 1.5)
        for _ in range(40):
            distance = distance * torch.sigmoid(distance)
        return score + distance

    text = attnc.from_flex(None, doubling)
    assert 15 < text.count("let ") <= 40
    assert len(text) < 5000


def test_names_stay_legal():
    def make(mask, i, key):
        return lambda b, h, q, kv: mask[kv] & (i[q] > 2) & (key[b] > kv)

    text = attnc.from_flex(make(torch.ones(40, dtype=torch.bool), TABLE, torch.tensor([4])))
    assert list(text.inputs) == ["mask_table", "i_table", "key_table"]
    assert mask_of(text, 1, 1, 40, 40).shape == (1, 1, 40, 40)


def branching(b, h, q_idx, kv_idx):
    if q_idx > kv_idx:
        return kv_idx < 5
    return kv_idx == q_idx


def looping(score, b, h, q_idx, kv_idx):
    return score + math.sqrt(q_idx)


FAILURES = {
    "flex-data-dependent": [(branching, None), (None, looping), (lambda b, h, q, kv: kv in range(int(q), 3), None)],
    "flex-random": [(None, lambda score, b, h, q, kv: score + torch.randn(()))],
    "flex-unsupported-operation": [
        (None, lambda score, b, h, q, kv: torch.atan(score)),
        (lambda b, h, q, kv: (q ^ kv) == 1, None),
        (lambda b, h, q, kv: (torch.arange(2000) == q).any(), None),
        (None, lambda score, b, h, q, kv: BIAS.detach().fill_(score)),
    ],
    "flex-not-a-mask": [(lambda b, h, q, kv: q - kv, None)],
    "flex-not-a-scalar": [(lambda b, h, q, kv: q == TABLE, None), (None, lambda score, b, h, q, kv: "score")],
    "flex-wrong-arguments": [(SCORES["alibi"], None), (None, causal)],
    "flex-not-a-function": [(3, None)],
    "flex-function-failed": [(lambda b, h, q, kv: TABLE[q, kv], None), (lambda b, h, q, kv: q.missing, None)],
}  # fmt: skip


@pytest.mark.parametrize(("code", "mods"), [(code, mods) for code, all_mods in FAILURES.items() for mods in all_mods])
def test_what_cannot_be_traced_is_one_clear_error(code, mods):
    with pytest.raises(attnc.CompileError) as caught:
        attnc.from_flex(*mods)
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == [code]
    assert caught.value.diagnostics[0].help


def test_the_error_points_at_the_users_line():
    with pytest.raises(attnc.CompileError) as caught:
        attnc.from_flex(branching)
    (label,) = caught.value.diagnostics[0].labels
    assert label.span.text == "q_idx > kv_idx"
    assert label.span.source.name.endswith("test_flex_source.py")


def test_names_that_no_attention_may_have():
    for name in ("mask", "2d", "for", ""):
        with pytest.raises(attnc.CompileError, match="flex-unusable-name"):
            attnc.from_flex(causal, name=name)
