"""The benchmark of large runs, a hundredth of it: it works, and what can be counted is as promised."""

from __future__ import annotations

import pytest

from tests.bench.bench_slurm import figures


@pytest.mark.timeout(180)
def test_a_hundredth_of_the_benchmark() -> None:
    found = {entry["what"]: entry for entry in figures(100)}
    asked = {what: entry["asked"] for what, entry in found.items() if "asked" in entry}
    assert asked.pop("the same with --usage") == asked.pop("phenomhpc --help, for comparison") == []
    assert len(asked) == 4
    assert all(programs == ["squeue"] for programs in asked.values()), asked
    plan = next(entry for what, entry in found.items() if what.startswith("plan"))
    assert plan["what"].startswith("plan 100,000 units: 1,00")
    # Ten minutes of units that take 6 s on average.
    task = next(entry for what, entry in found.items() if what.startswith("a task reads its"))
    assert 80 < int(task["what"].split()[4]) < 120
    assert task["read_mb"] < 1.5 * plan["manifest_mb"]
