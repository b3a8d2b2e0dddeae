"""The page of the tool that sweeps tiles: what it says of kernels, and what it keeps of a former page."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tool(monkeypatch):
    """Make the tool importable."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import sweep_tiles

    return sweep_tiles


def row(name, target, size=64, **fields):
    usual = {"dtype": "bfloat16", "head_size": size, "tiles": "64x32x4x2", "registers": 100, "spills": 0}
    return {"name": name, "target": target, **usual, "shared": 5000, "matrix": 4, **fields}


def tables(page):
    return [line for line in page.splitlines() if line.startswith(("| ", "## ", "Cells"))]


def test_a_page_says_what_spills_and_what_is_older(tool):
    first = tool._page([row("one", "sm_80"), row("one", "sm_90"), row("two", "sm_80", spills=8)], "", gradients=False)
    assert tables(first) == [
        "## bfloat16, head size 64",
        "| | sm_80 | sm_90 |",
        "| one | 64x32x4x2; 100; 5 | 64x32x4x2; 100; 5 |",
        "| two | 64x32x4x2; 100; 5; **8** |  |",
    ]
    notes = "\n## Notes\n\n| target | cell |\n|---|---|\n| sm_90 | other |\n"
    second = tool._page([row("one", "sm_80", registers=90), row("three", "sm_80", 128)], first + notes, gradients=False)
    lines = [
        "Cells in italics are older than the present kernels and tiles.",
        "## bfloat16, head size 64",
        "| | sm_80 | sm_90 |",
        "| one | 64x32x4x2; 90; 5 | _64x32x4x2; 100; 5_ |",
        "| three |  |  |",
        "## bfloat16, head size 128",
        "| | sm_80 | sm_90 |",
        "| one |  |  |",
        "| three | 64x32x4x2; 100; 5 |  |",
    ]
    # what is known of no kernel any more is left out
    assert tables(second) == lines
    assert tool._other_sections(first + notes) == notes
    third = tool._page([row("one", "sm_80", registers=90), row("three", "sm_80", 128)], second, gradients=False)
    assert tables(third) == lines
