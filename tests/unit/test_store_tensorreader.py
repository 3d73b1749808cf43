"""Crops through tensorstore: the same pixels, also of plates that somebody has written anew; damage is named, absence said."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from zarr.codecs import GzipCodec, ZstdCodec

from phenomhpc.config.training import DataConfig
from phenomhpc.errors import DamagedError, UsageError, WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.litreader import open_pixels
from phenomhpc.store.seal import seal
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.tensorreader import TensorReader
from phenomhpc.train.metrics import read_metrics
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate


def stored(root: Path, dtype: str = "uint8") -> tuple[Snapshot, NDArray[Any]]:
    store = new_store(root, dtype=dtype)
    pixels = pixels_of(1, 5, 2, 40, 33, dtype)
    add_plate(store, "P", pixels, set_aside=[1])
    return seal(store, silent()), pixels


def write_anew(snapshot: Snapshot, **how: Any) -> None:
    """The plate's array by zarr-python in another layout, as somebody may do."""
    path = snapshot.store.paths.images("P")
    pixels = zarr.open_array(path, mode="r")[:]
    zarr.create_array(path, data=pixels, overwrite=True, **how)


LAYOUTS: dict[str, dict[str, Any]] = {
    "gzip, no shards": {"chunks": (1, 1, 16, 16), "compressors": GzipCodec()},
    "zstd in shards": {"chunks": (1, 2, 16, 16), "shards": (2, 2, 48, 48), "compressors": ZstdCodec()},
    "chunks of another shape": {"chunks": (1, 1, 8, 24), "shards": (1, 2, 40, 48), "compressors": None},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_plates_in_other_layouts_are_refused_by_our_reader_and_read_by_tensorstore(
    tmp_path: Path, layout: str, dtype: str
) -> None:
    snapshot, pixels = stored(tmp_path, dtype)
    write_anew(snapshot, **LAYOUTS[layout])
    out = np.empty((2, 20, 21), dtype)
    with (
        ShardReader(snapshot.store, snapshot) as own,
        pytest.raises(WorkError, match=rf"store {tmp_path}: plate P: .*; convert it again, or train with data.reader"),
    ):
        own.read(0, 0, 0, out)
    with open_pixels(snapshot, "keep", through="tensorstore") as reader:
        for field_no, row in enumerate(snapshot.table):
            reader.read(field_no, 11, 7, out)
            assert np.array_equal(out, pixels[row["field"], :, 11:31, 7:28])
        assert reader.traffic == Traffic(crops=4)


def test_blosc_at_another_level_is_our_readers_too(tmp_path: Path) -> None:
    snapshot, pixels = stored(tmp_path)
    path = snapshot.store.paths.images("P") / "zarr.json"
    path.write_text(path.read_text().replace('"clevel": 5', '"clevel": 9'))
    out = np.empty((2, 40, 33), np.uint8)
    with ShardReader(snapshot.store, snapshot) as own:
        own.read(0, 0, 0, out)
    assert np.array_equal(out, pixels[0])


@pytest.mark.parametrize("harm", ["absent", "cut", "no array"])
def test_damage_names_store_plate_and_field_and_is_never_zeros(tmp_path: Path, harm: str) -> None:
    snapshot, pixels = stored(tmp_path)
    shard, out = (
        snapshot.store.paths.shard("P", 2),
        np.empty((2, 8, 8), np.uint8),
    )  # field 4 of the plate, 3 of the table
    whole, document = shard.read_bytes(), snapshot.store.paths.images("P") / "zarr.json"
    text = document.read_text()
    with TensorReader(snapshot, cache_bytes=0) as reader:
        if harm == "absent":
            shard.unlink()
        elif harm == "cut":
            os.truncate(shard, 100)
        else:
            document.write_text("{}")
        with pytest.raises(DamagedError, match=rf"store {tmp_path}: plate P, field 4: tensorstore: .*see store verify"):
            reader.read(3, 0, 0, out)
        shard.write_bytes(whole)
        document.write_text(text)
        reader.read(3, 0, 0, out)
        assert np.array_equal(out, pixels[4, :, :8, :8])


def test_what_the_caller_does_wrong_is_no_damage(tmp_path: Path) -> None:
    snapshot, _ = stored(tmp_path)
    with TensorReader(snapshot) as reader:
        for y, x in ((-1, 0), (33, 0), (0, 26)):
            with pytest.raises(IndexError, match=r"crop of 8x8 at .* leaves field 2, which has 40x33"):
                reader.read(2, y, x, np.empty((2, 8, 8), np.uint8))
        for out in (np.empty((3, 8, 8), np.uint8), np.empty((2, 8, 8), np.uint16)):
            with pytest.raises(ValueError, match="the plate has uint8 and 2 channels"):
                reader.read(2, 0, 0, out)


def test_without_tensorstore_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, _ = stored(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UsageError, match=r"^data.reader=tensorstore: it is not installed; pip install tensorstore$"):
        TensorReader(snapshot)


def test_training_through_tensorstore_is_the_same(tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    seen = []
    for reader in ("own", "tensorstore"):
        config = settings(store, tmp_path / "runs", optim__steps=3, data__reader=reader)
        paths, summary = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
        metrics = read_metrics(paths.metrics)
        seen.append((metrics["index_digest"].to_pylist(), metrics["loss"].to_pylist()))
    assert seen[0] == seen[1] and summary.exit_code == 0
    # What tensorstore asks of the disk it does not say.
    assert metrics["reads_s"].null_count == 3 and all(metrics["data_mb_s"].to_pylist())
    with pytest.raises(ValidationError, match="reader=tensorstore takes no cache; leave one of them out"):
        DataConfig(reader="tensorstore", cache="/nvme")
