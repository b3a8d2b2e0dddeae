"""What `explain` says of plans with several passes and other orders of positions, against sums over every pair."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from attnc.algebra.tiles import derive_tiles
from attnc.bench.cases import square
from attnc.blockwise import mask_blocks
from attnc.checking import check_source
from attnc.explanation import explain_plan
from attnc.explanation_plan import layout_reason, numbering
from attnc.explanation_text import lay_out
from attnc.plan.choose import plan_attention, with_passes
from attnc.source import SourceFile

STRIDED = "attention a { mask causal and (i - j < 16 or (i - j) % 16 == 0) }"
FIXED = "attention a { mask causal and (i // 128 == j // 128 or j % 128 >= 120) }"
PACKED = "attention a { input doc: int[B, M] sorted\n mask causal and same(doc) }"


def plan_of(text, length=8192):
    attention = check_source(SourceFile("p.attn", text), complete=True).program.attentions[0]
    return plan_attention(attention, length=length)


def explained(plan, length=700):
    return explain_plan(plan, length=length, heads=2, head_size=16)


def words(explanation):
    console = Console(file=io.StringIO(), width=200)
    for part in lay_out(explanation):
        console.print(part, markup=False)
    return console.file.getvalue()


def permuted(one, length, index):
    """Return the positions of each class, or of all runs, in order."""
    layout = getattr(one.layout, index)
    positions = range(length)
    if layout.kind.value == "residue":
        first = layout.first
        return [
            [p for p in positions if p % layout.period == (c + first) % layout.period] for c in range(layout.period)
        ]
    if layout.kind.value == "runs":
        return [[p for p in positions if layout.first <= p % layout.period < layout.first + layout.length]]
    return [list(positions)]


def brute_force(attention, one, length, size):
    """Count tiles of one pass by looking at every pair in the layout's order."""
    own = replace(attention, mask=one.mask)
    allowed = torch.cat([block.allowed[0, 0] for block in mask_blocks(own, square(length, heads=2).sizes())])
    full = partial = empty = 0
    for queries, keys in zip(permuted(one, length, "query"), permuted(one, length, "key"), strict=True):
        block = allowed[queries][:, keys]
        for rows in block.split(size):
            for pairs in rows.split(size, 1):
                full += bool(pairs.all())
                partial += bool(pairs.any()) and not bool(pairs.all())
                empty += not bool(pairs.any())
    return full, partial, empty, int(allowed.sum())


@pytest.mark.parametrize(
    "text",
    [
        STRIDED,
        FIXED,
        "attention a { mask abs(i - j) < 300 and (i - j) % 7 == 3 }",
        "attention a { mask causal and j % 64 == 5 }",
        "attention a { mask i % 32 < 4 and j <= i }",
    ],
)
def test_tiles_and_pairs_of_every_pass_are_those_of_every_pair(text):
    plan = plan_of(text)
    assert any(not one.layout.is_plain for one in plan.passes)
    length = 700
    explanation = explained(plan, length)
    total = 0
    for one, cost in zip(plan.passes, explanation.passes, strict=True):
        full, partial, empty, pairs = brute_force(plan.attention, one, length, 128)
        assert (cost.tiles.full, cost.tiles.partial, cost.tiles.empty) == (full, partial, empty)
        assert cost.pairs == pairs
        assert cost.pairs_computed == (full + partial) * 128 * 128
        total += pairs
    assert explanation.pairs == total
    sums = [sum(getattr(cost.tiles, kind) for cost in explanation.passes) for kind in ("full", "partial", "empty")]
    assert [explanation.tiles.full, explanation.tiles.partial, explanation.tiles.empty] == sums
    assert explanation.waste == sum(cost.pairs_computed for cost in explanation.passes) / total


@pytest.mark.parametrize("text", [STRIDED, FIXED])
def test_long_sequences_are_counted_by_tensors_as_by_walking(text, monkeypatch):
    plan = plan_of(text)
    walked = explained(plan, 3000)
    monkeypatch.setattr("attnc.explanation_counts.MOST_WALKED", 0)
    assert explained(plan, 3000).passes == walked.passes


def test_the_derivation_of_a_split_is_told():
    plan = plan_of(STRIDED.replace("16", "128"))
    explanation = explained(plan, 8192)
    found = json.loads(json.dumps(explanation.as_json()))
    assert [(one["layout"], one["mask"]) for one in found["passes"]] == [
        ("identity", "j <= i and i - j < 128"),
        ("residue(128)", "j <= i and (i - j) % 128 == 0 and i - j >= 128"),
    ]
    assert found["plan"]["proven_disjoint"] is True
    assert found["plan"]["weighed_at"] == 8192
    assert len(found["plan"]["choices"]) == len(plan.choices) > 1
    assert [one["relative"] for one in found["plan"]["choices"]] == sorted(
        c.cost / plan.choices[0].cost for c in plan.choices
    )
    text = words(explanation)
    assert "sets prove that no pair is in two of them and none in neither" in " ".join(text.split())
    assert "`(i - j) % 128` is 0 for all its pairs" in text
    plain = next(one for one in plan.choices if len(one.passes) == 1)
    relative = plain.cost / plan.choices[0].cost
    assert relative > 3
    line = next(line for line in text.splitlines() if line.rstrip().endswith("plain order"))
    assert line.split() == ["rejected", f"{plain.cost / 1e6:.2f}", "M", f"{relative:.2f}", "x", "plain", "order"]
    assert "launches and merges" in text


def test_parts_that_sets_cannot_tell_apart_are_disjoint_by_construction():
    plan = plan_of(STRIDED)
    text = words(explained(replace(plan, proven_disjoint=False)))
    assert "disjoint by construction" in text
    assert explained(replace(plan, proven_disjoint=False)).as_json()["plan"]["proven_disjoint"] is False
    assert explained(plan_of("attention a { mask causal }")).as_json()["plan"]["proven_disjoint"] is None


def test_a_plan_without_rivals_says_why():
    assert "compute 1.0" in words(explained(plan_of("attention a { mask i - j < 4000 }")))
    window = plan_of("attention a { mask abs(i - j) < 9 }")
    assert "no congruence of" in words(explained(window))
    asked = plan_of("attention a { mask causal and (i - j) % 8 == 0\n decompose permute(residue(8)) }")
    assert "the pattern's `decompose` statement asks for this" in words(explained(asked))
    assert "a library call" in words(explained(plan_of("attention a { mask causal }")))


def test_summaries_are_a_prepass():
    plan = plan_of(PACKED)
    tiles = derive_tiles(plan.attention, summaries=True)
    summed = replace(plan, passes=(replace(plan.passes[0], tiles=tiles),))
    explanation = explained(summed, 512)
    found = explanation.as_json()
    (prepass,) = found["prepasses"]
    assert prepass["input"] == "doc"
    assert set(prepass["tables"]) <= {"doc.start", "doc.stop", "doc.full_start", "doc.full_stop"}
    assert "doc.start" in prepass["tables"]
    assert prepass["bytes"] == 4 * len(prepass["tables"]) * 512
    assert found["pairs"] is found["passes"][0]["pairs_computed"] is found["tiles"]["full"] is None
    assert "`doc.start`: the first key that a tile touches, by its first row" in words(explanation)
    assert explained(plan_of("attention a { mask causal }")).prepasses == ()


def test_coordinates_are_said_in_formulas():
    shifted = plan_of("attention a { mask abs(i - j) < 3000 and (i - j) % 7 == 3 }").passes[0].layout
    assert layout_reason(shifted).startswith("`(j - i) % 7` is 4 for all its pairs")
    assert "n * 7 + c" in numbering(shifted)
    fixed = plan_of(FIXED).passes[1].layout
    assert "`j % 128` is 120 .. 127 for all its pairs" in layout_reason(fixed)
    local = 8 * 5 + 3
    assert "key number n is position n // 8 * 128 + n % 8 + 120" in numbering(fixed)
    assert eval("n // 8 * 128 + n % 8 + 120", {"n": local}) == 5 * 128 + 123
    assert numbering(plan_of("attention a { mask causal }").passes[0].layout) == ""


def test_parts_given_by_hand_are_explained_like_found_ones():
    plan = plan_of(STRIDED)
    again = with_passes(plan, ((one.mask, one.layout) for one in plan.passes))
    assert explained(again).passes == explained(plan).passes


def test_extremes_are_a_prepass():
    found = explained(plan_of("attention a { input ids: int[B, M]\n mask causal and ids[b, i] == ids[b, j] }"), 512)
    (ids,) = found.as_json()["prepasses"]
    assert ids["tables"] == ["ids.greatest_1x64", "ids.least_1x64"]
    assert ids["bytes"] == 2 * 8 * 8
    assert ids["work"] == "elements of ids"
    assert "`ids.least_1x64`: the least (all) of each block of 64 along dimension 1" in words(found)


def test_long_rows_are_named():
    text = " ".join(words(explained(plan_of("attention a { mask window(33) or globals(2) }"))).split())
    assert "The rows at positions 0 .. 1 have many more keys than the others" in text
    assert "many more keys" not in words(explained(plan_of("attention a { mask causal }")))


@pytest.mark.parametrize(
    ("mask", "number", "text", "pairs"),
    [
        ("causal and (i - j < 70 or j < 5)\n decompose split(j < 5)", 2,
         "a window of 69 before and 0 behind each query of positions from 5 on",
         {"rows": (5, None), "keys": (5, None), "window": (69, 0)}),
        ("causal or j < 66\n decompose split(j < 66)", 2, "causal attention of positions from 66 on",
         {"rows": (66, None), "keys": (66, None), "window": (-1, 0)}),
        ("j < 66 or i == j\n decompose split(j < 66)", 1, "a rectangle of all queries and keys 0 .. 65",
         {"rows": (0, None), "keys": (0, 66), "window": (-1, -1)}),
        ("i - j < 70 or j == 3 + i // 2\n decompose split(i - j < 70)", 1,
         "a window of 69 before and all behind each query",
         {"rows": (0, None), "keys": (0, None), "window": (69, -1)}),
    ],
)  # fmt: skip
def test_a_part_that_a_library_may_compute_is_named(mask, number, text, pairs):
    found = explained(plan_of(f"attention a {{ mask {mask} }}"))
    sentence = f"On a GPU PyTorch's FlashAttention computes it, {text}, where `attnc tune`"
    assert sentence in " ".join(words(found).split())
    told = [one["library_if_tuned"] for one in found.as_json()["passes"]]
    assert told[number - 1] == pairs
    assert told[2 - number] is None
    forms = [one["form"] for one in found.as_json()["passes"]]
    is_causal = pairs["window"] == (-1, 0)
    assert forms[number - 1] == ("library" if is_causal else "softmax")
    assert ("it is the library's causal attention of the positions from 66 on." in words(found)) == is_causal
