"""The text of generated modules: readable, formatted, reproducible, and safe from hostile names."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnc.codegen.names import MODULE_ATTRIBUTES, class_name
from attnc.codegen.render import _imports, render_module
from attnc.codegen.runtime_source import RuntimeSource, read_runtime
from attnc.diagnostics import CompileError
from attnc.plan.choose import plan_attention
from attnc.runtime.load import load_module
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.attn"))
RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")


def render(text, name="pattern.attn", **options):
    source = SourceFile(name, text)
    program = check_program(parse_source(source))
    return render_module([plan_attention(attention) for attention in program.attentions], source=source, **options)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_render_formatted_and_reproducibly(path, tmp_path):
    source = SourceFile(path.name, path.read_text())
    first, second = ([plan_attention(one) for one in check_program(parse_source(source)).attentions] for _ in range(2))
    for standalone in (False, True):
        module = render_module(first, source=source, standalone=standalone)
        assert module == render_module(second, source=source, standalone=standalone)
        target = tmp_path / f"module_{standalone}.py"
        target.write_text(module)
    if RUFF is not None:
        command = [RUFF, "format", "--isolated", "--check", "--diff", "--line-length", "120", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_module_shows_its_pattern_and_where_expressions_come_from():
    text = "# Near.\nattention near_only(w: int = 5) {\n    mask abs(i - j) < w\n}\n"
    module = render(text, "near.attn")
    lines = module.split("\n")
    assert lines[:6] == [
        "# near.attn",
        "#",
        "#     # Near.",
        "#     attention near_only(w: int = 5) {",
        "#         mask abs(i - j) < w",
        "#     }",
    ]
    assert "# near.attn:3" in module
    assert ast.get_docstring(ast.parse(module)).startswith("Attention compiled by attnc")
    assert "from attnc.runtime.dispatch import Operation" in module


def test_a_standalone_module_imports_torch_and_triton_alone():
    module = render("attention one { mask causal }", standalone=True)
    names = set()
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"torch", "triton"}


def test_imports_that_take_more_than_one_line_stay_in_their_group():
    long = [f"Something{number:02}" for number in range(12)]
    imports = (f"from collections.abc import {', '.join(long)}", f"from torch import {', '.join(long)}", "import os")
    lines = list(_imports(frozenset(), RuntimeSource({}, frozenset(), imports, ""), standalone=True))
    names = [f"    {name}," for name in long]
    standard = ["import os", "from collections.abc import (", *names, ")"]
    assert lines == [*standard, "", "from torch import (", *names, ")"]


def test_hostile_text_stays_in_comments():
    text = 'attention fine {\n    mask causal  # """; import os; os.abort() \\\n}\n# \u2028 \x0c """\n'
    name = 'a"""\nimport os\nos.abort()\n#.attn'
    module = render(text, name)
    tree = ast.parse(module)
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("os" in {alias.name for alias in node.names} for node in imported)
    assert "\u2028" not in module
    exec(compile(module, "generated", "exec"), {"__name__": "hostile"})


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("attention foo { mask causal }\nattention foo_mask { mask causal }", "name-clash", "`foo_mask`"),
        ("attention foo { mask causal }\nattention foo_reference { mask causal }", "name-clash", "`foo_reference`"),
        ("attention a_b { mask causal }\nattention a__b { mask causal }", "name-clash", "`AB`"),
        ("attention Foo { mask causal }", "unusable-name", "`Foo`"),
        ("attention lambda { mask causal }", "unusable-name", "keyword"),
        ("attention none { mask causal }", "unusable-name", "`None`"),
        ("attention torch { mask causal }", "unusable-name", "`torch`"),
        ("attention tensor { mask causal }", "unusable-name", "`Tensor`"),
        ("attention float { mask causal }", "unusable-name", "`float`"),
        ("attention tuple_ { mask causal }\nattention range { mask causal }", "unusable-name", "`range`"),
        ("attention _private { mask causal }", "unusable-name", "underscore"),
        ("attention ok { input self: float\n score s * self }", "unusable-name", "`self`"),
        ("attention ok { input __x: float\n score s * __x }", "unusable-name", "`__x`"),
        ("attention ok { input _ok_program: float\n score s * _ok_program }", "unusable-name", "`_ok_program`"),
        ("attention ok { learned _modules: float[H] = 0.0\n score s + _modules[h] }", "unusable-name", "`_modules`"),
        ("attention ok { learned forward: float[H] = 0.0\n score s + forward[h] }", "unusable-name", "`forward`"),
        ("attention ok { learned training: float[H] = 0.0\n score s + training[h] }", "unusable-name", "`training`"),
    ],
)
def test_names_that_cannot_be_are_diagnosed(text, code, part):
    with pytest.raises(CompileError) as caught:
        render(text)
    diagnostic = caught.value.diagnostics[0]
    assert diagnostic.code == code
    assert part in diagnostic.message
    assert diagnostic.labels
    assert diagnostic.help


@pytest.mark.parametrize("name", ["all", "filter", "print", "id", "exception"])
@pytest.mark.parametrize("standalone", [False, True])
def test_builtins_that_the_module_does_not_use_are_free(name, standalone, tmp_path):
    text = f"attention {name} {{ input _x: float\n learned _y: float[H] = 1\n score s * _x + _y[h] }}"
    if standalone and name == "all":
        with pytest.raises(CompileError, match="would hide Python's own `all`"):
            render(text, standalone=standalone)
        return
    module = render(text, standalone=standalone)
    (tmp_path / "generated.py").write_text(module)
    space = vars(load_module(tmp_path / "generated.py"))
    query = torch.ones(1, 2, 3, 4)
    out = space[name](query, query, query, _x=1.0, _y=torch.ones(2))
    assert torch.allclose(out, query)
    assert torch.allclose(space[name[:1].upper() + name[1:]](2)(query, query, query, _x=1.0), query)


def test_names_of_the_runtime_are_free_unless_the_module_stands_alone():
    text = "attention make_call { mask causal }"
    render(text)
    with pytest.raises(CompileError, match="make_call"):
        render(text, standalone=True)


@pytest.mark.parametrize(
    ("name", "expected"), [("foo", "Foo"), ("sliding_window", "SlidingWindow"), ("a2_b", "A2B"), ("x__y_", "XY")]
)
def test_class_names(name, expected):
    assert class_name(name) == expected


def test_attributes_of_torch_modules_are_known():
    module = torch.nn.Module()
    attributes = {name for name in dir(module) if not name.startswith("__")}
    assert attributes <= MODULE_ATTRIBUTES


def test_the_runtime_can_stand_in_one_file():
    runtime = read_runtime()
    assert {"Operation", "Program", "Pairs", "start_launch"} <= runtime.owners.keys()
    assert "attnc" not in {line.split()[1].split(".")[0] for line in runtime.imports}
    assert "from attnc" not in runtime.text
    compile(runtime.text, "runtime", "exec")
