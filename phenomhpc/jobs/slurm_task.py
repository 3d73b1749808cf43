"""What a Slurm task starts: python -m phenomhpc.jobs.slurm_task RUN ATTEMPT OFFSET.

OFFSET is the first task of this array (0 for a gang); the task's number follows from its array index or rank.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from phenomhpc.errors import TASK_GATE_REFUSED
from phenomhpc.jobs.guard import guard
from phenomhpc.runs import RunPaths
from phenomhpc.slurm.inside import place


def main(root: str, attempt: str, offset: str) -> int:
    """Do the task under its guard; the exit code of the step."""
    if not Path(root).is_dir():
        print(
            f"phenomhpc: run directory {root}: is not there on {socket.gethostname()}; is its file system mounted?",
            flush=True,
        )
        return TASK_GATE_REFUSED
    here = place()
    return guard(RunPaths(Path(root)), int(attempt), int(offset) + here.index + here.rank, here)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
