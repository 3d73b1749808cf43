"""Memory cgroups (version 1) of the pretended nodes: each node has a hierarchy of its own, inside the machine's one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

HIERARCHY = Path("/sys/fs/cgroup/memory")


class MemoryGroups:
    """The groups of the cluster in `root`: HIERARCHY/phenomhpc-DIGEST/NODE, in which Slurm makes its own."""

    def __init__(self, root: Path) -> None:
        self._top = HIERARCHY / f"phenomhpc-{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:12]}"

    def make(self) -> bool:
        """False where memory cgroups of version 1 are not there, or not ours to write."""
        if not (HIERARCHY / "memory.limit_in_bytes").is_file():
            return False
        try:
            self._top.mkdir(exist_ok=True)
        except OSError:
            return False
        return True

    @property
    def exist(self) -> bool:
        return self._top.is_dir()

    def node(self, name: str) -> Path:
        """A node's hierarchy, empty as after a boot."""
        folder = self._top / name
        _remove(folder, 2.0)
        folder.mkdir(exist_ok=True)
        return folder

    def remove(self, limit_s: float = 10.0) -> None:
        """Remove all of it; processes that were just killed may hold a group for a moment."""
        _remove(self._top, limit_s)


def _remove(folder: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while folder.is_dir():
        for inner, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                Path(inner).rmdir()
        if time.monotonic() > deadline:
            return
        if folder.is_dir():
            time.sleep(0.05)
