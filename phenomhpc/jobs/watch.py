"""Following a run: its status again and again, more rarely while nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from phenomhpc.jobs.status import RunStatus, tended_status
from phenomhpc.jobs.usage import Usage
from phenomhpc.runs import RunPaths, read_outcome

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0
# How often the end of the run is looked for in between: a look into its directory, none at Slurm.
GLANCE_S = 1.0


def next_pause(pause_s: float, changed: bool) -> float:
    """Seconds until the next question to Slurm: the shortest after a change, else half as long again."""
    return FIRST_PAUSE_S if changed else min(pause_s * 1.5, LONGEST_PAUSE_S)


def essence(status: RunStatus) -> RunStatus:
    """A status without what changes by the clock alone."""
    stage = essence(status.stage) if status.stage else None
    return replace(
        status, usage=Usage(), rate_per_s=None, parts_per_s=None, raw_mb_per_s=None, left_s=None, stage=stage
    )


def follow(
    paths: RunPaths,
    look: Callable[[RunPaths], RunStatus] = tended_status,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RunStatus]:
    """The status now and after every pause, the last one when the run has ended.  A silent Slurm ends nothing."""
    pause_s = FIRST_PAUSE_S
    seen: RunStatus | None = None
    while True:
        ended = read_outcome(paths) is not None
        status = look(paths)
        yield status
        if ended or (status.where == "here" and status.state == "unknown"):
            return
        pause_s = next_pause(pause_s, seen is None or essence(status) != essence(seen))
        seen, waited = status, 0.0
        while waited < pause_s and read_outcome(paths) is None:
            sleep(GLANCE_S)
            waited += GLANCE_S
