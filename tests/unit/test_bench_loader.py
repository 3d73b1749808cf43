"""`phenomhpc bench loader`: everyone reads the same pixels, and what is counted is what was done."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from phenomhpc.crops import Sampler
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.loader_bench import LIMIT, READER, READER_NEW, measure
from phenomhpc.jobs.loader_rivals import DATALOADER, ZarrReader
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, open_store
from phenomhpc.store.seal import seal
from tests.bench.bench_loader import Case, missed
from tests.bench.loader_dali import DALI_ROWS, numpy_crops, with_dali
from tests.unit.crop_store import LZ4_BITSHUFFLE, add_plate, new_store, pixels_of

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NAMES = {
    LIMIT,
    READER,
    READER_NEW,
    "loader",
    "loader, float on a CPU",
    "zarr-python",
    "tensorstore",
    "tensorstore, 2 MB cache",
    DATALOADER,
}


def stored(root: Path, codec: tuple[str, int, str] | None = LZ4_BITSHUFFLE) -> Snapshot:
    store = new_store(root, codec=codec, chunk_px=32, fields_per_shard=3)
    for seed in range(2):
        add_plate(store, f"EXP-1__{seed + 1}", pixels_of(seed, 4, 2, 100, 100))
    return seal(store, silent())


@pytest.mark.parametrize("codec", [LZ4_BITSHUFFLE, None])
def test_everyone_is_measured_on_the_same_crops(tmp_path: Path, codec: tuple[str, int, str] | None) -> None:
    found = measure(stored(tmp_path, codec), crop_px=64, crops=16, passes=1, batch=8, block_bytes=2**20)
    rates = {rate.name: rate for rate in found.rates}
    assert set(rates) == NAMES and all(rate.crops_per_s > 0 for rate in found.rates)
    assert rates[LIMIT].of_limit == 1 and rates[READER].mb_per_s == pytest.approx(
        rates[READER].crops_per_s * 8192 / 1e6
    )
    # A crop of 64 touches two or three rows of 32-chunks, each one read; there are four shards.
    assert 2 <= found.disk.reads <= 3 and found.disk.opens <= 4 / 16
    # A file is smaller than so large a block; of pages of 64 bytes a crop needs what it asks for, and a little more at the ends.
    assert found.disk.blocks == 1 and found.disk.block_bytes == 2**20
    small = measure(Snapshot.open(open_store(tmp_path)), crop_px=64, crops=16, passes=1, batch=8, block_bytes=64).disk
    assert small.asked_bytes / 64 <= small.blocks <= small.asked_bytes / 64 + 2 * small.reads
    stored_bytes = sum(path.stat().st_size for path in tmp_path.rglob("c/*/0/0/0"))
    assert found.ratio == pytest.approx(2 * 4 * 2 * 100 * 100 / stored_bytes)


def test_a_reader_of_other_pixels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = stored(tmp_path)
    honest = ZarrReader.crop
    monkeypatch.setattr(ZarrReader, "crop", lambda *given: honest(*given) ^ 1)
    with pytest.raises(WorkError, match="bench loader: zarr-python reads other pixels than we do"):
        measure(snapshot, crop_px=64, crops=8, passes=1, batch=8)


def test_the_command_prints_a_table_what_gpus_ask_or_json(tmp_path: Path) -> None:
    stored(tmp_path)
    words = ["bench", "loader", "--store", str(tmp_path), "--crop-px", "64", "--crops", "32", "--passes", "1"]
    done = CliRunner().invoke(build(), [*words, "--gpus", "128"], env={"COLUMNS": "160"})
    assert done.exit_code == 0 and all(name in done.stdout for name in NAMES)
    assert (
        "128 GPUs at 500 crops/s:" in done.stdout and "cold, per crop:" in done.stdout and " blocks of " in done.stdout
    )
    found = json.loads(CliRunner().invoke(build(), [*words, "--json"]).stdout)
    assert {rate["name"] for rate in found["rates"]} == NAMES
    refused = CliRunner().invoke(build(), [*words[:-3], "1", "--crop-px", "128"])
    assert isinstance(refused.exception, UsageError)


def test_the_benchmark_judges(tmp_path: Path) -> None:
    store = new_store(tmp_path, channels=6, chunk_px=128, fields_per_shard=1)
    add_plate(store, "EXP-1__1", pixels_of(0, 2, 6, 300, 300))
    snapshot = seal(store, silent())
    found = measure(snapshot, crops=32, passes=1)
    assert missed(Case(name="x", dtype="uint8", codec=None, target=10.0), found) == ["x: 1000% of the limit"]
    assert missed(Case(name="x", dtype="uint8", codec=None, target=0), found) == []


def test_dali_reads_the_same_crops_of_raw_fields(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="nvidia.dali is absent (extra gpu)")
    pixels = pixels_of(0, 3, 2, 100, 90, "uint16")
    store = new_store(tmp_path / "store", dtype="uint16", chunk_px=32, fields_per_shard=2)
    add_plate(store, "EXP-1__1", pixels)
    snapshot = seal(store, silent())
    found = with_dali(snapshot, pixels, tmp_path / "npy", crop_px=32, count=64, passes=1)
    assert set(found) == set(DALI_ROWS) and min(found.values()) > 0
    batches = numpy_crops(snapshot, Sampler(snapshot.table, seed=0, crop_px=32), tmp_path / "npy", 64)
    visits = Sampler(snapshot.table, seed=0, crop_px=32).visits(np.arange(64))
    read = np.concatenate([next(batches).copy() for _ in range(3)])
    out = np.empty((2, 32, 32), np.uint16)
    with ShardReader(snapshot.store, snapshot) as reader:
        for place, crop in enumerate(read):
            row = place % 64
            reader.read(int(visits.field_no[row]), int(visits.y[row, 0]), int(visits.x[row, 0]), out)
            assert np.array_equal(crop, out), place
