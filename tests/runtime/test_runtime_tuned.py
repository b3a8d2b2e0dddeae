"""Tuned tiles: which a launch takes, for which calls, and what the cache does with files that are not its own."""

import json
import multiprocessing
import warnings
from collections import Counter

import pytest
import torch
from patterns import PATTERNS, attention_of, function_of, inputs_for, module_of, tensors

from attnc.reference.dense import reference
from attnc.runtime import tuned
from attnc.runtime.load import CacheWarning
from attnc.runtime.tiles import Tiles
from attnc.runtime.tuned import LibraryCall, Slabs, TunedTiles, find_tuned, round_length, try_tiles, watch_kernels
from attnc.runtime.tuned_store import (
    MalformedTilesError,
    Measured,
    parse_tuned,
    read_store,
    remember_tuned,
    store_path,
    tuned_text,
    use_remembered_tiles,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Use a cache of the test's own, and forget what earlier ones said."""
    monkeypatch.setenv("ATTNC_CACHE", str(tmp_path))
    monkeypatch.delenv("ATTNC_PINNED", raising=False)
    monkeypatch.setattr(tuned, "_KNOWN", tuned._Known())
    use_remembered_tiles()


def entry(tiles, kernel="causal_self 0", device="interpreter", dtype="float32", queries=64, keys=64, **others):
    versions = tuned.versions_of(isinstance(tiles, Slabs))
    fields = {"device": device, "dtype": dtype, "head_size": 16, "value_size": 16} | others
    return TunedTiles(kernel, versions=versions, queries=queries, keys=keys, tiles=tiles, **fields)


def kernels_of(name, **sizes):
    """Return the identities of the kernels of a forward and a backward pass."""
    query, key, value = tensors(dtype=torch.float32, **sizes)
    with watch_kernels() as asked:
        function_of(name)(query, key, value, **inputs_for(name, query, key)).sum().backward()
    return list(dict.fromkeys(asked))


def look_up(kernel="causal_self 0", lengths=(64, 64), dtype=torch.float32, sizes=(16, 16), program=False):
    return find_tuned(kernel, torch.empty(1, dtype=dtype), sizes, lengths, program=program)


SMALL, LARGE = Tiles(16, 32, 4, 1), Tiles(32, 16, 4, 1)


def test_entries_are_for_one_kernel_type_and_head_size():
    remember_tuned([Measured(entry(SMALL))])
    assert look_up() == SMALL
    assert look_up(kernel="causal_self 1") is None
    assert look_up(dtype=torch.float16) is None
    assert look_up(sizes=(16, 32)) is None
    assert look_up(program=True) is None


def test_a_length_takes_what_was_tuned_for_the_closest_one():
    lengths = [(64, 64, SMALL), (64, 4096, LARGE), (4096, 4096, Tiles(64, 64, 4, 1))]
    remember_tuned([Measured(entry(tiles, queries=queries, keys=keys)) for queries, keys, tiles in lengths])
    assert look_up(lengths=(1, 1)) == SMALL
    assert look_up(lengths=(64, 512)) == SMALL  # the root of 64 * 4096
    assert look_up(lengths=(64, 513)) == LARGE
    assert look_up(lengths=(600, 1 << 20)) == Tiles(64, 64, 4, 1)


@pytest.mark.parametrize(("length", "rounded"), [(1, 1), (2, 2), (3, 4), (90, 64), (91, 128), (8192, 8192)])
def test_lengths_are_rounded_to_powers_of_two(length, rounded):
    assert round_length(length) == rounded


def test_an_older_version_s_entries_are_left_alone():
    remember_tuned([Measured(TunedTiles("k 0", "interpreter", "triton 0.1", "float32", 16, 16, 64, 64, SMALL))])
    assert look_up(kernel="k 0") is None


def test_what_was_ranked_for_a_target_serves_its_devices_until_they_are_measured():
    remember_tuned([Measured(entry(SMALL, device="cpu"))])
    tuned.use_tuned([entry(SMALL, device="sm_90", kernel="other 0")])
    assert look_up() == SMALL  # `cpu` is the interpreter's target
    assert look_up(program=True) is None
    assert look_up(kernel="other 0") is None
    remember_tuned([Measured(entry(LARGE))])
    assert look_up() == LARGE


def test_pinned_modules_take_what_they_were_written_with(monkeypatch):
    remember_tuned([Measured(entry(SMALL)), Measured(entry(SMALL, kernel="other 0"))])
    tuned.use_tuned([entry(LARGE)])
    assert look_up() == LARGE  # a module's own come first
    assert look_up(kernel="other 0") == SMALL
    monkeypatch.setenv("ATTNC_PINNED", "1")
    assert look_up() == LARGE
    assert look_up(kernel="other 0") is None


@pytest.mark.parametrize("name", ["causal", "strided", "packed", "relative"])
def test_kernels_run_with_tuned_tiles(name, monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    sizes = {"B": 1, "H": 2, "G": 1, "N": 70, "M": 90}
    kernels = kernels_of(name, **sizes)
    assert len(kernels) >= 3  # outputs, gradients of queries, gradients of keys and values
    remember_tuned(Measured(entry(SMALL, kernel=kernel, queries=64, keys=128)) for kernel in kernels)
    launched = watch_tiles(monkeypatch)
    query, key, value = tensors(dtype=torch.float32, **sizes)
    inputs = inputs_for(name, query, key)
    out = function_of(name)(query, key, value, **inputs)
    found = torch.autograd.grad(out.sum(), (query, key, value))
    assert launched
    assert all(tiles == SMALL for tiles in launched)
    exact = reference(attention_of(PATTERNS[name]), query, key, value, inputs, dtype=torch.float64)
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-5)
    for mine, right in zip(found, torch.autograd.grad(exact.sum(), (query, key, value)), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def watch_tiles(monkeypatch):
    """Return a list that learns with which tiles kernels are launched."""
    from attnc.runtime import gradient_launch, launch

    found = []
    for module in (launch, gradient_launch):
        original = module.tiles_of_launch

        def watched(*arguments, original=original, **options):
            found.append(original(*arguments, **options))
            return found[-1]

        monkeypatch.setattr(module, "tiles_of_launch", watched)
    return found


def test_few_rows_have_tiles_of_their_own(monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    kernel = kernels_of("causal", N=8, M=90)[0]
    remember_tuned([Measured(entry(LARGE, kernel=kernel, queries=8, keys=64))])
    launched = watch_tiles(monkeypatch)
    for queries in (16, 17):
        query, key, value = tensors(dtype=torch.float32, N=queries, M=90, grad=False)
        function_of("causal")(query, key, value)
    assert launched[0] != LARGE
    assert launched[1] == LARGE


@pytest.mark.parametrize("slabs", [Slabs(32, True), Slabs(64, False), Slabs(256), Slabs(0, True)])
def test_cpu_programs_run_with_tuned_slabs(slabs):
    sizes = {"B": 1, "H": 2, "G": 1, "N": 300, "M": 300}
    passes = kernels_of("streaming", **sizes)
    assert [one.endswith(", backward") for one in passes] == [False, True]
    device = tuned.device_name(torch.device("cpu"), program=True)
    found = [entry(slabs, kernel=one, device=device, queries=256, keys=256) for one in passes]
    remember_tuned(map(Measured, found))
    query, key, value = tensors(dtype=torch.float32, **sizes)
    out = function_of("streaming")(query, key, value)
    exact = reference(attention_of(PATTERNS["streaming"]), query, key, value, {}, dtype=torch.float64)
    torch.testing.assert_close(out, exact.float(), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(out.sum(), (query, key, value))
    for mine, right in zip(found, torch.autograd.grad(exact.sum(), (query, key, value)), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [32, 256])
def test_slabs_have_as_many_rows_as_were_tuned(rows):
    query, key, value = tensors(dtype=torch.float32, N=4096, M=4096, B=1, H=1, G=1, grad=False)
    names = [name for name in kernels_of("wide", N=4096, M=4096, B=1, H=1, G=1) if "backward" not in name]
    with try_tiles({name: Slabs(rows) for name in names}), torch.profiler.profile(record_shapes=True) as profile:
        function_of("wide")(query, key, value)
    computed = Counter()
    for event in profile.events():
        if "flash_attention_for_cpu" in event.name:
            (batch, heads, queries, _), *_ = event.input_shapes
            computed[queries] += batch * heads * queries
    assert computed[rows] > 0.9 * 4096  # the ends may be joined to their neighbours


def test_comments_and_layout_of_a_pattern_do_not_count():
    texts = [
        "attention a { mask causal and i - j < 30 }",
        "# a comment\n attention a {\n  mask causal and i - j < 30\n }",
    ]
    assert len({identity(text) for text in texts}) == 1
    assert identity("attention a { mask causal and i - j < 31 }") != identity(texts[0])


def identity(text):
    module = module_of(text)
    query, key, value = tensors(dtype=torch.float32, N=20, M=20, grad=False)
    with watch_kernels() as asked:
        module.a(query, key, value)
    return tuple(asked)


def test_what_is_written_is_read_again():
    found = [
        Measured(entry(Tiles(128, 64, 8, 3, descriptors=True, chunk=16)), 1.5e-3, 2e-3, "2026-01-02"),
        Measured(entry(Tiles(64, 64, 4, 2, order="heads", fused=True, persistent=2), kernel="c 0")),
        Measured(entry(Slabs(64, alone=False), kernel="p 0")),
        Measured(entry(Slabs(0, alone=True), kernel="p 1")),
        Measured(entry(Slabs(32), kernel="p 2")),
        Measured(entry(LibraryCall(), kernel="p 3, library"), 1.5e-3, 2e-3, "2026-01-02"),
    ]
    assert parse_tuned(tuned_text(found)) == found
    assert parse_tuned(tuned_text([])) == []


def test_what_was_written_before_there_were_orders_is_read():
    tiles = {"query": 64, "key": 32, "warps": 4, "stages": 2}
    (found,) = parse_tuned(changed(tiles=tiles))
    assert found.entry.tiles == Tiles(64, 32, 4, 2)


def test_new_entries_replace_those_for_the_same_calls():
    remember_tuned([Measured(entry(SMALL), 2.0), Measured(entry(SMALL, queries=128), 2.0)])
    (path,) = remember_tuned([Measured(entry(LARGE), 1.0)])
    assert {(one.entry.queries, one.entry.tiles) for one in read_store(path)} == {(64, LARGE), (128, SMALL)}
    assert look_up() == LARGE


def remember_many(first):
    for number in range(first, first + 20):
        remember_tuned([Measured(entry(SMALL, kernel=f"k {number}"))])


def test_processes_that_remember_at_once_lose_nothing():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=remember_many, args=(20 * number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {one.entry.kernel for one in read_store(store_path("interpreter"))} == {f"k {n}" for n in range(80)}


GOOD = json.loads(tuned_text([Measured(entry(SMALL))]))


def changed(**fields):
    return json.dumps(GOOD | {"entries": [GOOD["entries"][0] | fields]})


BROKEN = {
    "": "it is not JSON: ",
    "[" * 100_000: "it is not JSON: ",
    "[]": 'it has no "format": "attnc tuned tiles, 1"',
    '{"format": "attnc tuned tiles, 1"}': 'its "entries" are not a list',
    '{"format": "attnc tuned tiles, 1", "entries": [3]}': "entry 1 is not an object",
    changed(kernel=3): 'entry 1: "kernel" is not a string',
    changed(queries=0): 'entry 1: "queries" is not a positive int',
    changed(keys=True): 'entry 1: "keys" is not a positive int',
    changed(tiles={"query": 64}): "entry 1: tiles lack one of query, key, warps, stages",
    changed(tiles=GOOD["entries"][0]["tiles"] | {"query": 48}): "entry 1: tiles: \"query\" is 48",
    changed(tiles=GOOD["entries"][0]["tiles"] | {"query": 1 << 40}): f'entry 1: tiles: "query" is {1 << 40}',
    changed(tiles=GOOD["entries"][0]["tiles"] | {"descriptors": 1}): 'entry 1: tiles: "descriptors" is 1',
    changed(tiles=GOOD["entries"][0]["tiles"] | {"order": "best"}): "entry 1: tiles: \"order\" is 'best'",
    changed(tiles=GOOD["entries"][0]["tiles"] | {"order": 1}): 'entry 1: tiles: "order" is 1',
    changed(tiles=GOOD["entries"][0]["tiles"] | {"code": "import os"}): "entry 1: tiles are not an object with",
    changed(slabs={"rows": 33}): 'entry 1: slabs: "rows" is 33',
    changed(seconds="fast"): "entry 1: a time is not a number",
    changed(library="natten"): "entry 1: \"library\" is 'natten'",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_files_of_others_are_told(text):
    with pytest.raises(MalformedTilesError) as found:
        parse_tuned(text)
    assert str(found.value).startswith(BROKEN[text])


def test_a_damaged_cache_costs_a_warning_and_no_call(monkeypatch):
    monkeypatch.setenv("ATTNC_TARGET", "triton")
    path = store_path("interpreter")
    path.parent.mkdir(parents=True)
    path.write_text('{"format":')
    query, key, value = tensors(dtype=torch.float32, N=20, M=20, grad=False)
    with pytest.warns(CacheWarning, match="the defaults are taken"):
        function_of("causal")(query, key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function_of("causal")(query, key, value)  # told once
