"""Adapters of libraries call them as documented, compute what the pattern says, or refuse."""

from dataclasses import replace
from pathlib import Path

import library_fakes
import pytest
import torch

from attnc.bench import cases
from attnc.bench.cases import Shape, make_data, make_tensors
from attnc.bench.checking import check_gradients, check_output, true_gradients, true_rows
from attnc.bench.contender import Case, Unavailable
from attnc.bench.libraries import library_contender
from attnc.bench.names import LIBRARIES, NOT_INSTALLED, Mode
from attnc.bench.run import Settings, compare
from attnc.compiler import import_compiled, plan_source
from attnc.files import read_pattern
from attnc.source import SourceFile

PATTERNS = Path(cases.__file__).parent / "patterns"
SHAPE = Shape(2, 4, 2, 96, 96, 16, 16)
DOCUMENTS = "input doc: int[B, M] sorted\n"
TEXTS = {
    "full": "",
    "scaled": "mask causal\n scale 0.5",
    "causal": "mask causal",
    "window": "mask causal and i - j < 10",
    "wide_window": "mask causal and i - j < 500",
    "both_sides": "mask window(7)",
    "before_only": "mask i - j < 10",
    "dilated": "mask causal and dilated(5, 4)",
    "residue": "mask causal and (i - j) % 8 == 0",
    "documents": f"{DOCUMENTS} mask causal and same(doc)",
    "full_documents": f"{DOCUMENTS} mask same(doc)",
    "window_documents": f"{DOCUMENTS} mask causal and i - j < 10 and same(doc)",
    "softcap": "mask causal and i - j < 20\n score softcap(s, 2.0)",
    "alibi": "mask causal\n learned slope: float[H] = exp2(-8 * (h + 1) / H)\n score s - slope[h] * (i - j)",
    "alibi_documents": f"""{DOCUMENTS} mask causal and same(doc)
        learned slope: float[H] = exp2(-8 * (h + 1) / H)
        score s - slope[h] * (i - j)""",
    "image": """let line = clamp(i // 16, 1, M // 16 - 2)
        let column = clamp(i % 16, 1, 14)
        mask abs(j // 16 - line) <= 1 and abs(j % 16 - column) <= 1""",
    "sinks": "mask causal and (i - j < 10 or j < 2)",
    "bias": "learned bias: float[H, 9] = 0.1 * d1\n score s + bias[h, clamp(i - j, 0, 8)]",
}
ABLE = {
    "flash-attn": {
        "full", "scaled", "causal", "window", "wide_window", "both_sides", "before_only", "documents",
        "full_documents", "window_documents", "softcap", "alibi",
        "alibi_documents",
    },
    "xformers": {
        "full", "scaled", "causal", "window", "wide_window", "both_sides", "before_only", "documents",
        "full_documents", "window_documents",
    },
    "natten": {"scaled", "causal", "window", "wide_window", "dilated", "residue", "image"},
    "flashinfer": {
        "full", "scaled", "causal", "window", "wide_window", "documents", "full_documents", "window_documents",
        "softcap",
    },
    "fla": {"scaled", "causal", "documents"},
}  # fmt: skip


def case_of(text, shape=SHAPE):
    attention = plan_source(SourceFile("p.attn", f"attention a {{ {text} }}")).plans[0].attention
    data = make_data(attention, shape, seed=3, dtype=torch.float32)
    if "doc" in data:  # of several lengths, each row its own
        ids = torch.tensor([[0] * 30 + [1] * 1 + [4] * 65, [2] * 96])
        data["doc"] = ids[: shape.batch, : shape.keys]
    return Case(attention, shape, *make_tensors(shape, seed=3, dtype=torch.float32), data)


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, batch=1, kv_heads=4)], ids=["grouped", "plain"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_adapters_are_right_or_refuse(name, text, shape, monkeypatch):
    library_fakes.install_all(monkeypatch)
    case = case_of(TEXTS[text], shape)
    if text not in ABLE[name]:
        with pytest.raises(Unavailable, match=r"it has no|moved inside"):
            library_contender(name, case)
        return
    contender = library_contender(name, case)
    assert contender.name == name
    assert check_output(contender, case, true_rows(case)).right
    assert (contender.build_seconds is not None) == ("documents" in text or (name == "flashinfer" and shape.batch > 1))


@pytest.mark.parametrize("name", LIBRARIES)
def test_gradients_pass_through_adapters(name, monkeypatch):
    library_fakes.install_all(monkeypatch)
    case = replace(case_of(TEXTS["documents" if name != "natten" else "dilated"]), backward=True)
    if name == "flashinfer":
        with pytest.raises(Unavailable, match="it has no backward pass"):
            library_contender(name, case)
        return
    assert check_gradients(library_contender(name, case), case, true_gradients(case)).right


def test_windows_that_do_not_fit_are_refused(monkeypatch):
    library_fakes.install_all(monkeypatch)
    with pytest.raises(Unavailable, match="must have two keys or more, and fit"):
        library_contender("natten", case_of("mask causal and dilated(5, 25)"))
    with pytest.raises(Unavailable, match="fit into the image"):
        library_contender("natten", case_of(TEXTS["image"], replace(SHAPE, queries=32, keys=32)))


def test_what_fails_or_is_not_there_is_a_reason(monkeypatch):
    case = case_of("mask causal")
    with pytest.raises(Unavailable, match=NOT_INSTALLED):
        library_contender("natten", case)
    library_fakes.install(monkeypatch, "flash_attn")  # an older version, without what is imported
    with pytest.raises(Unavailable, match="it fails: ImportError"):
        library_contender("flash-attn", case)
    with pytest.raises(Unavailable, match="as many queries as keys"):
        library_contender("flash-attn", case_of("mask causal", replace(SHAPE, keys=100)))


@pytest.mark.parametrize("mode", Mode)
def test_libraries_pass_the_gate_before_they_are_timed(mode, monkeypatch):
    library_fakes.install_all(monkeypatch)

    def wrong(*tensors, **options):
        return library_fakes.parallel_attn(*tensors, **options) * 1.01

    library_fakes.install(monkeypatch, "fla.ops.attn.parallel", parallel_attn=wrong)
    compiled = plan_source(read_pattern(PATTERNS / "causal.attn"))
    settings = Settings(torch.device("cpu"), torch.float32, ("fla", "flash-attn", "xformers"), mode, 0.0, least=1)
    found = compare(compiled.plans[0], import_compiled(compiled), SHAPE, settings)
    results = {result.name: result for result in found.results}
    assert all(results[name].timing is not None for name in ("attnc", "flash-attn", "xformers"))
    assert results["fla"].timing is None
    assert results["fla"].problem.startswith("wrong output: error ")
