"""Modules for FlexAttention: block masks equal to `create_block_mask`'s, masks and outputs equal to the reference."""

import dataclasses
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import attnc
from attnc.codegen import flex_view
from attnc.compiler import plan_source, render
from attnc.files import read_pattern
from attnc.ir.evaluate import Environment, evaluate
from attnc.ir.nodes import SizeName
from attnc.ir.types import Type
from attnc.reference import dense_mask, reference
from attnc.source import SourceFile

ROOT = Path(attnc.__file__).parent.parent
FILES = sorted([*ROOT.glob("examples/*.attn"), *ROOT.glob("attnc/bench/patterns/*.attn")])
OTHERS = {
    "sigmoid", "sink_softmax", "performer", "linear_transformer", "retention", "linformer", "nystrom", "pooled",
    "monarch_ffn", "ssnn_block", "strassen_projection", "cvt", "mla",
}  # fmt: skip
"""Examples that FlexAttention has no form for, and those of layers."""
EXPRESSIBLE = [file for file in FILES if file.stem not in OTHERS]
TENSORS = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip
SIZES = [(1, 1), (63, 63), (129, 129), (300, 300), (1, 300), (129, 300), (300, 129)]
BLOCKS = [64, 128, (64, 128)]

MORE = {
    "per_head": "attention a { mask causal and i - j < 32 * (h + 1) }",
    "by_batch": "attention a { input pos: int[B]; align at(pos[b]); mask causal }",
    "start": "attention a { align start; mask window(70) }",
    "empty": "attention a { mask false }",
    "nothing_near": "attention a { mask i - j > 500 }",
    "everything": "attention a { mask i - j < 2 or j <= i + 5 or j > i }",
    "group": "attention a { mask (i + j) % g == 0 and j < D * 20 }",
    "table": "attention a { input keep: bool[B, H, (N + 15) // 16, ?]; mask keep[b, h, r // 16, j // 16] }",
    "reach": "attention a { input reach: int[N]; mask abs(i - j) < reach[r] }",
    "any": "attention a { input top: int[(N + 63) // 64, 3]; mask causal and any(t < 3, j // 64 == top[r // 64, t]) }",
    "all": "attention a { mask all(t < 4, (i - j) % (t + 2) != 1) and sum(t < 3, min(t, j)) >= 2 }",
    "hash": "attention a { mask hash(7, h, i // 32, j // 32) % 3 == 0 }",
    "functions": "attention a { mask exp(-abs(i - j) / 50) > 0.3 or floor(sqrt(j)) == int(tanh(i) * 3) }",
    "divisions": "attention a { input n: int; mask (i - j) // n == j % n or i // max(1, N - M) == max(i, j) }",
    "sizes": "attention a { mask where(N > 100, j < M // 2, j >= i) and (N != 7 or M < 9) }",
    "negative_place": "attention a { input ids: int[M]; mask ids[i - 40] == ids[j] or ids[clamp(j - i, 0, 3)] == 2 }",
    "data": "attention a { input ids: int[B, M]; input len: int[N]; mask (ids[b, i] == ids[b, j] or "
    "not (ids[b, j] < len[r] - 3)) and abs(i - j) < max(len[r], 40) }",
    "more_data": "attention a { input ids: int[M]; mask where(ids[j] % 2 == 1, ids[j] // 2 >= ids[i] * 2 - 1, "
    "i - ids[i] < 3 * ids[j] + 9) and min(ids[i], 3) != -ids[j] and ids[j] > 0 }",
    "sorted_data": "attention a { input ids: int[M] sorted; mask not (ids[i] != ids[j] or ids[j] == 2) }",
    "names": "attention a { input q_idx: int[M]; input shift: int; mask q_idx[j] >= shift }",
    "parts": "attention a { mask " + " or ".join(f"(i - j == {9 * n} and j % 9 < {n})" for n in range(1, 12)) + " }",
}  # fmt: skip


def plans_of(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plan_source(read_pattern(source) if isinstance(source, Path) else SourceFile("<test>", source))


def build(compiled, folder, **options):
    text = render(compiled, target="flex", **options)
    path = folder / "flex_module.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"flex_{folder.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks a function's module up
    spec.loader.exec_module(module)
    return module


def inputs_of(attention, N, M, B=2, H=2):
    generator = torch.Generator().manual_seed(N * 1000 + M)
    sizes = dict(zip(SizeName, (B, H, N, M, 8, 1), strict=True))
    found = {}
    for tensor in attention.tensors:
        dims = [7 if dim is None else evaluate(dim, Environment(sizes=sizes)) for dim in tensor.dims]
        match tensor.type:
            case Type.BOOL:
                found[tensor.name] = torch.rand(dims, generator=generator) > 0.5
            case Type.INT:
                top = M + 1 if tensor.name in ("length", "prompt", "pos", "reach") else 5
                found[tensor.name] = torch.randint(0 if dims else 1, top + 1, dims, generator=generator)
            case Type.FLOAT:
                found[tensor.name] = torch.randn(dims, generator=generator)
        if tensor.sorted:
            found[tensor.name] = found[tensor.name].sort(-1).values
    return found


def check_masks(module, attention, sizes, blocks):
    function = getattr(module, f"{attention.name}_block_mask")
    extra = {size: value for size, value in (("D", 8), ("g", 1)) if size in function.__annotations__}
    for N, M in sizes:
        inputs = inputs_of(attention, N, M)
        wanted = dense_mask(attention, N, M, batch=2, heads=2, head_size=8, inputs=inputs)
        for block_size in blocks:
            made = function(N, M, B=2, H=2, device="cpu", block_size=block_size, **inputs, **extra)
            batch, heads = made.kv_num_blocks.shape[:2]
            mod = made.mask_mod
            assert torch.equal(create_mask(mod, 2, 2, N, M, "cpu"), wanted), (N, M)
            expected = create_block_mask(mod, batch, heads, N, M, "cpu", block_size)
            for name in TENSORS:
                got, want = getattr(made, name), getattr(expected, name)
                assert got.dtype == want.dtype
                assert torch.equal(got, want), (N, M, block_size, name)
            assert (made.seq_lengths, made.BLOCK_SIZE) == (expected.seq_lengths, expected.BLOCK_SIZE)


@pytest.mark.parametrize("file", EXPRESSIBLE, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_block_masks_of_the_examples(file, tmp_path):
    compiled = plans_of(file)
    module = build(compiled, tmp_path)
    for plan in compiled.plans:
        check_masks(module, plan.attention, [(129, 200)], [64, (64, 128)])


@pytest.mark.slow
@pytest.mark.parametrize("file", EXPRESSIBLE, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_block_masks_of_the_examples_at_every_size(file, tmp_path):
    compiled = plans_of(file)
    module = build(compiled, tmp_path)
    for plan in compiled.plans:
        check_masks(module, plan.attention, [*SIZES, (1100, 1100)], [*BLOCKS, 256])


@pytest.mark.parametrize("name", MORE)
def test_block_masks_of_all_that_a_mask_may_say(name, tmp_path):
    compiled = plans_of(MORE[name])
    module = build(compiled, tmp_path)
    check_masks(module, compiled.plans[0].attention, [(129, 200), (200, 129)], [128])
    check_masks(module, compiled.plans[0].attention, [(1, 1), (70, 90)], [(16, 20), 192])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_block_masks_of_all_that_a_mask_may_say_at_every_size(name, tmp_path):
    compiled = plans_of(MORE[name])
    module = build(compiled, tmp_path)
    check_masks(module, compiled.plans[0].attention, SIZES, [8, *BLOCKS, 384])


def test_rows_of_blocks_only_where_the_mask_depends_on_them(tmp_path):
    module = build(plans_of(MORE["per_head"] + "attention plain { mask causal }"), tmp_path)
    assert module.a_block_mask(300, 300, B=2, H=3, device="cpu").kv_num_blocks.shape == (1, 3, 3)
    assert module.plain_block_mask(300, 300, B=2, H=3, device="cpu").kv_num_blocks.shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("mask causal and i - j < 300", 3),
        ("mask window(200)", 4),
        ("mask causal and (i - j) % 64 == 0", 48),
        ("mask causal and (i // 128 == j // 128 or j % 128 >= 120)", 48),
        ("mask causal and (i - j < 300 or j < 4)", 16 * 4),
        ("mask j < 1000", 16),
    ],
)
def test_few_pairs_are_looked_at(text, blocks, tmp_path, monkeypatch):
    module = build(plans_of(f"attention a {{ {text} }}"), tmp_path)
    mask_mod, asked = module.a_mask_mod, []

    def counted(*at, shift=0):
        allowed = mask_mod(*at, shift=shift) if shift else mask_mod(*at)
        asked.append(torch.broadcast_shapes(*(place.shape for place in at)).numel())
        return allowed

    monkeypatch.setattr(module, "a_mask_mod", counted)
    module.a_block_mask(2048, 4096, device="cpu")
    assert sum(asked) <= blocks * 128 * 128


def test_a_block_that_no_bound_shows_to_be_full(tmp_path):
    text = "mask (j > (i - abs(i)) or where(j // 8 != max(j, h), i - j < j // 8, not (j > i % 16))) and causal"
    compiled = plans_of(f"attention a {{ {text} }}")
    check_masks(build(compiled, tmp_path), compiled.plans[0].attention, [(200, 200)], [64, (16, 32)])


def test_documents_apart_are_not_looked_at(tmp_path, monkeypatch):
    module = build(plans_of("attention a { input ids: int[B, M]; mask causal and same(ids) }"), tmp_path)
    ids = (torch.arange(4096) // 256).expand(2, -1)
    pairs = []

    def counted(size, tables):
        made = module._a_make_mask_mod(size, tables)

        def mask_mod(b, h, q_idx, kv_idx):
            allowed = made(b, h, q_idx, kv_idx)
            pairs.append(allowed.numel())
            return allowed

        return mask_mod

    monkeypatch.setattr(module, "_a", dataclasses.replace(module._a, mask_mod=counted))
    made = module.a_block_mask(4096, 4096, B=2, ids=ids)
    assert sum(pairs) == 2 * 16 * 3 * 128 * 128  # three blocks of each document, in each batch entry
    assert int(made.kv_num_blocks.sum() + made.full_kv_num_blocks.sum()) == 2 * 16 * 3


OUTPUTS = {
    "softcap": "attention a(cap: float = 3.0) { mask causal; score softcap(s, cap) }",
    "alibi": "attention a { mask causal; learned slope: float[H] = 1.0; score s + slope[h] * (j - i) }",
    "relative": "attention a { learned t: float[H, 41]; score s + t[h, clamp(i - j, -20, 20) + 20] }",
    "host scale": "attention a { scale 1 / D; mask j < 50 }",
    "tensor scale": "attention a { input beta: float[B]; scale beta[b] / sqrt(D); mask causal }",
    "row scale": "attention a { scale log(i + 2) / sqrt(D); score s + h; mask causal }",
    "empty rows": "attention a { mask i - j > 3 }",
    "float table": "attention a { input t: float[B, 1, N, M]; score s + t[b, 0, r, j] * 0.5 }",
    "nothing": "attention a { }",
    "everything": "attention a { score -s }",
    "quantifier": "attention a { score s + sum(t < 3, where(j % 4 == t, t / 3, 0.0)) }",
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_outputs_are_those_of_the_reference(name, tmp_path):
    text = OUTPUTS[name].replace("float[H, 41];", "float[H, 41] = 0.1 * d1;")
    compiled = plans_of(text)
    attention = compiled.plans[0].attention
    module = build(compiled, tmp_path)
    torch.manual_seed(0)
    for N, M, kv_heads in ((70, 70, 2), (33, 70, 1)):
        query, key, value = torch.randn(2, 2, N, 16), torch.randn(2, kv_heads, M, 16), torch.randn(2, kv_heads, M, 16)
        inputs = inputs_of(attention, N, M)
        for scale in (None, 0.3):
            out, lse = module.a(query, key, value, **inputs, scale=scale, return_lse=True)
            wanted, wanted_lse = reference(attention, query, key, value, inputs, scale=scale, return_lse=True)
            torch.testing.assert_close(out, wanted.float(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(lse, wanted_lse.float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(module.a(query, key, value, **inputs, scale=0.3), out)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_is_built_once_and_used_again(tmp_path):
    module = build(plans_of("attention a { input ids: int[B, M]; mask causal and same(ids) }"), tmp_path)
    query, key, value = torch.randn(3, 2, 2, 100, 16).unbind()
    ids = torch.arange(100).expand(2, -1) // 30
    block_mask = module.a_block_mask(100, 100, B=2, H=2, ids=ids)
    assert torch.equal(
        module.a(query, key, value, ids=ids, block_mask=block_mask), module.a(query, key, value, ids=ids)
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_gradients_reach_learned_tensors(tmp_path):
    module = build(plans_of(OUTPUTS["alibi"]), tmp_path)
    query, key, value = torch.randn(3, 1, 2, 40, 16).unbind()
    slope = torch.ones(2, requires_grad=True)
    module.a(query, key, value, slope=slope).square().sum().backward()
    assert slope.grad.abs().sum() > 0


@pytest.mark.slow
def test_compiled_by_torch(tmp_path):
    text = "input ids: int[B, M]; input t: float[H]; mask causal and same(ids); score s * t[h] + hash(j) % 2"
    compiled = plans_of(f"attention a {{ {text} }}")
    module = build(compiled, tmp_path)
    query, key, value = torch.randn(3, 2, 2, 200, 16).unbind()
    inputs = {"ids": (torch.arange(200) // 30).expand(1, -1), "t": torch.tensor([1.0, 2.0])}
    with torch.no_grad():
        out = module.a(query, key, value, **inputs, compiled=True)
    wanted = reference(compiled.plans[0].attention, query, key, value, inputs)
    torch.testing.assert_close(out, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("normalize sigmoid(bias = 0.0)", "FlexAttention has no `normalize sigmoid`"),
        ("normalize softmax(sink = 1.0)", "FlexAttention has no sink in the denominator of its softmax"),
        ("weight 0.5 * (j + 1)", "FlexAttention has no `weight` beside the softmax's"),
        ("normalize relu(power = 2)", "FlexAttention has no `normalize relu`"),
    ],
)
def test_what_flexattention_cannot_say(statement, message):
    with pytest.raises(attnc.CompileError) as caught:
        render(plans_of(f"attention a {{ mask causal; {statement} }}"), target="flex")
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "flex-not-expressible"
    assert diagnostic.message.startswith(message)
    assert diagnostic.labels[0].span.text in statement
    assert "--target triton" in diagnostic.help


def test_all_that_it_cannot_say_is_said_at_once():
    text = (
        "attention a { weight 0.5 * (j + 1); normalize softmax(sink = 1.0) }\n"
        "attention c { input compiled: int; mask j < compiled }"
    )
    with pytest.raises(attnc.CompileError) as caught:
        render(plans_of(text), target="flex")
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["flex-not-expressible", "flex-not-expressible", "unusable-name"]


def test_names_that_clash():
    with pytest.raises(attnc.CompileError, match="would both define `a_mask_mod`"):
        render(plans_of("attention a { mask causal } attention a_mask_mod { mask causal }"), target="flex")


def test_arguments_are_checked(tmp_path):
    module = build(plans_of("attention a { input ids: int[B, M]; mask same(ids) }"), tmp_path)
    ids = torch.zeros(1, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"ids has shape \(1, 8\), expected \(1, 9\)"):
        module.a_block_mask(9, 9, ids=ids)
    with pytest.raises(ValueError, match="N is 0, expected at least 1"):
        module.a_mask_mod(0, 8, ids=ids)
    with pytest.raises(TypeError, match="block_size is a str, expected an int or two"):
        module.a_block_mask(8, 8, ids=ids, block_size="64")
    with pytest.raises(ValueError, match="block_size has 0 in it"):
        module.a_block_mask(8, 8, ids=ids, block_size=(0, 4))


@pytest.mark.parametrize("file", EXPRESSIBLE[::3], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_text_is_the_same_every_time_and_formatted(file, tmp_path):
    compiled = plans_of(file)
    text = render(compiled, target="flex")
    assert text == render(compiled, target="flex")
    path = tmp_path / "module.py"
    path.write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        ["format", "--check", "--line-length", "120"],
        ["check", "--select", "E,F,I", "--line-length", "120"],
    ):
        done = subprocess.run([*ruff, *command, "--isolated", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_module_stands_alone(tmp_path):
    path = tmp_path / "alone.py"
    path.write_text(render(plans_of(FILES[0]), target="flex", standalone=True))
    assert "import attnc" not in path.read_text()
    assert "from attnc" not in path.read_text()
    name = flex_view.flex_names(plans_of(FILES[0]).plans[0].attention.name)[3]
    code = (
        f"import sys; sys.modules['attnc'] = None; import alone; print(alone.{name}(256, 256, device='cpu').sparsity())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) <= 100


def test_compile_takes_the_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = attnc.compile(ROOT / "examples" / "streaming.attn", "out.py", target="flex")
    assert "def streaming_block_mask(" in path.read_text()
    with pytest.raises(ValueError, match="target is 'cuda', expected 'triton' or 'flex'"):
        attnc.compile(ROOT / "examples" / "streaming.attn", "out.py", target="cuda")


def test_the_command_takes_the_target(tmp_path):
    command = [sys.executable, "-m", "attnc", "compile", "--target", "flex"]
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, ROOT / "examples" / "packed.attn", "-o", "out.py"], **run)
    assert done.returncode == 0, done.stderr
    assert "def packed_block_mask(" in (tmp_path / "out.py").read_text()
    failed = subprocess.run([*command, ROOT / "examples" / "sigmoid.attn", "-o", "none.py"], **run)
    assert failed.returncode == 1
    assert "error[flex-not-expressible]: FlexAttention has no `normalize sigmoid`" in failed.stderr
    assert "sigmoid.attn:4:" in failed.stderr
    assert not (tmp_path / "none.py").exists()
