"""Which patterns have a kernel in Gluon, and which calls take it."""

import pytest
import torch
from gluon_harness import data, module_of, plan_of

from attnc.codegen.gluon_view import unsuitable_for_gluon
from attnc.codegen.render import render_module
from attnc.compiler import compile as compile_file
from attnc.diagnostics import CompileError
from attnc.runtime import tuned
from attnc.runtime.dropout import Dropout
from attnc.runtime.gluon_launch import prefer_template, template_of_environment
from attnc.runtime.tiles import Tiles, assume_target
from attnc.source import SourceFile

CAUSAL = "attention causal { mask causal }"


@pytest.fixture(autouse=True)
def environment_is_read_again():
    yield
    template_of_environment.cache_clear()


UNSUITABLE = {
    "attention a { normalize sigmoid() }": "its weights are not a softmax",
    "attention a { weight 0.5 + 0.1 * (i % 2) }": "its weights have factors",
    "attention a { mask causal and (i - j) % 64 == 0 }": "its queries or keys are not walked in plain order",
    "attention a { mask grid_near(64, 3) }": "its queries or keys are not walked in plain order",
    "attention a { mask random_blocks(64, 2, 1) }": "data decide which tiles of keys are visited",
    "attention a { mask false }": "no key is ever visited",
    "attention a { score 0.1 * (i - j) }": "its score does not depend on queries and keys",
}


@pytest.mark.parametrize("text", UNSUITABLE)
def test_unsuitable_patterns_have_a_reason(text):
    assert unsuitable_for_gluon(plan_of(text)) == UNSUITABLE[text]


def test_an_unsuitable_pattern_is_an_error(tmp_path):
    path = tmp_path / "strided.attn"
    path.write_text("attention strided { mask causal and (i - j) % 64 == 0 }\n")
    with pytest.raises(CompileError) as raised:
        compile_file(path, out=tmp_path / "strided.py", template="gluon")
    text = str(raised.value).replace(str(tmp_path), "")
    assert text == (
        "error[no-gluon-kernel]: `strided` has no kernel in Gluon: its queries or keys are not walked in plain order\n"
        "  --> /strided.attn:1:11\n"
        "   |\n"
        " 1 | attention strided { mask causal and (i - j) % 64 == 0 }\n"
        "   |           ^^^^^^^ this attention\n"
        "help: compile it without `--template gluon`: its Triton kernels run on every target"
    )
    assert not (tmp_path / "strided.py").exists()
    with pytest.raises(ValueError, match="template is 'cute', expected 'tl' or 'gluon'"):
        compile_file(path, template="cute")


def test_the_triton_kernels_are_the_same():
    plan = plan_of(CAUSAL)
    source = SourceFile("test.attn", CAUSAL)
    both = render_module([plan], source=source, gluon=True).splitlines()
    alone = render_module([plan], source=source).splitlines()
    assert "gluon" not in "\n".join(alone)
    rest = iter(both)
    assert all(line in rest for line in alone)  # nothing is left out or moved


def chosen(tensors, out, lse, *, shares=1, dropout=None, target="sm_90"):
    """Return why a call takes the Triton kernel, or nothing where it takes the one in Gluon."""
    from attnc.runtime.gluon_launch import gluon_launch, why_not_gluon
    from attnc.runtime.launch import start_launch

    module, _, name = module_of(CAUSAL)
    tables = {"tiles": vars(module)[f"_{name}_tiles"], "kernel": "causal"}
    with assume_target(target, shares=shares), prefer_template("gluon"):
        numbers = {"scale": None, "precision": None, "base_2": True, "dropout": dropout}
        call = start_launch(*tensors, out, lse, **numbers, **tables)
        described = gluon_launch(call, tiles=vars(module)[f"_{name}_gluon_tiles"], kernel="causal gluon")
        why = why_not_gluon(call)
    assert (described is None) is bool(why)
    return why


def test_calls_that_no_kernel_in_gluon_can_run():
    assert chosen(*data(N=100)) == ""
    assert chosen(*data(N=100, D=128, dtype=torch.bfloat16)) == ""
    assert chosen(*data(N=100), target="sm_100") == "the device is no sm_90"
    assert chosen(*data(N=100, dtype=torch.float32)) == "numbers are float32, not 16-bit"
    assert chosen(*data(N=100, D=80)) == "head sizes are 80 and 80, not both 64 or both 128"
    assert chosen(*data(N=100, D=60)) == "head sizes are 60 and 60, not both 64 or both 128"
    assert chosen(*data(N=100), shares=2) == "programs share the keys of the same rows"
    dropout = Dropout(torch.tensor(1), 1, 2.0)
    assert chosen(*data(N=100), dropout=dropout) == "weights are dropped"
    (query, key, _), out, lse = data(N=100, H=2, G=1)
    repeated = key.expand(1, 2, 100, 64)
    assert chosen((query, repeated, repeated), out, lse) == "a tensor's memory has no descriptor"


def takes_gluon(monkeypatch, template):
    """Tell whether a call takes the kernel in Gluon by itself, with a value of the environment variable."""
    from attnc.runtime.gluon_launch import gluon_launch
    from attnc.runtime.launch import start_launch

    module, _, name = module_of(CAUSAL)
    monkeypatch.setenv("ATTNC_TEMPLATE", template)
    template_of_environment.cache_clear()  # it is read once
    tensors, out, lse = data(N=100)
    with assume_target("sm_90", shares=1):
        tables = {"tiles": vars(module)[f"_{name}_tiles"], "kernel": "causal"}
        call = start_launch(*tensors, out, lse, scale=None, precision=None, base_2=True, **tables)
        return gluon_launch(call, tiles=vars(module)[f"_{name}_gluon_tiles"], kernel="causal gluon")


def test_the_triton_kernel_is_the_default(monkeypatch):
    assert takes_gluon(monkeypatch, "") is None
    assert takes_gluon(monkeypatch, "tl") is None
    assert takes_gluon(monkeypatch, "gluon").tiles == Tiles(128, 128, warps=4, stages=4)


def test_an_entry_that_was_tuned_chooses_the_kernel_in_gluon(monkeypatch):
    tiles = Tiles(128, 64, warps=4, stages=3)
    with tuned.try_tiles({"causal gluon": tiles}):
        assert takes_gluon(monkeypatch, "").tiles == tiles
        assert takes_gluon(monkeypatch, "gluon").tiles == tiles
        assert takes_gluon(monkeypatch, "tl") is None
