"""Terms of the score that cancel under softmax come back exactly once in the log-sum-exp, on every target."""

import os
import subprocess
import sys

import pytest

SCRIPT = '''
import torch
import attnc
from attnc.reference import reference
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

text = """attention biased {
    input segment: int[B, M]
    mask j <= i and i - j < 6
    score s * 2 + 0.5 * i - segment[b, i] + (h + 1) ** 2 * 0.1
}"""
(attention,) = check_program(parse_source(SourceFile("biased", text)), params=None).attentions
torch.manual_seed(0)
query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
segment = torch.randint(0, 3, (2, 7))
expected = reference(attention, query, key, value, {"segment": segment}, return_lse=True)
found = attnc.loads(text).biased(query, key, value, segment=segment, return_lse=True)
for left, right in zip(found, expected, strict=True):
    torch.testing.assert_close(left.double(), right, rtol=1e-5, atol=1e-5)
print("same")
'''


@pytest.mark.parametrize("target", ["torch", "triton"])
def test_log_sum_exp(target, tmp_path):
    environment = {**os.environ, "ATTNC_TARGET": target, "XDG_CACHE_HOME": str(tmp_path)}
    if target == "triton":
        pytest.importorskip("triton")
        environment["TRITON_INTERPRET"] = "1"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "same", result.stderr
