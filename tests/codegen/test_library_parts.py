"""What is written of the kernels that run beside a library: no more than they need, and once."""

import ast
import re

import pytest

from attnc.codegen.gradient_view import gradient_views
from attnc.codegen.launch_view import launch_views
from attnc.codegen.render import render_kernel
from attnc.plan.choose import plan_attention
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

TEXTS = {
    "window": "mask causal and (i - j < 70 or j < 5)\n decompose split(j < 5)",
    "rows": "mask i < 66 or i == j\n decompose split(i < 66)",
    "residues": "mask causal and (i - j < 70 or (i - j) % 16 == 0)\n decompose split(i - j < 70)",
    "query_runs": "mask causal and (i - j < 70 or i % 16 >= 14)\n decompose split(i - j < 70)",
}


def plan_of(name):
    tree = parse_source(SourceFile("test.attn", f"attention a {{ {TEXTS[name]} }}"))
    return plan_attention(check_program(tree).attentions[0])


def names_in(function, context):
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


@pytest.mark.parametrize("name", TEXTS)
def test_no_dead_parameters_and_no_dead_values(name):
    text = render_kernel(plan_of(name))
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    kernels = [function for function in functions if function.name.endswith("_kernel")]
    assert any("beside" in function.name for function in kernels)
    for function in kernels:
        loaded = names_in(function, ast.Load)
        assert not {argument.arg for argument in function.args.args} - loaded, function.name
        assert names_in(function, ast.Store) - loaded <= {"v_dim"}, function.name


@pytest.mark.parametrize("name", TEXTS)
def test_the_other_passes_have_launchers_of_their_own(name):
    plan = plan_of(name)
    beside = f"a_beside_pass_{plan.part.number + 1}"
    *_, last = launch_views(plan)
    assert (last.name, last.resumed, last.keeps) == (beside, True, True)
    assert all(kernel.resumed for kernel in last.kernels)
    assert [kernel.keeps for kernel in last.kernels] == [True] * (len(last.kernels) - 1) + [False]
    *_, gradients = gradient_views(plan)
    assert (gradients.name, gradients.resumed) == (beside, True)
    text = render_kernel(plan)
    assert len(re.findall(r"begin_sums\(call, begun\)", text)) == 1
    assert f"def _{beside}_gradients(" in text
