"""The encoder-decoder example runs, and its three generated attentions do what the model needs of them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "encoder_decoder.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("encoder_decoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_runs(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "source (3, 300), target (3, 40) -> logits (3, 40, 1000)" in done.stdout
    padding, cache = (float(number) for number in re.findall(r"by (\S+)$", done.stdout, re.M))
    assert padding == 0
    assert cache < 1e-3


def test_attention_of_the_model_is_torchs_attention(example):
    torch.manual_seed(0)
    layer = example.DecoderLayer(width=32, heads=4, kv_heads=2)
    x, memory, length = torch.randn(2, 7, 32), torch.randn(2, 11, 32), torch.tensor([11, 4])

    def dense(part, x, context, mask):
        query = part._split(part.query(x), 4)
        key, value = part._split(part.key(context), 2), part._split(part.value(context), 2)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return part.output(out.transpose(1, 2).flatten(2))

    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(layer.attention(x), dense(layer.attention, x, x, causal), rtol=1e-4, atol=1e-5)
    padding = (torch.arange(11) < length[:, None])[:, None, None]
    across = layer.cross(x, context=memory, length=length)
    torch.testing.assert_close(across, dense(layer.cross, x, memory, padding), rtol=1e-4, atol=1e-5)


def test_the_model_trains(example):
    torch.manual_seed(0)
    model = example.EncoderDecoder(vocabulary=20, width=16, layers=1, heads=2, kv_heads=1, longest=16)
    source, target, length = torch.randint(20, (2, 9)), torch.randint(20, (2, 5)), torch.tensor([9, 3])
    memory = model.encode(source, length)
    model.decode(target, memory, length).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in ("encoder", "decoder"):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0 or "key.bias" in name, name
