"""python -m tests.cluster.watcher ROOT PID START: takes a cluster down when its owner is gone, however that ended.

The owner is named by process id and start time.  A cluster that was brought up by hand has no owner, and no watcher.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.processes import daemon, start_time

REPOSITORY = Path(__file__).resolve().parents[2]


def start_watcher(root: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the watcher of the cluster in `root`, which this process owns."""
    owner = os.getpid()
    argv = [sys.executable, "-P", "-m", "tests.cluster.watcher", str(root), str(owner), str(start_time(owner))]
    return daemon(["env", f"PYTHONPATH={REPOSITORY}", *argv], log)


def wait_for_end(pid: int, start: int) -> None:
    """Return when that process has ended; at once when it has already."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if start_time(pid) == start:
                select.select([handle], [], [])
        finally:
            os.close(handle)


if __name__ == "__main__":
    wait_for_end(int(sys.argv[2]), int(sys.argv[3]))
    Cluster(Path(sys.argv[1])).down()
