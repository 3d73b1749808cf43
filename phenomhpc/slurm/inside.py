"""What a task inside a Slurm job knows of its place."""

from __future__ import annotations

import os
from dataclasses import dataclass

from phenomhpc.slurm.programs import run_program


@dataclass(frozen=True, kw_only=True)
class Place:
    """A task's job, how often Slurm has restarted it, its rank among the job's tasks, and the hosts of all of them."""

    job_id: str
    restarts: int
    rank: int
    hosts: tuple[str, ...]


def place() -> Place:
    """Read from the environment of the step; the host list is expanded by scontrol."""
    environment = os.environ
    array_id, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    return Place(
        job_id=f"{array_id}_{index}" if array_id else environment["SLURM_JOB_ID"],
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        rank=int(environment.get("SLURM_PROCID", "0")),
        hosts=tuple(run_program(["scontrol", "show", "hostnames", nodes]).split()),
    )
