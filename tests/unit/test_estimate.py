"""--estimate: its arithmetic against counting, its figures against what a reader of a real store counts."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phenomhpc.config import PretrainConfig
from phenomhpc.crops import Sampler
from phenomhpc.crops.demand import Layout, blocks_touched, crop_demand, demand, open_share, touch_shares, touched
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.estimate import estimate_data, table_of, words_of
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.seal import seal
from phenomhpc.store.shardfiles import ShardFiles, file_system_of
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import settings

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("size", "crop", "chunk"), [(2048, 256, 128), (40, 40, 7), (41, 13, 13), (33, 5, 64), (9, 1, 2)]
)
def test_touched_chunks_are_those_that_counting_finds(size: int, crop: int, chunk: int) -> None:
    counted = [len({place // chunk for place in range(first, first + crop)}) for first in range(size - crop + 1)]
    expected = {number: counted.count(number) / len(counted) for number in set(counted)}
    assert dict(touched(size, crop, chunk)) == pytest.approx(expected)
    of_chunk = [0] * -(-size // chunk)
    for first in range(size - crop + 1):
        for number in {place // chunk for place in range(first, first + crop)}:
            of_chunk[number] += 1
    assert touch_shares(size, crop, chunk).tolist() == pytest.approx([times / len(counted) for times in of_chunk])


@pytest.mark.parametrize(
    ("rows", "row_bytes", "stride", "block"), [(3, 90, 400, 64), (3, 90, 400, 4096), (2, 64, 64, 64), (4, 1, 7, 16)]
)
def test_blocks_are_those_that_counting_finds(rows: int, row_bytes: int, stride: int, block: int) -> None:
    counted = []
    for start in range(block):
        bytes_read = [start + row * stride + place for row in range(rows) for place in range(row_bytes)]
        counted.append(len({place // block for place in bytes_read}))
    assert blocks_touched(rows, row_bytes, stride, block) == pytest.approx(np.mean(counted))


def layout(**changes: Any) -> Layout:
    given = {
        "height": 2048,
        "width": 2048,
        "chunk_px": 128,
        "num_channels": 6,
        "itemsize": 1,
        "chunk_bytes": 49152.0,
        "weight": 1.0,
    }
    return Layout(**(given | changes))


def test_a_crop_of_256_on_chunks_of_128_reads_two_and_a_quarter_times_itself() -> None:
    crop = crop_demand([layout()], 256, 4096)
    assert (crop.amplification, crop.chunks, crop.reads) == pytest.approx((2.25, 9, 3), rel=0.01)
    assert crop.ratio == pytest.approx(2) and crop.pixel_bytes == 6 * 256**2
    # On chunks of 256 it touches four of four times the size.
    assert crop_demand([layout(chunk_px=256)], 256, 4096).amplification == pytest.approx(4, rel=0.01)
    # Half of the crops from each of two layouts.
    both = crop_demand([layout(weight=7), layout(weight=7, chunk_px=256)], 256, 4096)
    assert both.amplification == pytest.approx(3.125, rel=0.01)


def test_rates_are_crops_times_what_one_asks() -> None:
    crop = crop_demand([layout()], 256, 2**24)
    asked = demand(crop, 64_000, shard_opens=0.5, index_opens=0.25, core_crops_per_s=1600)
    assert (asked.shard_opens, asked.index_opens, asked.cores) == (32_000, 16_000, 40)
    assert asked.pixels_mb == pytest.approx(64_000 * 6 * 256**2 / 1e6)
    assert asked.reads == pytest.approx(64_000 * crop.reads) and asked.blocks == pytest.approx(64_000 * crop.blocks)
    # Its three rows lie within 1.6 MB: mostly in one block of 16 MiB.
    assert 1 < crop.blocks < 1.2
    assert (open_share(1024, 256), open_share(10, 256)) == (0.75, 0)


def test_a_pool_of_open_files_hits_as_expected(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(b"12345678")
    files, rng, buffer = ShardFiles(10, "positioned"), np.random.default_rng(0), bytearray(8)
    for number in rng.integers(0, 40, 4000).tolist():
        files.fetch(number, lambda number=number: paths[number], 0, 8, buffer)  # type: ignore[misc]
    files.close()
    assert files.traffic.opens / 4000 == pytest.approx(open_share(40, 10), abs=0.03)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("estimate")
    store = new_store(folder, chunk_px=16, fields_per_shard=2)
    for number, (height, width) in enumerate([(100, 90), (64, 130)]):
        add_plate(store, f"P{number}", pixels_of(number, 5, 2, height, width))
    return seal(store, silent())


def config_of(snapshot: Snapshot, **changes: Any) -> PretrainConfig:
    return settings(snapshot.store.paths.root, snapshot.store.paths.root.parent, **changes)


def test_an_estimate_is_what_a_reader_then_counts(stored: Snapshot) -> None:
    found = estimate_data(config_of(stored, cluster__nodes=2, cluster__gpus_per_node=4), gpu_crops_per_s=100)
    count = 3000
    visits = Sampler(stored.table, seed=3, crop_px=32).visits(np.arange(count))
    out = np.empty((2, 32, 32), np.uint8)
    with ShardReader(stored.store, stored) as reader:
        for field_no, y, x in zip(visits.field_no, visits.y[:, 0], visits.x[:, 0], strict=True):
            reader.read(int(field_no), int(y), int(x), out)
        traffic = reader.traffic
    assert found.crop.reads == pytest.approx(traffic.reads / count, rel=0.02)
    assert found.crop.read_bytes == pytest.approx(traffic.bytes / count, rel=0.03)
    assert (found.num_gpus, found.num_fields, found.num_shards, found.num_plates) == (8, 10, 6, 2)
    assert found.gpu.crops == 100 and found.run.reads == pytest.approx(8 * found.gpu.reads)
    assert found.gpu.shard_opens == found.gpu.index_opens == 0  # all six stay open
    assert found.is_measured and found.core_crops_per_s > 0 and found.cache_hits is None
    assert found.file_system == file_system_of(stored.store.paths.root)


def test_a_cache_and_visits_of_several_crops_are_counted_in(stored: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenomhpc.jobs.estimate.MAX_OPEN_SHARDS", 3)
    raw = 2 * 5 * (7 * 6 + 4 * 9) * 256
    changes = {"data__cache": "/nvme", "data__cache_gb": raw / 4e9, "data__crops_per_visit": 2}
    found = estimate_data(config_of(stored, **changes), gpu_crops_per_s=100, core_crops_per_s=50, block_bytes=2**20)
    assert found.cache_bytes == raw and found.cache_hits == pytest.approx(0.25)
    assert found.gpu.shard_opens == pytest.approx(100 * 0.5 / 2) and found.gpu.cores == 2
    assert "25% of the crops come from it" in words_of(found)[-1]
    assert table_of(found).columns[-1] == "1 GPU(s), per second"


def test_a_plate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = new_store(tmp_path / "s", chunk_px=16)
    add_plate(store, "P", pixels_of(0, 2, 2, 40, 40))
    snapshot = seal(store, silent())
    store.paths.shard_index("P").write_bytes(b"no index")
    with pytest.raises(WorkError, match=r"s: plate P: .* no shard index; .*see store verify"):
        estimate_data(config_of(snapshot), gpu_crops_per_s=1)


def test_an_estimate_needs_no_torch_and_knows_our_reader_alone(stored: Snapshot) -> None:
    code = f"""
import sys
from pathlib import Path
from phenomhpc.config import PretrainConfig
from phenomhpc.jobs.estimate import estimate_data
config = PretrainConfig(store=({str(stored.store.paths.root)!r},), model={{"crop_px": 32}})
print(estimate_data(config, gpu_crops_per_s=1).num_fields, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10", "False"]
    with pytest.raises(UsageError, match=r"what data.reader=tensorstore asks of a file system is not known"):
        estimate_data(config_of(stored, data__reader="tensorstore"), gpu_crops_per_s=1)


def test_the_command_prints_a_table_or_json_and_starts_nothing(stored: Snapshot, tmp_path: Path) -> None:
    words = [
        "--store",
        str(stored.store.paths.root),
        "--runs",
        str(tmp_path / "runs"),
        "model.crop_px=32",
        "model.patch_px=8",
    ]
    how = ["--estimate", "--gpu-crops-per-s", "500", "--core-crops-per-s", "1000", "--block-kib", "16384"]
    done = CliRunner().invoke(build(), ["pretrain", *words, *how])
    assert done.exit_code == 0, done.output
    assert (
        "1 GPU(s), per second" in done.stdout
        and "16,384 KiB" in done.stdout
        and "1,000 crops/s a core (as given)" in done.stdout
    )
    cluster = ["--nodes", "16", "--gpus-per-node", "8", "--json"]
    done = CliRunner().invoke(build(), ["submit", "pretrain", *words, *how, *cluster])
    found = json.loads(done.stdout)["data"]
    assert found["num_gpus"] == 128 and found["run"]["crops"] == 64_000 and found["run"]["cores"] == 64
    assert not (tmp_path / "runs").exists()
    for wrong, says in (
        (how[1:3], "--gpu-crops-per-s: only with --estimate"),
        ([*how, "--block-kib", "-1"], "--block-kib -1: must be"),
    ):
        refused = CliRunner().invoke(build(), ["pretrain", *words, *wrong])
        assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
