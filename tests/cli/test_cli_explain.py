"""What `explain` says, against sums over every pair."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import attnc
from attnc import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
FACTS = {"causal", "nonempty", "symmetric", "contiguous"}


def explain(path, *arguments):
    """Explain the attentions of a file."""
    result = CliRunner().invoke(cli.app, ["explain", "--json", str(path), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return [one for one in json.loads(result.stdout) if one.get("kind") != "layer"]


def test_streaming_at_8192():
    (one,) = explain(EXAMPLES / "streaming.attn", "-n", 8192)
    pairs = sum(min(i + 1, 1024) + min(4, max(0, i - 1023)) for i in range(8192))
    assert one["pairs"] == pairs == 7893498
    assert isinstance(one["pairs"], int)
    assert one["density"] == pairs / 8192**2
    assert one["facts"] == {"causal": True, "nonempty": True, "symmetric": False, "contiguous": False}
    assert one["flops"] == 4 * 64 * 8 * pairs
    assert one["bytes"] == 4 * 8 * 8192 * 64 * 2


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda path: path.stem)
def test_schema_of_every_example(path):
    for one in explain(path, "-n", 300):
        assert set(one) - {"forms", "surroundings"} == {
            "name", "facts", "pairs", "pairs_formula", "density", "tiles", "passes", "plan", "prepasses", "rules",
            "flops", "bytes", "gradients",
        }  # fmt: skip
        assert set(one["facts"]) == FACTS
        assert all(value in (True, False, None) for value in one["facts"].values())
        assert set(one["tiles"]) == {"query", "key", "full", "partial", "empty"}
        assert one["passes"]
        for sweep in one["passes"]:
            assert set(sweep) == {
                "layout", "form", "pairs_computed", "mask", "pairs", "tiles", "long_rows", "library_if_tuned",
            }  # fmt: skip
            assert sweep["form"] in ("softmax", "linear", "chunked", "library")
        assert set(one["plan"]) == {"variants", "weighed_at", "proven_disjoint", "choices"}
        *limits, last = [variant["up_to"] for variant in one["plan"]["variants"]]
        assert last is None
        assert limits == sorted(limits)
        own = next(each for each in one["plan"]["variants"] if (each["up_to"] or 1 << 30) >= 300)
        assert own["layouts"] == [each["layout"] for each in one["passes"]]
        if one["pairs"] is None:
            assert one["density"] is None
            assert one["flops"] is None
        elif "forms" in one and one["forms"][0]["form"] != "pairs":
            assert one["flops"] == one["forms"][0]["flops"] < one["forms"][1]["flops"]
        elif all(sweep["pairs_computed"] is not None for sweep in one["passes"]):
            assert sum(sweep["pairs_computed"] for sweep in one["passes"]) >= one["pairs"]
        assert all(isinstance(rule, str) for rule in one["rules"])


def test_tile_counts_add_up_and_agree_with_brute_force(tmp_path):
    path = tmp_path / "w.attn"
    path.write_text("attention w { mask causal and i - j < 200 }")
    (one,) = explain(path, "-n", 1000)
    tiles = one["tiles"]
    assert tiles["full"] + tiles["partial"] + tiles["empty"] == 8 * 8
    touched = full = 0
    for row in range(8):
        for column in range(8):
            rows = range(row * 128, min(row * 128 + 128, 1000))
            keys = range(column * 128, column * 128 + 128)
            allowed = sum(0 <= i - j < 200 for i in rows for j in keys if j < 1000)
            touched += allowed > 0
            full += allowed == len(rows) * 128
    assert tiles["full"] == full
    assert tiles["full"] + tiles["partial"] == touched
    assert one["passes"][0]["pairs_computed"] == touched * 128 * 128


RAGGED = (
    "mask j <= i + 5000",
    "mask causal",
    "mask j < 5 or j >= M - 30",
    "mask j >= M - 7 or i - j < 100 and causal",
    "mask i < 256 or j < 990",
    "mask i - j < 100 * (h + 1) and causal or j >= M - 40",
)


@pytest.mark.parametrize("statement", RAGGED)
@pytest.mark.parametrize("length", [1, 129, 200, 1000])
def test_a_ragged_last_tile_is_full_where_all_its_real_pairs_are_allowed(statement, length, tmp_path):
    path = tmp_path / "w.attn"
    path.write_text(f"attention w {{ {statement} }}")
    (one,) = explain(path, "-n", length, "--heads", 2)
    mask = attnc.load(path).w_mask(length, length, H=2)
    counts = torch.zeros(2)
    tiles = one["tiles"]
    for rows in mask.split(tiles["query"], 2):
        for pairs in rows.split(tiles["key"], 3):
            counts += torch.stack([pairs.flatten(2).all(-1), pairs.flatten(2).any(-1)]).sum((1, 2))
    full, touched = (counts / 2).tolist()
    assert tiles["full"] == full
    assert tiles["full"] + tiles["partial"] == touched


def test_data_dependent_patterns_have_no_count():
    for name in ("packed", "bert"):
        (one,) = explain(EXAMPLES / f"{name}.attn", "-n", 256)
        assert one["pairs"] is None


def test_masks_that_sets_cannot_count_are_evaluated(tmp_path):
    from attnc.ir.arithmetic import _hash

    path = tmp_path / "h.attn"
    path.write_text("attention h { mask hash(h, i, j) % 3 == 0 }")
    (one,) = explain(path, "-n", 40, "--heads", 3)
    total = sum(_hash((h, i, j)) % 3 == 0 for h in range(3) for i in range(40) for j in range(40))
    assert one["pairs"] == total / 3


def test_heads_that_differ_are_averaged(tmp_path):
    path = tmp_path / "m.attn"
    path.write_text("attention m { mask causal and i - j < (h + 1) * 10 }")
    (one,) = explain(path, "-n", 100, "--heads", 4)
    total = sum(min(i + 1, (h + 1) * 10) for h in range(4) for i in range(100))
    assert one["pairs"] == pytest.approx(total / 4)


def test_pairs_as_a_formula():
    (one,) = explain(EXAMPLES / "streaming.attn", "-n", 8192)
    assert one["pairs_formula"] == {
        "text": "1028 N - 527878",
        "range": "for N >= 1027",
        "python": "(1028 * N - 527878)",
        "least": 1027,
        "period": 1,
        "residue": None,
        "derived": True,
    }
    text = CliRunner().invoke(cli.app, ["explain", str(EXAMPLES / "streaming.attn")]).stdout
    assert "\n  For N = M, pairs(N) = 1028 N - 527878, for N >= 1027.\n" in text
    (one,) = explain(EXAMPLES / "neighborhood.attn", "-n", 1000)
    found = one["pairs_formula"]
    assert found["text"].endswith(" with q = N // 128, s = N % 128")
    assert eval(found["python"], {"N": 1000}) == one["pairs"]
    (one,) = explain(EXAMPLES / "packed.attn", "-n", 1000)
    assert one["pairs_formula"] is None


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda path: path.stem)
def test_formulas_give_the_number_of_pairs(path):
    for length in (1500, 2049):
        for one in explain(path, "-n", length):
            found = one["pairs_formula"]
            if found is not None and found["least"] <= length:
                assert found["residue"] in (None, length % found["period"])
                assert eval(found["python"], {"N": length}) == pytest.approx(one["pairs"])


def test_library_patterns_say_so():
    (one,) = explain(EXAMPLES / "gpt.attn", "-n", 256)
    assert one["passes"][0]["form"] == "library"
    text = CliRunner().invoke(cli.app, ["explain", str(EXAMPLES / "gpt.attn")]).stdout
    assert "scaled_dot_product_attention" in text


def test_text_has_every_part():
    result = CliRunner().invoke(cli.app, ["explain", str(EXAMPLES / "streaming.attn"), "-n", "8192"])
    assert result.exit_code == 0
    for part in (
        "Normal form", "Derivation", "Proofs", "tile visit", "7,893,498", "waste", "FLOPs", "traffic", "at best",
    ):  # fmt: skip
        assert part in result.stdout
    assert "\x1b" not in result.stdout


def test_python_says_the_same():
    (here,) = attnc.explain(EXAMPLES / "streaming.attn", {"window": 100}, length=500)
    (there,) = explain(EXAMPLES / "streaming.attn", "-D", "window=100", "-n", 500)
    assert here == there


def test_long_sequences_are_explained_without_walking_pairs():
    (one,) = explain(EXAMPLES / "streaming.attn", "-n", 1_000_000)
    assert one["pairs"] == sum(min(i + 1, 1024) + min(4, max(0, i - 1023)) for i in range(1_000_000))
