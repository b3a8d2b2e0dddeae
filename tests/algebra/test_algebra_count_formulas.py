"""Numbers of pairs as formulas: against counts at many lengths, by sets and by brute force."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from brief_ir import attention
from expressions import masks
from hypothesis import given, settings
from hypothesis import strategies as st
from tile_checks import dense, environment

from attnc.algebra.count_formulas import NoFormula, PairsFormula, pairs_formula
from attnc.algebra.counting import count_pairs
from attnc.checking import check_source
from attnc.files import read_pattern
from attnc.source import SourceFile

ROOT = Path(__file__).parents[2]


def pattern(text):
    source = SourceFile("p.attn", f"attention p {{\n{text}\n}}\n", Path("p.attn"))
    return check_source(source).program.attentions[0]


def brute_force(example, length, heads):
    counts = [
        sum(dense(example, environment(example, length, length, heads=heads, head=head)).values())
        for head in range(heads)
    ]
    return Fraction(sum(counts), heads)


def check(found, count, lengths):
    """Compare formula, text and code with counts where they claim to hold."""
    checked = 0
    for length in lengths:
        if length < found.least:
            continue
        value = found.quasi.at(length)
        if value is not None:
            assert value == count(length), f"N = {length}: {found}"
        if found.holds_at(length):
            assert Fraction(eval(found.code, {"N": length})) == pytest.approx(float(count(length)), rel=1e-12)
            checked += 1
    return checked


@given(masks(tables=False, hashes=False, depth=2), st.sampled_from(["end", "start", "at"]))
@settings(max_examples=40)
def test_random_affine_masks(mask, align):
    example = replace(attention(align=align, shift="3"), mask=mask)
    found = pairs_formula(example, 12, 2)
    if isinstance(found, PairsFormula):
        counts = {length: brute_force(example, length, 2) for length in range(1, 16)}
        check(found, counts.__getitem__, counts)
        if found.derived and 1 < found.least <= 15 and found.quasi.at(found.least - 1) is not None:
            assert found.residue is not None or found.quasi.at(found.least - 1) != counts[found.least - 1]


FORMULAS = [
    ("mask causal", "(N^2 + N) / 2", "for every N"),
    ("", "N^2", "for every N"),
    ("mask false", "0", "for every N"),
    ("mask causal and i - j < 1024", "1024 N - 523776", "for N >= 1023"),
    ("mask causal and (i - j < 1024 or j < 4)", "1028 N - 527878", "for N >= 1027"),
    ("mask window(257) or globals(1)", "515 N - 66306", "for N >= 257"),
    ("mask causal and dilated(64, 16)", "64 N - 32256", "for N >= 1008"),
    ("mask causal; align at(3)", "(N^2 + 7 N - 12) / 2", "for N >= 3"),
    ("mask causal; align at(M - N + 2)", "(N^2 + 5 N - 6) / 2", "for N >= 2"),
    ("mask causal and j >= M - 5", "15", "for N >= 5"),
    ("mask causal and (i - j < 100 or h % 2 == 0)", "(N^2 + 201 N - 9900) / 4", "for N >= 99"),
    ("mask causal and (i - j) % 64 == 0", "(N^2 + 64 N - s^2 + 64 s) / 128 with s = N % 64", "for every N"),
    ("mask chunk(128)", "128 N + s^2 - 128 s with s = N % 128", "for every N"),
    (
        "mask causal and (i // 128 == j // 128 or j % 128 >= 120)",
        None,
        "for every N",
    ),
    ("mask causal and i - j < 100000", "100000 N - 4999950000", "for N >= 99999"),
    ("mask (i - j) % 4096 == 0", "N^2 / 4096", "for every N with N % 4096 == 0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "formula", "lengths"), FORMULAS)
def test_formulas(text, formula, lengths):
    example = pattern(text)
    found = pairs_formula(example, 8192)
    written = f"{found.text} with {found.where}" if found.where else found.text
    assert formula is None or written == formula
    assert found.range_text() == lengths
    sample = [1, 2, 3, 7, 64, 100, 127, 128, 129, 250, 777, 1022, 1023, 1024, 1025, 1027, 1500, 2049, 4096, 5000]
    sample += [found.least, found.least + 1] if found.residue is None else [4096, 8192]
    assert check(found, lambda length: count_pairs(example, length, length), sample)


LARGE = [
    ("mask chunk_causal(8192)", 8192, "(N^2 + 8192 N) / 2", "for every N with N % 8192 == 0"),
    ("mask chunk_causal(8192)", 10000, "(N^2 + 8192 N - 11542272) / 2", "for every N with N % 8192 == 1808"),
    ("mask chunk(8192)", 5000, "8192 N - 15960000", "for every N with N % 8192 == 5000"),
    ("mask causal and (i - j) % 8192 == 0", 8192, "(N^2 + 8192 N) / 16384", "for every N with N % 8192 == 0"),
    ("mask grid_near(4096, 2)", 8192, "(51185 N - 251584512) / 2048", "for N >= 8192 with N % 4096 == 0"),
]


@pytest.mark.parametrize(("text", "length", "formula", "lengths"), LARGE)
def test_large_periods_are_written_for_the_class_of_the_length(text, length, formula, lengths):
    example = pattern(text)
    found = pairs_formula(example, length)
    assert (found.text, found.where, found.range_text()) == (formula, "", lengths)
    sample = [length, length + found.period, length + 3 * found.period]
    assert check(found, lambda one: count_pairs(example, one, one), sample) == 3


SMALL = {
    "dilated": {"taps": 3, "gap": 2},
    "dilated_wide": {"taps": 3, "gap": 5},
    "fixed": {"stride": 6, "summary": 2},
    "longformer": {"radius": 3, "count": 2},
    "neighborhood": {"width": 6, "radius": 1},
    "residue": {"stride": 4},
    "sinks_window": {"width": 5, "count": 3},
    "strided": {"stride": 4},
    "window": {"width": 5},
    "causal": {},
}


EXAMPLES = {
    "streaming": {"window": 5, "sink_tokens": 2},
    "longformer": {"radius": 3, "cls": 2},
    "neighborhood": {"width": 5, "radius": 2},
    "sparse_transformer": {"stride": 5, "summary": 2},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_with_small_parameters_at_every_length(name):
    source = read_pattern(ROOT / "examples" / f"{name}.attn")
    for example in check_source(source, EXAMPLES[name], complete=True).program.attentions:
        found = pairs_formula(example, 40)
        assert isinstance(found, PairsFormula)
        counts = {length: brute_force(example, length, 1) for length in range(1, 45)}
        assert check(found, counts.__getitem__, counts) == 45 - found.least


@pytest.mark.parametrize("name", SMALL)
def test_patterns_with_small_parameters_at_every_length(name):
    source = read_pattern(ROOT / "attnc" / "bench" / "patterns" / f"{name}.attn")
    example = check_source(source, SMALL[name], complete=True).program.attentions[0]
    found = pairs_formula(example, 40)
    assert isinstance(found, PairsFormula)
    assert found.derived
    assert found.residue is None
    lengths = range(1, 60)
    counts = {length: brute_force(example, length, 1) for length in lengths}
    assert check(found, counts.__getitem__, lengths) == 60 - found.least
    assert found.least == 1 or found.quasi.at(found.least - 1) != counts[found.least - 1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "attnc" / "bench" / "patterns").glob("*.attn")), ids=lambda path: path.stem
)
def test_patterns_as_they_are(path):
    example = check_source(read_pattern(path), complete=True).program.attentions[0]
    found = pairs_formula(example, 8192)
    if path.stem == "documents":
        assert found == NoFormula("the data of a call decides how many pairs are allowed")
        return
    assert found.least <= 1100
    assert check(found, lambda length: count_pairs(example, length, length), (300, 1029, 1500, 2047, 2048, 3001)) >= 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("input n: int; mask j < n", "the data of a call decides how many pairs are allowed"),
        ("mask random_blocks(16, 2, 1)", "the mask is not affine, and its pairs have no such formula"),
        ("mask i * j > 3", "the mask is not affine, and its pairs have no such formula"),
    ],
)
def test_what_has_no_formula_says_why(text, reason):
    assert pairs_formula(pattern(text), 8192) == NoFormula(reason)


def test_groups_and_heads_take_part():
    example = pattern("mask causal and i - j < 8 * (h // g + 1)")
    found = pairs_formula(example, 100, 8, group=2)
    assert found.least == 31
    assert check(found, lambda length: count_pairs(example, length, length, 8, group=2), range(31, 60)) == 29
