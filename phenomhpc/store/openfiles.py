"""A bounded pool of open files, for reads at random positions by many threads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Open:
    descriptor: int
    users: int = 0


class OpenFiles:
    """File descriptors by key, least recently used closed first.  Thread-safe.

    A descriptor in use is never closed: its number could come back as another file's, whose bytes a reader would take for
    its own.  So up to one file per thread more than `limit` may be open for a moment.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[Hashable, _Open] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, key: Hashable, path: Path) -> Iterator[int]:
        """A descriptor of `path`, opened for reading unless `key` is open already.  Raises OSError."""
        with self._lock:
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = _Open(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            else:
                self._files.move_to_end(key)
            file.users += 1
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1
                self._close_surplus()

    def _close_surplus(self) -> None:
        surplus = len(self._files) - self._limit
        if surplus > 0:
            idle = [key for key, file in self._files.items() if not file.users][:surplus]
            for key in idle:
                os.close(self._files.pop(key).descriptor)

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """Close every file; nothing may be in use."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1].descriptor)
