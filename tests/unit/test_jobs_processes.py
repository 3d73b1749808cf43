"""What processes hold of the machine's memory, together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from phenomhpc.jobs.processes import resident_bytes

MEGABYTE = 10**6
# Two processes with 60 MB that they share and 20 MB of each one's own; they say who they are, and end when told.
PROGRAM = """
import mmap, os, sys
shared = mmap.mmap(-1, 60_000_000)
shared[:] = bytes(len(shared))
child = os.fork()
own = bytearray(os.urandom(20_000_000))
total = sum(shared[::4096])
os.write(1, b"%d\\n" % os.getpid())
sys.stdin.read(1)
"""


def test_pages_that_processes_share_count_once_and_files_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(50 * MEGABYTE))
    program = (
        f"f = open({str(file)!r}, 'rb'); import mmap\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsum(m[::4096])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program + PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        held = resident_bytes(pids)
        parent.communicate("x")
    assert 100 * MEGABYTE <= held < 130 * MEGABYTE
    assert resident_bytes([parent.pid]) == 0  # gone
