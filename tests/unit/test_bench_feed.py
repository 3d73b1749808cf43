"""The benchmark of the way to the device runs where there is no GPU, too."""

from __future__ import annotations

import pytest

from tests.bench import bench_feed


def test_it_prints_a_row_for_each_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--gb", "0.05", "--batch", "16", "--micro", "8", "--seconds", "0.2"]
    assert bench_feed.main([*words, "--workers", "0", "--workers", "1"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == ["0", "1"]
    assert all(float(row[2].replace(",", "")) > 0 and 0 <= float(row[5].strip(" %")) <= 100 for row in rows)
