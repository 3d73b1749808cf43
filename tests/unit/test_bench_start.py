"""What `make bench-loader` says of start and memory is of a store whose every crop is real; a small one here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phenomhpc.crops import Sampler
from phenomhpc.store import ShardReader, Snapshot
from tests.bench import bench_start, large_store
from tests.unit.crop_store import pixels_of


def test_every_crop_of_a_large_store_is_one_of_its_real_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_store, "REAL_PLATES", 2)
    monkeypatch.setattr(large_store, "PLATE_FIELDS", 12)
    store = large_store.large_store(tmp_path, 40, side=256)
    snapshot, pixels = Snapshot.open(store), pixels_of(0, large_store.SHARD_FIELDS, large_store.CHANNELS, 256, 256)
    assert snapshot.num_fields == 40 and snapshot.plates == tuple(f"P{number:05d}" for number in range(4))
    visits = Sampler(snapshot.table, seed=0, crop_px=200).visits(np.arange(40))
    out = np.empty((large_store.CHANNELS, 200, 200), np.uint8)
    with ShardReader(store, snapshot) as reader:
        for field_no, y, x in zip(visits.field_no.tolist(), visits.y[:, 0], visits.x[:, 0], strict=True):
            reader.read(field_no, int(y), int(x), out)
            field = snapshot.table[field_no]["field"] % large_store.SHARD_FIELDS
            assert np.array_equal(out, pixels[field, :, y : y + 200, x : x + 200])


def test_start_and_memory_meet_their_aims_on_a_store_of_a_hundred_thousand_fields(tmp_path: Path) -> None:
    large_store.large_store(tmp_path, 100_000, side=256)
    found, start_s = bench_start.in_a_process(tmp_path, 64)
    assert found.crops == 64 and 0 < found.private_bytes < bench_start.AIM_BYTES
    # Aims are for a quiet machine; what would take a scan of everything takes far longer than this.
    assert found.open_s + found.batch_s < 5 * bench_start.AIM_START_S and start_s > found.open_s
    assert found.resume_s < 20 * bench_start.AIM_RESUME_S


def test_an_aim_that_is_missed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = bench_start.Started(
        import_s=1, open_s=1, batch_s=1, resume_s=0.02, crops=1, private_bytes=10**8, mapped_bytes=1
    )
    monkeypatch.setattr(large_store, "large_store", lambda *_: None)
    monkeypatch.setattr(bench_start, "in_a_process", lambda *_: (slow, 3.5))
    monkeypatch.setattr("sys.argv", ["bench_start", "--fields", "7"])
    assert bench_start.main() == 1
    assert "missed: 7 fields, mapped: start, s 3.5, aim 2\nmissed: 7 fields, mapped: resume" in capsys.readouterr().out
