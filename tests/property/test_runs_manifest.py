"""The manifest of an attempt: what was written is read, whole and task by task."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.errors import WorkError
from phenomhpc.runs import Unit, Units, count_units, manifest, read_manifest, write_manifest

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
UNIT = st.builds(
    Unit,
    unit_id=TEXT,
    kind=st.sampled_from(["convert", "embed"]),
    plate=st.none() | TEXT,
    first=st.integers(0, 2**64 - 1),
    count=st.integers(0, 2**32 - 1),
    cost_s=st.floats(0, 1e6, width=32),
    digest=TEXT,
    task=st.integers(0, 9),
)


@given(st.lists(UNIT, max_size=30), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_units_are_read_as_they_were_written_by_task(units: list[Unit], rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "ROWS_PER_GROUP", rows)
        path = Path(folder) / "manifest.parquet"
        write_manifest(path, units)
        assert list(read_manifest(path)) == sorted(units, key=lambda unit: unit.task)
        assert count_units(path) == len(units)
        for task in range(11):
            assert list(read_manifest(path, task=task)) == [unit for unit in units if unit.task == task]


@given(st.lists(UNIT, max_size=20))
@settings(deadline=None)
def test_columns_are_the_sequence_they_were_made_of(units: list[Unit]) -> None:
    columns = Units.of(units)
    assert list(columns) == units
    assert columns == units
    assert [columns[place] for place in range(len(columns))] == units
    assert list(columns[1:5]) == units[1:5]
    assert list(columns[::-2]) == units[::-2]
    assert list(Units.concat([columns, columns[:3], Units.of([])])) == units + units[:3]
    assert columns.num_tasks == len({unit.task for unit in units})
    with pytest.raises(IndexError):
        columns[len(units)]


def test_columns_take_arrays_and_one_value_for_all() -> None:
    units = Units.of_columns({"unit_id": ["a", "b"], "kind": "convert", "plate": ["p", None], "cost_s": [1.0, 2.5]})
    assert list(units) == [
        Unit(unit_id="a", kind="convert", plate="p", cost_s=1.0),
        Unit(unit_id="b", kind="convert", cost_s=2.5),
    ]


def test_a_task_reads_only_the_groups_that_hold_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "ROWS_PER_GROUP", 100)
    path = tmp_path / "manifest.parquet"
    write_manifest(path, [Unit(unit_id=str(number), kind="convert", task=number // 50) for number in range(10_000)])
    read: list[int] = []
    original = pq.ParquetFile.read_row_groups

    def count(file: pq.ParquetFile, groups: list[int], **options: object) -> object:
        read.extend(groups)
        return original(file, groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", count)
    assert [unit.unit_id for unit in read_manifest(path, task=7)] == [str(number) for number in range(350, 400)]
    assert read == [3]


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(path, [Unit(unit_id=f"unit {number}", kind="convert") for number in range(1000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    with pytest.raises(WorkError, match=r"manifest\.parquet: cannot be read"):
        read_manifest(path)
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "none")
