"""A node's cache under training: the same pixels from it, whatever happens to it, and nothing of it decides anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from phenomhpc.config.training import DataConfig
from phenomhpc.crops.caching import CacheFiller
from phenomhpc.crops.corpus import Corpus
from phenomhpc.jobs.here import run_here
from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.store.fill import fill
from phenomhpc.store.seal import seal
from phenomhpc.train.metrics import read_metrics
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate

SIDE = 40


def stored(root: Path) -> tuple[Store, Snapshot, NDArray[Any]]:
    store, pixels = new_store(root), pixels_of(1, 8, 2, SIDE, SIDE)
    add_plate(store, "P", pixels)
    return store, seal(store, silent()), pixels


def read_all(reader: ShardReader, pixels: NDArray[Any]) -> None:
    out = np.empty((2, 20, 30), np.uint8)
    for field_no, field in enumerate(pixels):
        reader.read(field_no, 11, 5, out)
        assert np.array_equal(out, field[:, 11:31, 5:35])


def test_crops_come_from_the_cache_where_it_holds_them(tmp_path: Path) -> None:
    store, snapshot, pixels = stored(tmp_path / "store")
    cache = tmp_path / "cache"
    with ShardReader(store, snapshot, cache=cache) as reader:
        read_all(reader, pixels)  # there is no cache yet
        assert (reader.traffic.crops, reader.traffic.from_cache) == (8, 0)
        fill(snapshot, cache, max_bytes=20_000)  # two shards of four
        read_all(reader, pixels)
        assert (reader.traffic.crops, reader.traffic.from_cache) == (16, 4)
        fill(snapshot, cache)
        traffic = reader.traffic.reads
        read_all(reader, pixels)
        assert (reader.traffic.crops, reader.traffic.from_cache, reader.traffic.reads) == (24, 12, traffic)


def test_a_cache_that_is_cut_evicted_or_of_old_pixels_gives_the_stores(tmp_path: Path) -> None:
    store, snapshot, pixels = stored(tmp_path / "store")
    cache = tmp_path / "cache"
    fill(snapshot, cache)
    files = sorted((cache / "plates" / "P.zarr" / "images" / "c").glob("*/0/0/0"))
    with ShardReader(store, snapshot, cache=cache) as reader:
        read_all(reader, pixels)
        os.truncate(files[0], 100)  # while it is mapped
        files[1].unlink()
        read_all(reader, pixels)
    os.truncate(files[2], 3000)
    with ShardReader(store, snapshot, cache=cache) as reader:
        read_all(reader, pixels)
        assert reader.traffic.from_cache == 2
    other = pixels[::-1].copy()
    shutil.rmtree(tmp_path / "store")
    store = new_store(tmp_path / "store")
    add_plate(store, "P", other)
    with ShardReader(store, seal(store, silent()), cache=cache) as reader:
        read_all(reader, other)
        assert reader.traffic.from_cache == 0


def test_training_is_the_same_with_a_cache_which_it_fills(tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    seen = []
    for cache in (None, str(tmp_path / "nvme")):
        config = settings(store, tmp_path / "runs", optim__steps=6, data__cache=cache)
        paths, _ = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
        metrics, folder = read_metrics(paths.metrics), newest_committed(paths.checkpoints, print)
        assert folder is not None
        if cache is None:
            assert not any(metrics["cache_hit_share"].to_pylist())
        seen.append((metrics["index_digest"].to_pylist(), metrics["loss"].to_pylist(), read_meta(folder).weights))
    assert seen[0] == seen[1]
    corpus = Corpus.open([str(store)])
    (folder,) = corpus.caches(tmp_path / "nvme")
    said: list[str] = []
    with CacheFiller(corpus, tmp_path / "nvme", None, said.append) as filler:
        filler._thread.join()
    assert said == [f"cache {folder}: holds 6 of 6 fields (0.0 GB); expected hit rate 100%"]
    paths, _ = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
    metrics = read_metrics(paths.metrics)
    assert set(metrics["cache_hit_share"].to_pylist()) == {1.0} and metrics["read_amplification"].null_count == 6
    assert not any(metrics["reads_s"].to_pylist()) and all(metrics["data_mb_s"].to_pylist())
    assert "100% of the crops from caches on the nodes" in paths.report.read_text()
    with ShardReader(open_store(store), corpus.snapshots[0], cache=folder) as reader:
        reader.read(0, 0, 0, np.empty((2, 8, 8), np.uint8))
        assert reader.traffic.from_cache == 1


def test_what_is_wrong_with_a_cache_is_said_and_ends_nothing(tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    corpus = Corpus.open([str(store)])
    (folder,) = corpus.caches(tmp_path / "nvme")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("not a cache")
    said: list[str] = []
    with CacheFiller(corpus, tmp_path / "nvme", None, said.append) as filler:
        filler._thread.join()
    assert len(said) == 1 and str(folder) in said[0] and said[0].endswith("; crops are read from the store")
    with pytest.raises(ValidationError, match="scratch: give the whole path, as each node has it"):
        DataConfig(cache="scratch")
