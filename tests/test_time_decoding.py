"""The tool that times decoding: it calls the layers that it says, and lays out a row for each."""

import argparse
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_page_has_a_row_for_each_measurement(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import time_decoding

    monkeypatch.setattr(time_decoding, "ROUNDS", 2)
    monkeypatch.setattr(time_decoding, "SECONDS", 0.001)
    options = argparse.Namespace(
        device="cpu", ranks=[16], cached=[40, 2000], sequences=[30], batches=[1, 2], clock="wall"
    )
    page = time_decoding.report(options)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| 16")]
    assert [(row[1], row[2], row[-1]) for row in rows] == [
        ("1", "40", "absorb |"), ("1", "2000", "absorb |"), ("2", "40", "absorb |"), ("2", "2000", "absorb |"),
        ("1", "30", "absorb |"),
    ]  # fmt: skip
    assert all(float(number) > 0 for row in rows for number in row[3:7])
