"""Filling a cache, shard by shard, in threads that give way to everybody else.

One process of a node fills, under a lock that dies with it; readers need no lock (cache.py).  What holds when killed: whole
shards stay and count, what was half-written is removed by the next who fills.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phenomhpc.commit import TEMPORARY
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.progress import Meter, Progress, silent
from phenomhpc.runs import committing, make_folder
from phenomhpc.store.cache import CacheShard, CacheState, is_cached, raw_spec, shards_of, state_of, within
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.origin import CACHE, origin_of, read_origin, refuse_cache, refuse_wrong_place, write_origin
from phenomhpc.store.rechunk import attributes_of
from phenomhpc.store.shards import Geometry, read_geometry, write_array_metadata
from phenomhpc.store.shardwriter import ShardWriter
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import create_store, refuse_foreign_folder, write_spec
from phenomhpc.store.wholefields import DamagedField, WholeFields

# Of the disk, left free for others unless somebody says otherwise.
RESERVED_SHARE = 0.05
_POLL_S = 0.2
# ioprio_set(2): for this thread, class idle.  glibc has no function for it.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS, _CLASS_IDLE = 1, 3 << 13


def fill(
    snapshot: Snapshot,
    folder: Path | str,
    *,
    max_bytes: int | None = None,
    reserve_bytes: int | None = None,
    workers: int = 1,
    wait: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> CacheState:
    """Fill a cache with the shards of a snapshot until `max_bytes` or the disk (but for `reserve_bytes`) is full; how full it is.

    The shards are chosen by shards_of's order; others, and those that the store has written anew, are evicted.  Where another
    process fills already, nothing is done (wait: it is waited for, and gone on where it stopped).  `stop()` is asked before each
    field.  May be called in a thread: the work is done by `workers` threads of its own at the lowest priority.
    Memory: one field a thread.  Raises UsageError for a folder that is something else, WorkError when it cannot be written.
    """
    store, paths = snapshot.store, StorePaths(Path(folder).absolute())
    refuse_cache(store)
    refuse_foreign_folder(paths)
    refuse_wrong_place(store, folder, CACHE)
    try:
        make_folder(paths.root)
    except OSError as error:
        raise UsageError(f"cache {folder}: cannot be made ({error.strerror}); choose another --to") from error
    skipped: tuple[tuple[str, str], ...] = ()
    try:
        with _locked(paths, wait, stop) as free:
            if free:
                filling = _Filling(snapshot=snapshot, paths=paths, stop=stop, progress=progress or silent())
                skipped = filling.run(max_bytes, reserve_bytes, workers)
    except OSError as error:
        raise WorkError(
            f"cache {folder}: cannot be written ({error.strerror or error}); what is whole stays in use"
        ) from error
    return state_of(snapshot, folder, skipped)


@contextmanager
def _locked(paths: StorePaths, wait: bool, stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold the cache for this process; False when another one has it."""
    with paths.lock.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait or stop():
                    yield False
                    return
            time.sleep(_POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield True


def filler_of(paths: StorePaths) -> str:
    """Who fills a cache now, in words; "" for nobody."""
    try:
        with paths.lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "a process that has just begun"
    except FileNotFoundError:
        pass
    return ""


@dataclass(frozen=True, kw_only=True)
class _Filling:
    """One process's turn, under the lock."""

    snapshot: Snapshot
    paths: StorePaths
    stop: Callable[[], bool]
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, max_bytes: int | None, reserve_bytes: int | None, workers: int) -> tuple[tuple[str, str], ...]:
        """Evict and fill; what could not be cached, with the reason."""
        self._bind()
        geometries = {plate: read_geometry(self.snapshot.store.paths, plate) for plate in self.snapshot.plates}
        held = self._sweep(geometries)
        disk = shutil.disk_usage(self.paths.root)
        reserve = round(disk.total * RESERVED_SHARE) if reserve_bytes is None else reserve_bytes
        room = disk.free - reserve + sum(held.values())
        chosen = within(shards_of(self.snapshot), max(0, room if max_bytes is None else min(room, max_bytes)))
        kept = {(each.plate, each.shard) for each in chosen}
        for plate, shard in held.keys() - kept:
            self.paths.shard(plate, shard).unlink()
        missing = [each for each in chosen if (each.plate, each.shard) not in held]
        for plate in sorted({each.plate for each in missing}):
            attributes = attributes_of(self.snapshot.store.paths, plate)
            write_array_metadata(self.paths, plate, raw_spec(self.snapshot.store.spec), geometries[plate], attributes)
        return self._fill(missing, geometries, reserve, workers)

    def _bind(self) -> None:
        """Make the folder a cache of the store as it is now; what was cached of one that was made anew at its place goes."""
        wanted = origin_of(self.snapshot.store, CACHE, self.snapshot.digest)
        there = read_origin(self.paths)
        if there is not None and there.spec != wanted.spec:
            shutil.rmtree(self.paths.plates, ignore_errors=True)
            write_spec(self.paths, raw_spec(self.snapshot.store.spec))
        create_store(self.paths.root, raw_spec(self.snapshot.store.spec))
        write_origin(self.paths, wanted)

    def _sweep(self, geometries: dict[str, Geometry]) -> dict[tuple[str, int], int]:
        """Remove what dead processes have left half-written and what is outdated; the bytes of the shards that hold."""
        held: dict[tuple[str, int], int] = {}
        for plate in self.paths.converted_plates():
            folder = self.paths.images(plate) / "c"
            for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                path = self.paths.shard(plate, int(entry.name))
                for leftover in path.parent.glob(f"*{TEMPORARY}*"):
                    leftover.unlink()
                known = plate in geometries
                if known and is_cached(self.snapshot.store, self.paths, geometries[plate], plate, int(entry.name)):
                    held[plate, int(entry.name)] = path.stat().st_size
                else:
                    path.unlink(missing_ok=True)
        return held

    def _fill(
        self, missing: Sequence[CacheShard], geometries: dict[str, Geometry], reserve: int, workers: int
    ) -> tuple[tuple[str, str], ...]:
        skipped: list[tuple[str, str]] = []
        total = sum(len(geometries[each.plate].fields_of(each.shard)) for each in missing)
        with (
            self.progress.stage("cache", total, "fields") as stage,
            ThreadPoolExecutor(workers, initializer=_give_way) as pool,
        ):
            meter = Meter(stage)

            def advance(num_bytes: int) -> None:
                with self.lock:
                    meter.advance(num_bytes)

            def one(shard: CacheShard) -> None:
                if self.stop() or failed or shutil.disk_usage(self.paths.root).free - shard.num_bytes < reserve:
                    return
                try:
                    self._copy(shard, geometries[shard.plate], advance)
                except _Stopped:
                    pass
                except DamagedField as error:
                    stage.note(f"{error}; not cached")
                    skipped.append((error.where, error.reason))
                except BaseException:
                    failed.append(True)
                    raise

            failed: list[bool] = []
            for done in [pool.submit(one, shard) for shard in missing]:
                done.result()
        return tuple(sorted(skipped))

    def _copy(self, shard: CacheShard, geometry: Geometry, advance: Callable[[int], None]) -> None:
        """Publish one raw shard, with the mtime of the one it was read from."""
        store, path = self.snapshot.store, self.paths.shard(shard.plate, shard.shard)
        checksums = self._checksums(shard.plate, geometry.fields_of(shard.shard))
        with (
            WholeFields(store, shard.plate, geometry) as fields,
            committing(path) as file,
        ):
            _, _, mtime_ns = fields.open(shard.shard)
            writer = ShardWriter(file, raw_spec(store.spec), geometry)
            for number in geometry.fields_of(shard.shard):
                if self.stop():
                    raise _Stopped
                checksum = checksums.get(number)
                pixels = None if checksum is None else fields.read(number, checksum)
                writer.append(pixels)
                advance(0 if pixels is None else pixels.nbytes)
            writer.finish()
            file.flush()
            os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
            if os.fstat(file.fileno()).st_mtime_ns != mtime_ns:
                raise WorkError(
                    f"cache {self.paths.root}: its file system keeps no nanoseconds in mtime; choose another --to"
                )

    def _checksums(self, plate: str, fields: range) -> dict[int, int]:
        """crc32c of the snapshot's fields among these; the others have no pixels."""
        table = self.snapshot.table
        first, last = np.searchsorted(
            table["plate"], [self.snapshot.plates.index(plate), self.snapshot.plates.index(plate) + 1]
        )
        rows = table[first:last]
        wanted = rows[(rows["field"] >= fields.start) & (rows["field"] < fields.stop)]
        return dict(zip(wanted["field"].tolist(), wanted["crc32c"].tolist(), strict=True))


class _Stopped(Exception):
    """Asked to leave in the middle of a shard."""


def _give_way() -> None:
    """Let this thread have what nobody else wants of processors and disks."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)
