"""What importing a generated module, and calling it first, brings into a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnc.compiler import compile

ROOT = Path(__file__).parents[2]
EXAMPLES = ("gpt", "streaming", "relative", "packed", "sparse_transformer", "sigmoid")
BY_AUTOGRAD = ("sigmoid",)
"""Scores whose gradients `torch.autograd.grad` computes a block at a time; it imports sympy by itself."""

CALL = """
import json, subprocess, sys
import torch, triton, triton.language
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
module = __import__(sys.argv[2])
after_import = set(sys.modules) - before

def refuse(*args, **kwargs):
    raise AssertionError(f"a process is started: {args}")

subprocess.Popen = refuse
from attnc.runtime.pairs import Sizes
sizes = Sizes(B=1, H=2, N=40, M=40, D=16, g=1, value_size=16)
for name in [key[1:-8] for key, value in vars(module).items() if key.endswith("_program") and hasattr(value, "launch")]:
    inputs = {}
    for tensor in vars(module)[f"_{name}_program"].tensors:
        shape = [8 if dim is None else int(dim(sizes)) for dim in tensor.dims]
        inputs[tensor.name] = torch.ones(shape, dtype={"float": torch.float32, "int": torch.int64}[tensor.type])
    query, key, value = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
    vars(module)[name](query, key, value, **inputs).sum().backward()
    assert query.grad is not None
print(json.dumps([sorted(after_import), sorted(set(sys.modules) - before)]))
"""


def imported(tmp_path, name):
    compile(ROOT / "examples" / f"{name}.attn", tmp_path / f"generated_{name}.py")
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(tmp_path), f"generated_{name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", EXAMPLES)
def test_first_calls_bring_no_compiler(tmp_path, name):
    by_import, in_all = imported(tmp_path, name)
    stages = {"lark", "jinja2", "islpy", "typer", "rich"}
    assert not {one for one in by_import if one.startswith("attnc.") and not one.startswith("attnc.runtime")}
    for modules in (by_import, in_all):
        assert not stages & {one.partition(".")[0] for one in modules}
        assert not [one for one in modules if one.startswith(("torch._dynamo", "torch._inductor"))]
    if name not in BY_AUTOGRAD:
        assert not [one for one in in_all if one.startswith(("sympy", "torch.fx.experimental"))]


@pytest.mark.parametrize("arguments", [["--help"], ["check"], ["compile"], ["explain"]], ids=lambda given: given[0])
def test_commands_start_without_torch(tmp_path, arguments):
    file = str(ROOT / "examples" / "streaming.attn")
    more = [] if arguments == ["--help"] else [file]
    more += ["-o", str(tmp_path / "out.py")] if arguments == ["compile"] else []
    code = (
        "import sys\nfrom attnc import cli\n"
        f"sys.argv = ['attnc', *{arguments + more!r}]\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'triton', 'numpy', 'matplotlib', 'sympy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
