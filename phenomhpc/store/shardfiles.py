"""Where the bytes of shards come from: a bounded pool of files, for reads at random places by many threads.

mapped       the file's pages themselves, no copy: on disks of this machine
positioned   pread() into the caller's buffer: on network and parallel file systems, whose clients page in what they please

Both read exactly what is asked for, in one request: the kernel's guess of what comes next (readahead) is turned off.  An
error of the disk is an OSError in either way.  Under a mapping it would kill the process (SIGBUS), so the pages are first
asked for by a call that can fail; a kernel without that call (before Linux 5.14) has its files read at positions.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Access = Literal["mapped", "positioned"]

# File systems whose pages are this kernel's own.
LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay", "bcachefs"})
_POPULATE_READ = 22
_PAGE = mmap.PAGESIZE
_CUT = "its pages cannot be read: the disk fails, or the file was cut"


def access_for(folder: Path) -> Access:
    """How files below `folder` are best read, by its file system."""
    return "mapped" if file_system_of(folder) in LOCAL and _can_populate() else "positioned"


def file_system_of(folder: Path) -> str:
    """Type of the file system that holds `folder`; "" where nobody says."""
    place = os.path.realpath(folder)
    best, found = "", ""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        below = place == point or place.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):
            best, found = point, after.split()[0]
    return found


def _can_populate() -> bool:
    with mmap.mmap(-1, _PAGE) as pages:
        try:
            pages.madvise(_POPULATE_READ)
        except OSError:
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What crops asked of the store's file system: files opened, requests, bytes.

    crops: those read, of which `from_cache` came from the node's own disk and asked nothing of the store's file system.
    """

    crops: int = 0
    from_cache: int = 0
    opens: int = 0
    reads: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(**{name: value - getattr(other, name) for name, value in vars(self).items()})


@dataclass
class _File:
    """descriptor: of a file that is read at positions; mapped: of one that is not."""

    descriptor: int = -1
    mapped: mmap.mmap | None = None
    size: int = 0
    users: int = 0


@dataclass
class ShardFiles:
    """Files by key, least recently used closed first.  Thread-safe.

    A file in use is never closed: its descriptor could come back as another file's, whose bytes a reader would take for its
    own.  So up to one file per thread more than `limit` may be open for a moment.
    """

    limit: int
    access: Access

    def __post_init__(self) -> None:
        self._opens = self._reads = self._bytes = 0
        self._files: OrderedDict[Hashable, _File] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, key: Hashable, path: Callable[[], Path], offset: int, size: int, buffer: bytearray) -> memoryview:
        """Bytes [offset, offset + size) of the file `path()` (asked for when it is opened: building a path costs as much as a
        read), fewer where it ends before.  Raises OSError.

        Where files are read at positions they lie in `buffer`, which has room for them, until it is used again.
        """
        file = self._enter(key, path)
        try:
            if file.mapped is None:
                return _read(file.descriptor, offset, memoryview(buffer)[:size])
            begin, end = offset // _PAGE * _PAGE, min(offset + size, file.size)
            if end <= offset:
                return memoryview(b"")
            if file.mapped.size() != file.size:  # behind a new end a page holds zeros, not an error
                raise OSError(errno.EIO, _CUT)
            file.mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)
            _populate(file.mapped, begin, end - begin)
            return memoryview(file.mapped)[offset:end]
        finally:
            self._leave(file, size)

    def _enter(self, key: Hashable, path: Callable[[], Path]) -> _File:
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = self._open(path())
                self._opens += 1
            else:
                self._files.move_to_end(key)
            file.users += 1
        return file

    def _open(self, path: Path) -> _File:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if self.access == "mapped" and size:
                mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
                mapped.madvise(mmap.MADV_RANDOM)
                os.close(descriptor)  # a mapping has its own
                return _File(mapped=mapped, size=size)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        except OSError:
            os.close(descriptor)
            raise
        return _File(descriptor=descriptor, size=size)

    def _leave(self, file: _File, num_bytes: int) -> None:
        with self._lock:
            file.users -= 1
            self._reads += 1
            self._bytes += num_bytes
            surplus = len(self._files) - self.limit
            if surplus > 0:
                for key in [key for key, idle in self._files.items() if not idle.users][:surplus]:
                    _close(self._files.pop(key))

    @property
    def traffic(self) -> Traffic:
        """What was asked for so far."""
        with self._lock:
            return Traffic(opens=self._opens, reads=self._reads, bytes=self._bytes)

    def forget(self, key: Hashable) -> None:
        """Open the file anew the next time: it may have been replaced.  One in use stays."""
        with self._lock:
            file = self._files.get(key)
            if file is not None and not file.users:
                _close(self._files.pop(key))

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """Close every file; nothing may be in use."""
        with self._lock:
            while self._files:
                _close(self._files.popitem()[1])


def _populate(mapped: mmap.mmap, begin: int, size: int) -> None:
    """Have the pages there.  Raises OSError where looking at them would end the process."""
    try:
        mapped.madvise(_POPULATE_READ, begin, size)
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise OSError(errno.EIO, _CUT) from error
        raise


def _read(descriptor: int, offset: int, into: memoryview) -> memoryview:
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if not got:
            break
        done += got
    return into[:done]


def _close(file: _File) -> None:
    # A mapping goes with the last view of it: whoever decodes from it now keeps it alive until done.
    if file.mapped is None:
        os.close(file.descriptor)
