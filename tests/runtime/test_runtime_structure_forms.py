"""Forms of structured products: each is the same as the chain, and what was measured decides which of them runs."""

import copy
import json

import pytest
import torch

from attnc.runtime import tuned
from attnc.runtime.structures import forms
from attnc.runtime.structures.convolutions import ConvProjection
from attnc.runtime.structures.factors import (
    BlockDiagonalProjection,
    DenseProjection,
    LowRankProjection,
    MonarchProjection,
)
from attnc.runtime.structures.sparse import BandedProjection, MaskedProjection
from attnc.runtime.tuned import ProjectionForm, TunedTiles, try_tiles
from attnc.runtime.tuned_store import (
    MalformedTilesError,
    Measured,
    parse_tuned,
    remember_tuned,
    store_path,
    tuned_text,
    use_remembered_tiles,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Use a cache of the test's own."""
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNC_PINNED", raising=False)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    use_remembered_tiles()


def modules():
    """Yield structures whose tiles are of all kinds: in step, padded, gathered, with rows that have no entry."""
    yield BlockDiagonalProjection(24, 36, 4)
    yield MonarchProjection(24, 36, 4)
    yield MonarchProjection(36, 24, 6)
    yield MonarchProjection(35, 28, 7)
    yield BandedProjection(24, 24, 3)
    yield BandedProjection(50, 131, 2)
    yield MaskedProjection(40, 30, lambda at: at.i >= at.j)
    yield MaskedProjection(64, 64, lambda at: at.i // 16 == at.j // 16)
    yield MaskedProjection(48, 64, lambda at: (at.i - at.j) % 4 == 0)
    yield MaskedProjection(30, 30, lambda at: ((at.i + 3) * at.j) % 11 < 2)
    yield MaskedProjection(30, 30, lambda at: (at.i % 5 == 2) & (at.j > 3))
    for kernel, stride, causal in (
        (1, 1, False),
        (3, 1, False),
        (4, 1, True),
        (3, 2, False),
        (5, 3, True),
        (2, 4, False),
    ):
        yield ConvProjection(6, 10, kernel, stride, causal=causal)


def using(module, form):
    return try_tiles({module.measured_as: ProjectionForm(form)})


def results(module, x, form, upstream, **options):
    with using(module, form):
        out = module(x)
        return out, *torch.autograd.grad(
            out, [x, *module.parameters()], upstream[: out.shape[0], : out.shape[1]], **options
        )


@pytest.mark.parametrize("tokens", [1, 7, 129])
def test_every_form_computes_the_same(tokens):
    torch.manual_seed(0)
    for module in modules():
        module = module.double()
        x = torch.randn(2, tokens, module.in_features, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(2, tokens, module.out_features, dtype=torch.float64)
        names = module.table(CPU).names()
        right = results(module, x, names[0], upstream)
        assert type(right[0].grad_fn).__name__ != "_ByFormBackward"
        for form in names[1:]:
            if form == "kernel":
                continue
            found = results(module, x, form, upstream)
            assert "_ByForm" in found[0].grad_fn.name() or "_ByForm" in str(found[0].grad_fn.next_functions), form
            for one, other in zip(found, right, strict=True):
                torch.testing.assert_close(one, other, msg=lambda text, of=(module, form): f"{of}: {text}")
            with torch.no_grad(), using(module, form):
                torch.testing.assert_close(module(x), right[0])


def test_second_derivatives_transforms_and_batches_of_gradients():
    torch.manual_seed(0)
    for module in modules():
        module = module.double()
        x = torch.randn(2, 5, module.in_features, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn(2, 5, module.out_features, dtype=torch.float64)
        leaves = [x, *module.parameters()]
        chain, *others = module.table(CPU).names()
        rights = None
        for form in (chain, *(one for one in others if one != "kernel")):
            first = results(module, x, form, upstream, create_graph=True)
            found = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
            rights = rights or found
            for one, other in zip(found, rights, strict=True):
                torch.testing.assert_close(one, other)
            with using(module, form):
                out = module(x)
                tangent = torch.randn_like(x)
                torch.testing.assert_close(torch.func.jvp(module, (x.detach(),), (tangent,))[1], module(tangent))
                torch.testing.assert_close(torch.func.vmap(module)(x[None].detach())[0], out)


def test_half_precision_autocast_strides_and_empty_batches():
    torch.manual_seed(0)
    for module in modules():
        for form in module.table(CPU).names():
            for dtype in (torch.float16, torch.bfloat16):
                half = copy.deepcopy(module).to(dtype)
                x = torch.randn(5, 2, module.in_features).transpose(0, 1).to(dtype).requires_grad_()
                with using(module, form):
                    found = half(x)
                    found.float().sum().backward()  # an upstream gradient without strides
                right = copy.deepcopy(half).double()(x.detach().double())
                torch.testing.assert_close(found.double(), right, atol=0.05, rtol=0.05)
                assert found.dtype is x.grad.dtype is dtype
            with using(module, form), torch.autocast("cpu", dtype=torch.bfloat16):
                out = module(torch.randn(3, 4, module.in_features))
                out.float().sum().backward()
            assert out.dtype is torch.bfloat16
            assert all(one.grad.dtype is torch.float32 for one in module.parameters())
            if not module.keeps_positions:
                with using(module, form):
                    assert module(torch.randn(0, 3, module.in_features)).shape == (0, 3, module.out_features)


def test_names_are_those_that_explanations_know():
    for module in (*modules(), DenseProjection(4, 4), LowRankProjection(4, 4, 2)):
        structure, table = module.structure, module.table(CPU)
        if structure in forms.ALONE:
            assert forms.forms_apply(structure, torch.empty(1)) is False
            continue
        assert table.names() == (forms.CHAINS[structure], *forms.OTHERS[structure])
        assert table.default("cpu") == forms.ON_CPU[structure] in table.names()
        assert table.default("cuda") == forms.CHAINS[structure]


@pytest.fixture
def taken(monkeypatch):
    """Return a list of the forms that run."""
    found = []
    named = forms.FormTable.named

    def watch(table, name):
        found.append(name)
        return named(table, name)

    monkeypatch.setattr(forms.FormTable, "named", watch)
    return found


def entry(module, form, tokens=64, **changes):
    fields = {
        "kernel": module.measured_as,
        "device": tuned.device_name(CPU, True), "versions": tuned.versions_of(program=True),
        "dtype": "float32", "head_size": module.in_features, "value_size": module.out_features,
        "queries": tokens, "keys": tokens,
    }  # fmt: skip
    return TunedTiles(**{**fields, **changes}, tiles=ProjectionForm(form))


def test_what_was_measured_decides(taken):
    module, x = MonarchProjection(24, 36, 4), torch.randn(70, 24)
    module(x)
    assert taken == ["bmms of strips"], "nothing was measured"
    remember_tuned(
        [Measured(entry(module, "2 bmms"), 1.0, 2.0), Measured(entry(module, "bmms of strips", 4096), 1.0, 1.0)]
    )
    for tokens in (70, 10_000):
        module(torch.randn(tokens, 24))
    assert taken[1:] == ["2 bmms", "bmms of strips"]
    MonarchProjection(24, 36, 2)(x)
    MonarchProjection(36, 36, 4)(torch.randn(70, 36))
    assert taken[3:] == ["bmms of strips"] * 2, "of other structures and sizes"


@pytest.mark.parametrize("change", [{"device": "another"}, {"versions": "torch 0"}, {"dtype": "bfloat16"}])
def test_foreign_entries_are_left_alone(change, taken):
    module = BlockDiagonalProjection(24, 36, 4)
    remember_tuned([Measured(entry(module, "bmm", **change))])
    module(torch.randn(70, 24))
    assert taken == ["placed bmm"]


def test_a_form_that_is_none_here_is_the_chain_and_broken_files_are_left_alone(taken):
    module, x = BlockDiagonalProjection(24, 36, 4), torch.randn(70, 24)
    for form in ("of the future", "kernel"):  # no kernel runs on a CPU
        with using(module, form):
            torch.testing.assert_close(module(x), module.chain(x, module.blocks))
    path = store_path(tuned.device_name(CPU, True))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tuned_text([Measured(entry(module, "bmm"))]).replace('"bmm"', '"os.system()"'))
    tuned.forget_tuned()
    with pytest.warns(UserWarning, match="cannot be read"):
        module(x)
    assert taken[2:] == ["placed bmm"]


def test_entries_are_written_and_read(monkeypatch):
    found = Measured(entry(MonarchProjection(24, 36, 4), "bmms of strips"), 1.0, 2.0, "2026-11-29")
    text = tuned_text([found])
    assert parse_tuned(text) == [found]
    assert json.loads(text)["entries"][0]["kernel"] == "projection monarch blocks=4"
    for wrong in ('""', "3", '"A"', '"a(b)"', f'"{"a" * 41}"'):
        with pytest.raises(MalformedTilesError, match='"form" is'):
            parse_tuned(text.replace('"bmms of strips"', wrong))


def test_pinned_modules_ask_nobody(monkeypatch, taken):
    module = BlockDiagonalProjection(24, 36, 4)
    remember_tuned([Measured(entry(module, "bmm"))])
    monkeypatch.setenv("ATTNC_PINNED", "1")
    module(torch.randn(70, 24))
    assert taken == ["placed bmm"]


@pytest.mark.slow
def test_compiled_projections_take_the_chain_on_a_cpu(taken):
    for module in (MonarchProjection(24, 36, 4), BandedProjection(24, 36, 3), ConvProjection(24, 36, 3)):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        x = torch.randn(2, 5, 24, requires_grad=True)
        torch.testing.assert_close(compiled(x), module(x))
        compiled(x).sum().backward()
    assert len(taken) == 3


@pytest.mark.slow
def test_compiled_projections_take_the_operator_where_it_was_measured(monkeypatch):
    from attnc.runtime.structures import projection

    monkeypatch.setenv("ATTNC_TARGET", "triton")
    monkeypatch.setattr(projection, "forms_apply", lambda structure, x: True)
    for module in (MonarchProjection(24, 32, 4), BlockDiagonalProjection(24, 32, 4)):
        seen = []

        def look(graph, example, seen=seen):
            seen += [str(node.target) for node in graph.graph.nodes]
            return graph

        x = torch.randn(2, 5, 24, requires_grad=True)
        with using(module, "kernel"):
            torch._dynamo.reset()
            torch.compile(module, backend=look, fullgraph=True, dynamic=True)(x)
            assert any(name.startswith("attnc.") for name in seen), seen
            torch._dynamo.reset()
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
            for tokens in (5, 7):
                x = torch.randn(2, tokens, 24, requires_grad=True)
                out = compiled(x)
                torch.testing.assert_close(out, x @ module.to_dense().T)
                found = torch.autograd.grad(out.sum(), [x, *module.parameters()])
                right = torch.autograd.grad(module(x).sum(), [x, *module.parameters()])
                for one, other in zip(found, right, strict=True):
                    torch.testing.assert_close(one, other)
