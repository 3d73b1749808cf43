"""Making a store: several tasks of one array do it at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from phenomhpc.errors import UsageError
from phenomhpc.store.spec import DatasetSpec, create_store

SPEC = DatasetSpec(channels=("a", "b"), dtype="uint8", chunk_px=128, fields_per_shard=4, codec=("lz4", 5, "bitshuffle"))
TASKS = 6


@pytest.mark.parametrize("attempt", range(10))
def test_tasks_that_make_a_store_at_once_all_get_it(tmp_path: Path, attempt: int) -> None:
    root = tmp_path / "store"
    together = threading.Barrier(TASKS)

    def task(number: int) -> DatasetSpec:
        together.wait()
        store = create_store(root, SPEC)
        (root / "plates" / f"{number}.zarr").mkdir(parents=True)  # as a task goes on
        return store.spec

    with ThreadPoolExecutor(TASKS) as pool:
        assert list(pool.map(task, range(TASKS))) == [SPEC] * TASKS


def test_a_store_whose_maker_was_killed_is_made(tmp_path: Path) -> None:
    (tmp_path / "dataset.json.tmp-0123").write_text("{")
    assert create_store(tmp_path, SPEC).spec == SPEC


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="a folder that is no store and is not empty"):
        create_store(tmp_path, SPEC)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        create_store(tmp_path / "file", SPEC)
