"""What submitit calls inside a Slurm job: one task, with its exit code as the step's."""

from __future__ import annotations

import sys

from phenomhpc.jobs.task import run_task
from phenomhpc.slurm.inside import place


def main(root: str, attempt: int, task: int) -> None:
    """Do task `task` of an attempt (of a gang: the one of this node's rank).

    Raises SystemExit with the task's code when it is not 0: submitit then writes no result, and the batch script sees it.
    """
    here = place()
    code = run_task(root, attempt, task + here.rank, start=here.restarts, hosts=here.hosts, job_id=here.job_id)
    if code:
        sys.exit(code)
