"""The pool of shard files: right bytes in both ways, errors that can be caught, few files open."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from phenomhpc.store.shardfiles import Access, ShardFiles, access_for, file_system_of

BOTH = pytest.mark.parametrize("access", ["mapped", "positioned"])


def content_of(path: Path, size: int = 300_000) -> bytes:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    path.write_bytes(data)
    return data


@BOTH
def test_any_span_is_read_as_it_is(tmp_path: Path, access: Access) -> None:
    path, rng = tmp_path / "f", np.random.default_rng(0)
    data, buffer = content_of(path), bytearray(300_000)
    files = ShardFiles(2, access)
    for _ in range(200):
        first, last = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
        assert files.fetch("f", lambda: path, first, last - first, buffer) == data[first:last]
    assert (files.traffic.opens, files.traffic.reads) == (1, 200)
    assert files.fetch("f", lambda: path, len(data) - 10, 50, buffer) == data[-10:]  # ends before
    assert not len(files.fetch("f", lambda: path, len(data) + 5000, 50, buffer))
    (tmp_path / "empty").write_bytes(b"")
    assert not len(files.fetch("e", lambda: tmp_path / "empty", 0, 50, buffer))
    files.close()


def test_a_mapped_file_that_loses_its_end_is_an_error_and_no_dead_process(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content_of(path)
    files, buffer = ShardFiles(2, "mapped"), bytearray()
    files.fetch("f", lambda: path, 0, 10, buffer)
    for size in (299_000, 8192):  # within the page that is asked for, and before it
        os.truncate(path, size)
        with pytest.raises(OSError, match="its pages cannot be read"):
            files.fetch("f", lambda: path, 298_000, 1500, buffer)
    with pytest.raises(OSError, match="its pages cannot be read"):
        files.fetch("f", lambda: path, 100_000, 5000, buffer)
    whole = content_of(path)
    files.forget("f")
    assert files.fetch("f", lambda: path, 100_000, 5000, buffer) == whole[100_000:105_000]


def test_the_file_system_decides(tmp_path: Path) -> None:
    assert file_system_of(Path("/proc/self")) == "proc" and access_for(Path("/proc/self")) == "positioned"
    assert file_system_of(Path("/dev/shm")) == "tmpfs"


@BOTH
def test_a_file_in_use_is_not_closed_until_it_is_left(tmp_path: Path, access: Access) -> None:
    data = {name: content_of(tmp_path / name, 9000 + place) for place, name in enumerate("abcd")}
    files = ShardFiles(1, access)

    def read(seed: int) -> bool:
        rng, buffer = np.random.default_rng(seed), bytearray(9000)
        for _ in range(300):
            name = "abcd"[rng.integers(4)]
            found = files.fetch(name, lambda name=name: tmp_path / name, 100, 8000, buffer)  # type: ignore[misc]
            if found != data[name][100:8100]:
                return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(read, range(6)))
    assert len(files) == 1
    with pytest.raises(FileNotFoundError):
        files.fetch("x", lambda: tmp_path / "x", 0, 1, bytearray(1))
    files.close()
    assert len(files) == 0
