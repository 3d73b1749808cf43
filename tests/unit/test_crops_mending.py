"""Damaged shards under training: tried again, replaced by number alone, reported, and too many of them end the run."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.crops import Sampler, mending
from phenomhpc.crops.mending import MendingReader, Replaced, draws_of
from phenomhpc.errors import WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.runs import read_events
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.store.seal import seal
from phenomhpc.train.metrics import read_metrics
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate

SIDE = 40


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "RETRIES_S", (0.0, 0.01))


def plate_of(root: Path, fields: int = 8) -> tuple[Store, Snapshot, NDArray[Any]]:
    store, pixels = new_store(root), pixels_of(1, fields, 2, SIDE, SIDE)
    add_plate(store, "P", pixels)
    return store, seal(store, silent()), pixels


def test_a_lost_shards_fields_are_replaced_alike_everywhere(tmp_path: Path, quick: None) -> None:
    store, snapshot, pixels = plate_of(tmp_path)
    store.paths.shard("P", 1).unlink()  # fields 2 and 3
    sampler = Sampler(snapshot.table, seed=4, crop_px=16)
    seen: list[dict[int, int]] = []
    for order in (range(8), reversed(range(8))):
        told: list[Replaced] = []
        out = np.empty((2, 16, 16), np.uint8)
        with ShardReader(store, snapshot) as reader:
            mended = MendingReader(reader, draws_of(sampler), max_damaged=0.5, tell=told.append)
            for field_no in [*order, 2, 3, 2]:
                mended.read(field_no, 9, 20, out)
                by = next((entry.by for entry in told if entry.field_no == field_no), field_no)
                assert np.array_equal(out, pixels[by, :, 9:25, 20:36]) and by not in (2, 3)
        assert sorted(entry.field_no for entry in told) == [2, 3]
        assert all("plate P, shard 1: cannot be read (No such file or directory)" in entry.reason for entry in told)
        seen.append({entry.field_no: entry.by for entry in told})
    assert seen[0] == seen[1]


def test_what_comes_back_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, snapshot, pixels = plate_of(tmp_path)
    path, away = store.paths.shard("P", 1), tmp_path / "away"
    with ShardReader(store, snapshot) as reader:
        mended = MendingReader(reader, draws_of(Sampler(snapshot.table, seed=4, crop_px=16)), max_damaged=0.0)
        out = np.empty((2, 16, 16), np.uint8)
        mended.read(2, 0, 0, out)
        whole = path.read_bytes()
        os.truncate(path, 30)  # also under the mapping of a reader that has it open
        path.rename(away)
        monkeypatch.setattr(mending.time, "sleep", lambda seconds: path.write_bytes(whole))
        mended.read(3, 5, 5, out)
        assert np.array_equal(out, pixels[3, :, 5:21, 5:21])


def test_too_much_damage_ends_with_one_line(tmp_path: Path, quick: None) -> None:
    store, snapshot, _ = plate_of(tmp_path)
    store.paths.shard("P", 1).unlink()
    out = np.empty((2, 16, 16), np.uint8)
    with ShardReader(store, snapshot) as reader:
        mended = MendingReader(reader, draws_of(Sampler(snapshot.table, seed=4, crop_px=16)), max_damaged=0.003)
        with pytest.raises(WorkError, match=r"data: 4 of 4 crops read here are of damaged .* data.max_damaged=0.003"):
            for _ in range(9):
                mended.read(2, 0, 0, out)
        for shard in range(4):
            store.paths.shard("P", shard).unlink(missing_ok=True)
    with ShardReader(store, snapshot) as reader:
        mended = MendingReader(reader, draws_of(Sampler(snapshot.table, seed=4, crop_px=16)), max_damaged=1.0)
        with pytest.raises(WorkError, match="field 0 and 16 drawn in its place cannot be read"):
            mended.read(0, 0, 0, out)


def test_many_threads_report_a_field_once(tmp_path: Path, quick: None) -> None:
    store, snapshot, _ = plate_of(tmp_path)
    store.paths.shard("P", 1).unlink()
    told: list[Replaced] = []
    with ShardReader(store, snapshot) as reader, ThreadPoolExecutor(8) as threads:
        sampler = Sampler(snapshot.table, seed=4, crop_px=16)
        mended = MendingReader(reader, draws_of(sampler), max_damaged=1.0, tell=told.append)
        outs = [np.empty((2, 16, 16), np.uint8) for _ in range(32)]
        list(threads.map(lambda out: mended.read(2, 0, 0, out), outs))
        assert len(told) == 1 and all(np.array_equal(out, outs[0]) for out in outs)


def test_a_run_over_a_damaged_store_ends_with_what_was_replaced(tmp_path: Path, quick: None) -> None:
    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    snapshot = Snapshot.open(open_store(store))
    path = snapshot.store.paths.shard(snapshot.plates[0], 0)
    whole = path.read_bytes()
    path.write_bytes(bytes(200) + whole[200:])  # the first chunk of the first field
    config = settings(store, tmp_path / "runs", optim__steps=4, data__max_damaged=0.5)
    paths, summary = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
    events = [event for event in read_events(paths) if event["event"] == "damaged"]
    assert len(events) == 1 and events[0]["field"] == f"{snapshot.plates[0]} field 0"
    assert summary.set_aside == ((events[0]["field"], events[0]["reason"]),)
    assert read_metrics(paths.metrics).num_rows == 4
