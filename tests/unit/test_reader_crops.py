"""The shard reader: damage is named, never read; files stay few; threads do not disturb each other."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.errors import WorkError
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, Store
from phenomhpc.store import reader as reader_module
from phenomhpc.store.seal import seal
from phenomhpc.store.shards import read_geometry, read_shard_index
from tests.unit.crop_store import LZ4_BITSHUFFLE, add_plate, new_store, pixels_of

SIDE = 50


def one_plate(root: Path, codec: tuple[str, int, str] | None = LZ4_BITSHUFFLE) -> tuple[Store, Snapshot, NDArray[Any]]:
    store, pixels = new_store(root, codec=codec), pixels_of(1, 4, 2, SIDE, SIDE)
    add_plate(store, "P", pixels)
    return store, seal(store, silent()), pixels


@pytest.mark.parametrize(("y", "x"), [(-1, 0), (0, -1), (35, 0), (0, 35)])
def test_a_crop_that_leaves_the_field_is_refused(tmp_path: Path, y: int, x: int) -> None:
    store, snapshot, _ = one_plate(tmp_path)
    with ShardReader(store, snapshot) as reader, pytest.raises(IndexError, match=r"crop of 16x16 .* has 50x50"):
        reader.read(0, y, x, np.empty((2, 16, 16), np.uint8))


@pytest.mark.parametrize(
    "out", [np.empty((2, 8, 8), np.uint16), np.empty((1, 8, 8), np.uint8), np.empty((8, 8), np.uint8)]
)
def test_a_buffer_of_another_kind_is_refused(tmp_path: Path, out: NDArray[Any]) -> None:
    store, snapshot, _ = one_plate(tmp_path)
    with ShardReader(store, snapshot) as reader, pytest.raises(ValueError, match=r"the store has uint8 and 2 channels"):
        reader.read(0, 0, 0, out)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def shorter_chunk(path: Path, offset: int) -> None:
    """A whole, valid chunk that says it holds fewer bytes."""
    header = bytearray(path.read_bytes()[offset : offset + 16])
    header[4:8] = struct.pack("<I", 64)
    patch(path, offset, bytes(header))


DAMAGE: dict[str, Callable[[Path, int], None]] = {
    "zeros": lambda path, offset: patch(path, offset, bytes(40)),
    "shorter": shorter_chunk,
    "longer": lambda path, offset: patch(path, offset + 12, struct.pack("<I", 2**31)),
    "garbage": lambda path, offset: patch(path, offset + 16, b"\xff" * 60),
    "cut": lambda path, offset: os.truncate(path, offset + 20),
    "gone": lambda path, offset: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_named_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    store, snapshot, pixels = one_plate(tmp_path)
    path = store.paths.shard("P", 1)
    index = read_shard_index(path, read_geometry(store.paths, "P"))
    DAMAGE[damage](path, int(index[1, 0, 0]))
    out = np.empty((2, 16, 16), np.uint8)
    with ShardReader(store, snapshot) as reader:
        reader.read(0, 3, 3, out)  # leaves pixels in the scratch buffer
        with pytest.raises(WorkError, match=rf"store {tmp_path}: plate P, shard 1: .*; see store verify"):
            reader.read(3, 0, 0, out)
        reader.read(1, 20, 3, out)
        assert np.array_equal(out, pixels[1, :, 20:36, 3:19])
        if damage not in ("cut", "gone"):
            reader.read(3, 20, 20, out)
            assert np.array_equal(out, pixels[3, :, 20:36, 20:36])


def test_a_raw_chunk_cut_short_is_named(tmp_path: Path) -> None:
    store, snapshot, _ = one_plate(tmp_path, codec=None)
    os.truncate(store.paths.shard("P", 0), 700)
    with ShardReader(store, snapshot) as reader, pytest.raises(WorkError, match=r"shard 0: ends after 700 bytes"):
        reader.read(0, 0, 0, np.empty((2, 16, SIDE), np.uint8))


def test_a_shard_index_that_is_damaged_or_of_another_array_is_named(tmp_path: Path) -> None:
    store, snapshot, _ = one_plate(tmp_path)
    path, out = store.paths.shard_index("P"), np.empty((2, 16, 16), np.uint8)
    whole = path.read_bytes()

    def error() -> str:
        with ShardReader(store, snapshot) as reader, pytest.raises(WorkError) as raised:
            reader.read(0, 0, 0, out)
        return str(raised.value)

    path.write_bytes(whole[:-8])
    assert "plate P" in error() and "no whole shard index; store seal writes it anew" in error()
    path.write_bytes(whole[:40] + struct.pack("<QQ", 7, 2**50) + whole[56:])
    assert "makes no sense; run store seal" in error()
    path.unlink()
    assert "plate P" in error()
    other = new_store(tmp_path / "other", fields_per_shard=4)
    add_plate(other, "P", pixels_of(1, 4, 2, SIDE, SIDE))
    seal(other, silent())
    path.write_bytes(other.paths.shard_index("P").read_bytes())
    assert "its shard index is another array's" in error()


def test_a_shard_not_converted_is_named(tmp_path: Path) -> None:
    store, snapshot, _ = one_plate(tmp_path)
    store.paths.shard("P", 1).unlink()
    store.paths.record("P", 1).unlink()
    seal(store, silent())
    with (
        ShardReader(store, snapshot) as reader,
        pytest.raises(WorkError, match=r"shard 1: has no such chunk; convert it again"),
    ):
        reader.read(2, 0, 0, np.empty((2, 16, 16), np.uint8))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_files_stay_few_however_many_plates_and_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 3)
    monkeypatch.setattr(reader_module, "MAX_OPEN_INDICES", 2)
    store = new_store(tmp_path)
    pixels = {f"P{number:02d}": pixels_of(number, 3, 2, 20, 20) for number in range(12)}
    for plate, content in pixels.items():
        add_plate(store, plate, content)
    snapshot = seal(store, silent())
    before, out = open_descriptors(), np.empty((2, 16, 16), np.uint8)
    with ShardReader(store, snapshot) as reader:
        for _ in range(2):
            for field_no, row in enumerate(snapshot.table):
                reader.read(field_no, 2, 3, out)
                plate = pixels[snapshot.plates[row["plate"]]]
                assert np.array_equal(out, plate[row["field"], :, 2:18, 3:19])
                assert open_descriptors() - before <= 3 + 2 + 1
    assert open_descriptors() == before


def test_threads_read_their_own_crops_while_files_are_closed_under_pressure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 1)
    monkeypatch.setattr(reader_module, "MAX_OPEN_INDICES", 1)
    store = new_store(tmp_path)
    content = [pixels_of(number, 4, 2, SIDE, SIDE) for number in range(4)]
    for number, pixels in enumerate(content):
        add_plate(store, f"P{number}", pixels)
    snapshot = seal(store, silent())

    def read(seed: int) -> bool:
        rng, out = np.random.default_rng(seed), np.empty((2, 24, 24), np.uint8)
        for _ in range(150):
            field_no, y, x = int(rng.integers(16)), int(rng.integers(27)), int(rng.integers(27))
            reader.read(field_no, y, x, out)
            row = snapshot.table[field_no]
            if not np.array_equal(out, content[row["plate"]][row["field"], :, y : y + 24, x : x + 24]):
                return False
        return True

    with ShardReader(store, snapshot) as reader, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))
