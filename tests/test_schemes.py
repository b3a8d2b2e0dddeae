"""The scheme of a `via`: its file is found, proven and priced, and mistakes are told at their place."""

import ast
import json
import re
import shutil

import pytest

from attnc.algebra.bilinear.prices import DEVICES, Rates, break_even, cost_of
from attnc.algebra.bilinear.reading import read_scheme, write_scheme
from attnc.algebra.bilinear.scheme import classical
from attnc.codegen.scheme_text import scheme_lines
from attnc.diagnostics import CompileError, Severity
from attnc.resources import schemes_directory
from attnc.runtime.bilinear import BilinearScheme
from attnc.schemes import (
    check_sizes,
    describe_scheme,
    float_rows,
    loss_warning,
    scheme_of,
    scheme_of_via,
)
from attnc.sema.check import check_program
from attnc.source import SourceFile
from attnc.syntax.parse import parse_source
from attnc.syntax.read import read_source

PATTERN = """
attention near {{
    mask causal
}}
layer block(width: int = 64) {{
    heads 2
    attend near
    output dense via {via}
}}
"""


def via_of(folder, text):
    path = folder / "block.attn"
    path.write_text(PATTERN.format(via=text))
    program = check_program(parse_source(read_source(path, name="block.attn")))
    return dict(program.layers[0].projections)["output"].via


def refusal(folder, text):
    with pytest.raises(CompileError) as caught:
        scheme_of_via(via_of(folder, text))
    return str(caught.value)


@pytest.mark.parametrize("form", ["strassen", "winograd"])
def test_named_schemes(tmp_path, form):
    found = scheme_of_via(via_of(tmp_path, f"{form}(2)"))
    assert (found.scheme.name, found.levels, found.divisors) == (form, 2, (4, 4, 4))
    assert sum(found.additions) == {"strassen": 18, "winograd": 15}[form]
    assert found.accuracy.growth == {"strassen": 12, "winograd": 18}[form]  # Higham, chapter 23


def test_files_beside_and_below_the_pattern(tmp_path):
    (tmp_path / "below").mkdir()
    shutil.copy(schemes_directory() / "laderman.json", tmp_path / "below" / "mine.json")
    found = scheme_of_via(via_of(tmp_path, 'bilinear("below/mine.json", 1)'))
    assert found.scheme.title == "<3, 3, 3; 23>"


def test_files_elsewhere_are_refused(tmp_path):
    folder = tmp_path / "patterns"
    folder.mkdir()
    shutil.copy(schemes_directory() / "laderman.json", tmp_path / "mine.json")
    (folder / "link.json").symlink_to(tmp_path / "mine.json")
    outside = "is outside the folder of the pattern"
    assert outside in refusal(folder, 'bilinear("../mine.json", 1)')
    assert outside in refusal(folder, 'bilinear("link.json", 1)')
    assert "is an absolute path" in refusal(folder, f'bilinear("{tmp_path}/mine.json", 1)')
    assert "does not exist" in refusal(folder, 'bilinear("none.json", 1)')
    assert "cannot be read: is a directory" in refusal(folder, 'bilinear(".", 1)')
    program = check_program(parse_source(SourceFile("<string>", PATTERN.format(via='bilinear("a.json", 1)'))))
    with pytest.raises(CompileError, match="was not read from a file"):
        scheme_of_via(dict(program.layers[0].projections)["output"].via)


def test_a_transposed_file_is_told_with_its_place(tmp_path):
    found = json.loads((schemes_directory() / "strassen.json").read_text())
    found["W"][1], found["W"][2] = found["W"][2], found["W"][1]
    (tmp_path / "alpha.json").write_text(json.dumps(found))
    assert refusal(tmp_path, 'bilinear("alpha.json", 1)') == (
        "error[scheme-transposed]: `alpha.json` computes the transposed product, as AlphaTensor's files do\n"
        "  --> block.attn:8:22\n"
        "   |\n"
        ' 8 |     output dense via bilinear("alpha.json", 1)\n'
        "   |                      ^^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "help: reorder the rows of W: row i * n + j belongs to C[i, j], and here it is row j * m + i"
    )


def test_levels_are_limited(tmp_path):
    assert "has too many levels: 7 ** 7 products" in refusal(tmp_path, "strassen(7)")
    assert "has too many levels" in refusal(tmp_path, "strassen(1000000000)")


def test_levels_that_leave_blocks_of_size_under_1(tmp_path):
    via = via_of(tmp_path, "strassen(4)")
    found = scheme_of_via(via)
    check_sizes(found, via, inner=16, columns=17)
    with pytest.raises(CompileError, match=re.escape("needs at least 16 features for 4 levels, and 15 go in")):
        check_sizes(found, via, inner=15, columns=16)
    with pytest.raises(CompileError, match="and 8 go out"):
        check_sizes(found, via, inner=16, columns=8)


def test_losing_schemes_are_warned_of(tmp_path):
    via = via_of(tmp_path, "strassen(1)")
    found = scheme_of_via(via)
    warning = loss_warning(found, via, inner=256, columns=256)
    assert warning.severity is Severity.WARNING
    assert warning.code == "scheme-loses"
    assert warning.notes == ("square products break even at 2,065 at the earliest, on NVIDIA A100 SXM, float32",)
    assert loss_warning(found, via, inner=16384, columns=16384) is None


@pytest.mark.parametrize("name", ["strassen", "winograd", "laderman"])
@pytest.mark.parametrize("levels", [1, 2])
def test_break_even_is_where_the_times_cross(name, levels):
    found = scheme_of("bilinear", schemes_directory() / f"{name}.json", levels)
    rates = Rates("some", 1e12, 1e11, 4)
    size = found.break_even(rates)
    base = found.scheme.m**levels

    def gain(near):
        whole = round(near / base) * base
        return found.gain((whole, whole, whole), rates)

    assert gain(size * 0.97) < 1 < gain(size * 1.03)
    assert found.break_even(Rates("slow memory", 1e12, 1e10, 4)) == pytest.approx(10 * size)


def test_costs_count_what_runs():
    found = scheme_of("winograd", None, 2)
    cost = found.cost((64, 64, 64), 4)
    assert cost.flops == 2 * 49 * 16**3
    assert [level.products for level in cost.levels] == [1, 7]
    assert [level.flops for level in cost.levels] == [15 * 32**2, 7 * 15 * 16**2]
    assert cost.addition_bytes == 12 * (15 * 32**2 + 7 * 15 * 16**2)
    odd = found.cost((65, 66, 67), 4)
    assert odd.rim == 2 * (65 * 66 * 67 - 64**3)
    assert odd.flops == cost.flops + odd.rim
    assert cost_of(found.scheme, found.additions, (64, 64, 64), 0, 4).flops == 2 * 64**3


def test_a_scheme_that_saves_nothing_never_breaks_even():
    assert break_even(classical(2, 2, 2), (0, 0, 4), 1, DEVICES[0]) == float("inf")


def test_description_names_cost_error_and_source():
    lines = describe_scheme(scheme_of("strassen", None, 1))
    assert lines[0] == "strassen <2, 2, 2; 7>, 1 level"
    assert "5 + 5 + 8 = 18 additions of blocks a level" in lines
    assert lines[-1].startswith("source: V. Strassen")
    assert sum("break even at" in line for line in lines) == len(DEVICES)
    brief = describe_scheme(scheme_of("strassen", None, 1), brief=True)
    assert brief[-1] == "square products break even at 2,065 at the earliest, on NVIDIA A100 SXM, float32"


@pytest.mark.parametrize("name", ["strassen", "laderman", "strassen_twice"])
def test_literals_in_generated_code(name):
    scheme = read_scheme((schemes_directory() / f"{name}.json").read_bytes())
    text = "\n".join(scheme_lines(scheme, "_SCHEME"))
    assert max(map(len, text.splitlines())) <= 120
    ast.parse(text)
    namespace = {"BilinearScheme": BilinearScheme}
    exec(text, namespace)
    assert namespace["_SCHEME"] == BilinearScheme(scheme.m, scheme.k, scheme.n, *float_rows(scheme))


def test_fractions_in_files_and_literals():
    scheme = read_scheme((schemes_directory() / "strassen.json").read_bytes())
    found = json.loads(write_scheme(scheme))
    found["U"] = [[f"{entry}/3" if entry else 0 for entry in row] for row in found["U"]]
    found["W"] = [[3 * entry for entry in row] for row in found["W"]]
    thirds = read_scheme(json.dumps(found).encode())
    assert "1 / 3" in "\n".join(scheme_lines(thirds, "_SCHEME"))
