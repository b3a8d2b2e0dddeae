"""Generated Triton kernels against the dense reference in float64, in Triton's interpreter, outputs NaN before."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import expressions
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import (
    check_kernel,
    load_kernel,
    plan_text,
    render_kernel,
    run_kernel,
    sample_inputs,
    tensors,
)

from attnc.algebra.key_intervals import Coverage
from attnc.codegen.kernel_view import kernel_view
from attnc.codegen.sweeps import sweeps_of
from attnc.plan.choose import plan_attention

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns where the language is silent: 1 / 0, log 0."""

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))

STREAMING = "attention foo { mask causal and (i - j < 40 or sinks(3)) }"
DOCUMENTS = "attention foo { input doc: int[B, M] sorted; mask causal and same(doc) }"
GLOBALS = "attention foo { mask window(9) or globals(2) }"

PATTERNS = {
    "full": "attention foo { score s }",
    "gpt": "attention foo { mask causal }",
    "streaming": STREAMING,
    "globals": GLOBALS,
    "strided": "attention foo { mask causal and (i - j < 8 or (i - j) % 8 == 0) }",
    "powers": "attention foo { mask causal and (i - j < 3 or any(t < 9, i - j == int(exp2(t)))) }",
    "documents": DOCUMENTS,
    "nothing": "attention foo { mask i < j and j < i }",
    "anticausal": "attention foo { mask j > i }",
    "lengths": "attention foo { input length: int[B]; align start; mask j < length[b] }",
}


def run(
    text, batch=1, heads=2, kv_heads=1, queries=70, keys=90, head_size=16, value_size=None, seed=0, inputs=None, **more
):
    query, key, value = tensors(batch, heads, kv_heads, queries, keys, head_size, value_size, seed=seed)
    plan = plan_text(text)
    values = sample_inputs(plan.attention, query, key, seed=seed)
    values.update(inputs or {})
    return check_kernel(plan, query, key, value, values, **more)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples(path):
    query, key, value = tensors(2, 2, 1, 100, 130, 32, 24)
    for plan in plan_text(path.read_text(), every=True):
        check_kernel(plan, query, key, value, sample_inputs(plan.attention, query, key))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 64), (63, 63), (64, 65), (65, 130), (100, 257), (130, 65)], ids=str)
def test_lengths(pattern, lengths):
    run(PATTERNS[pattern], heads=1, queries=lengths[0], keys=lengths[1])


@pytest.mark.parametrize(
    "text",
    [
        "mask causal; normalize sigmoid(bias = -log(M))",
        "mask causal; normalize sigmoid",
        "mask window(20); normalize relu",
        "mask causal; normalize relu(power = 2)",
        "mask causal; normalize relu(power = 1.5)",
        "mask causal and i % 7 != 3; normalize rows; score s * s",
        "mask causal; normalize none",
        "normalize none",
        "learned sink: float[H] = 0.0; mask causal and i > 5; normalize softmax(sink = sink[h])",
        "mask i > 5; normalize softmax(sink = -inf)",
        "weight (1 - exp2(-3 - h)) ** (i - j); mask causal; normalize none",
        "weight 0.5 + sigmoid(sin(i - j)); mask window(30)",
        "weight where(j < i, 1 / (i - j), 0.0); mask j < i; normalize none",
        "score softcap(s, 5.0); mask causal",
        "score s * exp(-0.1 * abs(i - j)) + cos(j); score max(s, -1.0)",
        "score 0.1 * j; mask causal",
        "input beta: float; scale beta / sqrt(D); mask causal",
        "learned temperature: float[H] = 1.0; scale temperature[h] / (1 + i % 3)",
        "score s + 3.0 * i; mask causal",
    ],
)
def test_scores_and_normalizers(text):
    run(f"attention foo {{ {text} }}", inputs={"beta": 0.7} if "beta" in text else None)


@pytest.mark.parametrize(
    "text",
    [
        "mask (i - j) // 3 % 2 == 0 and (j - 40) // 16 < (i - 50) // 16",
        "mask (j - i) % 5 < 2",
        "mask i ** 2 % 7 < 4 or j ** 3 % 5 == 1",
        "mask any(t < 5, j == i - t * t)",
        "mask any(t < 20, j == i - t * t)",
        "mask all(t < 40, (i + j + t) % 41 != 7)",
        "mask sum(t < 30, (i - j) // (t + 1) % 2) > 14",
        "mask causal and any(t < 17, any(u < 17, i - j == t * t + u * u + 1))",
        "mask causal; score s + sum(t < 17, sum(u < 17, 0.01 * cos(i - t) * sin(j - u)))",
        "score s + sum(t < 25, cos(0.1 * t * (i - j))) / 25",
        "mask random_blocks(8, 2, 5)",
        "mask hash(i, j, -3) % 3 != 0",
        "mask hash(h, i) % 1000003 < 500000 and hash(j) // 4611686018427387904 == 0",
        "input top: int[B, H, (N + 15) // 16, 4]; mask any(t < 4, j // 16 == top[b, h, r // 16, t])",
        "input top: int[B, H, (N + 15) // 16, 18]; mask any(t < 18, j // 4 == top[b, h, r // 16, t])",
        "input keep: bool[M, M]; mask keep[i, j]",
        "input keep: bool[B, (M + 63) // 64]; mask keep[b, j // 64] or j == i",
        "input bias: float[H, ?]; score s + bias[h, j - i + 3]",
        "input bias: float[1, 5]; score s + bias[i, i - j]",
        "input far: int[M]; mask j <= far[far[i]]",
        "input n: int; mask j < n // (n - 100) + 4 or i - j < n % (n - 100)",
        "score where(j % 2 == 0, s, -inf); mask causal",
        "score s + log(i - j) ; mask j < i",
        "score s + int(3.7 * tanh(s)) + floor(s) + erf(s) - log2(2 + abs(s)) ** 2",
        "score s + (s // 0.25) * 0.01 + s % 0.3",
        "score min(s, 0.5, 0.1 * i); score clamp(s, -1, 2)",
        "mask (i == j) == (i % 3 == 0) or not (j < 4 and i < 60)",
        "input on: bool; mask causal == on or j == 0",
        "input wide: int[B]; mask wide[b] * 4294967296 + j > 8589934592 * 3",
    ],
)
def test_expressions(text):
    inputs = {"n": 100, "on": True, "wide": torch.tensor([6])}
    run(
        f"attention foo {{ {text} }}",
        inputs={name: v for name, v in inputs.items() if re.search(rf"input {name}:", text)},
    )


@pytest.mark.parametrize("shift", ["0", "5", "-7", "pos[b]", "2 * pos[b] - n", "M - 3", "wild[b]"])
def test_align_at(shift):
    text = f"""attention foo {{
        input pos: int[B]; input n: int; input wild: int[B]
        align at({shift})
        mask causal and i - j < 50 and j < pos[b] + n
        score s + 0.01 * (i - j)
    }}"""
    wild = torch.tensor([2**40, -(2**40)])
    run(text, batch=2, queries=30, inputs={"pos": torch.tensor([3, 60]), "n": 4, "wild": wild})


def test_align_start():
    run("attention foo { align start; mask causal and i - j < 10 }", queries=90, keys=70)


@pytest.mark.parametrize(
    "sizes", [(1, 1), (3, 40), (16, 8), (40, 16), (80, 128), (128, 80), (200, 256), (256, 20)], ids=str
)
def test_head_sizes(sizes):
    run(STREAMING, head_size=sizes[0], value_size=sizes[1], heads=1)


@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (6, 2), (6, 1)], ids=str)
def test_grouped_heads(heads):
    run("attention foo { mask causal; score s - exp2(-h) * (i - j) * (1 + h // g) }", 2, *heads, queries=20, keys=33)


def test_half_precision():
    plan = plan_text(STREAMING)
    module = load_kernel(plan)
    for head_size in (16, 64, 72):
        check_kernel(plan, *tensors(1, 2, 2, 100, 140, head_size, dtype=torch.float16), module=module)


def test_scale_of_the_call_wins():
    run("attention foo { mask causal }", scale=0.3)
    run("attention foo { scale 2.0 / (1 + i); mask causal }", scale=-0.3)


def test_broadcast_dimensions_of_size_one():
    text = "attention foo { input bias: float[B, H, M]; score s + bias[b, h, j] + bias[(b + 1) % B, 0, j] }"
    for shape in ((1, 1, 90), (2, 1, 90), (1, 3, 90), (2, 3, 90)):
        run(text, 2, 3, 1, inputs={"bias": torch.randn(shape)})


@pytest.mark.parametrize(
    ("text", "poison"),
    [
        ("mask causal", float("nan")),
        ("mask causal", float("inf")),
        ("mask causal and i - j < 9", float("-inf")),
        ("mask j % 3 == i % 3 or i < 8", float("nan")),
        ("mask j % 3 == i % 3 or i < 8", float("inf")),
        pytest.param("mask causal", float("-inf"), marks=pytest.mark.slow),
        pytest.param("mask causal and i - j < 9", float("nan"), marks=pytest.mark.slow),
        pytest.param("mask causal and i - j < 9", float("inf"), marks=pytest.mark.slow),
        pytest.param("mask j % 3 == i % 3 or i < 8", float("-inf"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("normalize", ["softmax", "none", "rows; score s * s", "softmax; weight 0.1 + j"])
def test_masked_pairs_never_matter(text, poison, normalize):
    query, key, value = tensors(1, 1, 1, 80, 80, 16, 40)
    value[0, 0, 40, 3] = poison
    value[0, 0, 41, 20:] = poison
    key[0, 0, 75] = poison
    plan = plan_text(f"attention foo {{ {text}; normalize {normalize} }}")
    if normalize.startswith(("none", "rows")):
        value = value.nan_to_num(nan=float("nan"), posinf=float("nan"), neginf=float("nan"))
    check_kernel(plan, query, key, value)


def test_keys_past_a_length_may_hold_anything():
    query, key, value = tensors(2, 2, 1, 70, 90, 16)
    lengths = torch.tensor([37, 90])
    key[0, :, 37:] = float("nan")
    value[0, :, 37:] = float("inf")
    plan = plan_text("attention foo { input length: int[B]; mask j < length[b] }")
    assert check_kernel(plan, query, key, value, {"length": lengths}).isfinite().all()


def test_nan_reaches_its_own_rows_only():
    query, key, value = tensors(1, 1, 1, 80, 80, 16)
    query[0, 0, 33, 2] = float("nan")
    out = check_kernel(plan_text(STREAMING), query, key, value)
    assert out[0, 0, 33].isnan().all()
    assert out.isnan().any(-1).sum() == 1


def test_names_of_tensors_may_be_anything():
    names = ["tl", "acc", "q_idx", "lse_ptr", "torch", "call", "m_i", "a" * 60, "a" * 61, "doc", "doc_ptr", "out", "N_"]
    declared = "; ".join(f"input {name}: float[M]" for name in names)
    total = " + ".join(f"{name}[j] * {name}[i]" for name in names)
    run(f"attention foo {{ {declared}; score s + {total}; mask causal }}", heads=1)


def test_attentions_are_called_anything():
    plan = plan_text("attention tl { mask causal }")
    check_kernel(plan, *tensors(1, 1, 1, 20, 20, 16))


@settings(max_examples=25)
@given(attention=expressions.attentions(), seed=st.integers(0, 1000))
def test_random_attentions(attention, seed):
    query, key, value = tensors(2, 2, 1, 13, 21, 8, seed=seed)
    tables = {name: torch.tensor(table) for name, table in expressions.tables_for(2, 2, 21, seed).items()}
    check_kernel(plan_attention(attention), query, key, value, tables)


def body_of(text, title):
    """Return the lines of the loop below a comment."""
    found = re.search(rf"    # {title}[^\n]*\n(.*?)\n\n", text, re.DOTALL)
    assert found, title
    return found.group(1)


def test_full_intervals_have_no_mask_code():
    plan = plan_text(STREAMING)
    full = [interval for interval in plan.passes[0].tiles.intervals if interval.coverage is Coverage.FULL]
    assert full
    body = body_of(render_kernel(plan), "full: all pairs")
    assert "tl.where(allowed" not in body
    assert "kv_idx" not in body
    assert "q_idx" not in body
    assert ", False, DESCRIPTORS)" in body
    assert ", True, DESCRIPTORS)" not in body


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_test_pairs_only_where_some_are_masked(path):
    for plan in plan_text(path.read_text(), every=True):
        for sweep in sweeps_of(plan):
            loops = kernel_view(plan, sweep).loops
            intervals = [interval for one in sweep.passes for interval in one.tiles.intervals]
            for loop, interval in zip(loops, intervals, strict=True):
                full = interval.coverage is Coverage.FULL
                assert bool(loop.body.mask) != full
                assert loop.ragged != full
                assert loop.title.endswith("all pairs" if full else "some pairs")


def test_second_walk_takes_few_keys_at_once():
    text = render_kernel(plan_text(GLOBALS))
    walk = text[text.index("if is_spoiled(acc)") : text.index("_foo_tiles = ")]
    assert "CHUNK_N" in walk
    assert "BLOCK_N" not in walk


def test_infinities_of_many_keys_keep_their_sign():
    plan = plan_text("attention foo { mask causal }")
    query, key, value = tensors(1, 1, 1, 320, 320, 16, 16)
    value[:, :, :300, 0] = float("inf")
    value[:, :, 310, 1] = float("nan")
    out, _ = run_kernel(load_kernel(plan), plan, query, key, value)
    assert out[..., 0].isposinf().all()
    assert out[..., :310, 1].isfinite().all()
    assert out[..., 310:, 1].isnan().all()


def test_partial_intervals_test_their_residual_only():
    body = body_of(render_kernel(plan_text("attention foo { mask causal and i - j < 300 }")), "diagonal")
    assert "kv_idx[None, :] <= q_idx[:, None]" in body
    assert "300" not in body


def test_row_reads_stand_before_the_loops():
    text = render_kernel(plan_text(DOCUMENTS))
    assert text.index("doc_row = tl.load(") < text.index("for tile in")
    assert text.count("doc_row = ") == 1


def test_users_lines_are_named():
    text = render_kernel(plan_text("attention foo {\n  mask causal\n  score s + 0.5 * cos(j)\n}"))
    assert re.search(r"<= q_idx\[:, None\]  # test\.attn:2\n", text)
    assert "# test.attn:3" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_dead_parameters_and_no_dead_values(path):
    for plan in plan_text(path.read_text(), every=True):
        [*kernels, _] = [node for node in ast.parse(render_kernel(plan)).body if isinstance(node, ast.FunctionDef)]
        check_names_of(kernels)


def check_names_of(kernels):
    for function in kernels:
        loaded = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        stored = {
            node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assert not {argument.arg for argument in function.args.args} - loaded
        assert not stored - loaded


@pytest.mark.skipif(
    shutil.which("ruff") is None and not Path(sys.executable).with_name("ruff").exists(), reason="no ruff"
)
def test_text_is_formatted(tmp_path):
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    for number, source in enumerate(PATTERNS.values()):
        (tmp_path / f"kernel_{number}.py").write_text(render_kernel(plan_text(source)))
    command = [ruff, "format", "--isolated", "--line-length", "120", "--diff", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_view_is_frozen_and_launcher_takes_what_the_module_passes():
    plan = plan_text(DOCUMENTS)
    view = kernel_view(plan)
    with pytest.raises(AttributeError):
        view.function = "other"
    launch = load_kernel(plan)._foo_launch
    names = ["query", "key", "value", "out", "lse", "inputs", "scale", "precision", "dropout"]
    assert list(inspect.signature(launch).parameters) == names
    assert replace(view) == view


def test_log_sum_exp_is_optional():
    plan = plan_text(STREAMING)
    out, lse = run_kernel(load_kernel(plan), plan, *tensors(1, 1, 1, 30, 30, 16), lse=False)
    assert lse is None
    assert out.isfinite().all()
