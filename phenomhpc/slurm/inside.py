"""What a task inside a Slurm job knows of its place."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from phenomhpc.slurm.programs import run_program

# Set by the batch script (render.py): when this start of the job began (seconds since 1970), and its time limit.
BEGAN, LIMIT = "PHENOMHPC_JOB_BEGAN", "PHENOMHPC_LIMIT_S"
# Slurm may signal up to a minute early, and looks at limits every half minute.
_SLACK_S = 90


@dataclass(frozen=True, kw_only=True)
class Place:
    """A task's job, how often Slurm has restarted it, its array index (0 in a gang) and rank among the job's tasks.

    hosts: of all tasks, in the order of ranks.  gpus, cpus and mem_mb: what Slurm gave this task on its node; 0 where it does
    not say.
    """

    job_id: str
    restarts: int
    rank: int
    hosts: tuple[str, ...]
    index: int = 0
    gpus: int = 0
    cpus: int = 0
    mem_mb: int = 0

    @property
    def host(self) -> str:
        return self.hosts[self.rank] if self.rank < len(self.hosts) else ""


def place() -> Place:
    """Read from the environment of the step; the host list is expanded by scontrol."""
    environment = os.environ
    array_id, index = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    cpus = _number(environment, "SLURM_CPUS_ON_NODE")
    return Place(
        job_id=f"{array_id}_{index}" if array_id else environment["SLURM_JOB_ID"],
        restarts=_number(environment, "SLURM_RESTART_COUNT"),
        rank=_number(environment, "SLURM_PROCID"),
        # Most jobs have one node, whose name needs no expansion.
        hosts=tuple(run_program(["scontrol", "show", "hostnames", nodes]).split())
        if "[" in nodes or "," in nodes
        else (nodes,),
        index=int(index or 0),
        gpus=_number(environment, "SLURM_GPUS_ON_NODE"),
        cpus=cpus,
        mem_mb=_number(environment, "SLURM_MEM_PER_NODE") or cpus * _number(environment, "SLURM_MEM_PER_CPU"),
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 0


def stop_reason(environment: Mapping[str, str] = os.environ, now: float | None = None) -> str:
    """Why Slurm asks this job to stop at the moment `now` (seconds since 1970): `timeout` when its limit is near, else
    `preempted`; `asked` where there is no job."""
    began, limit = _number(environment, BEGAN), _number(environment, LIMIT)
    if not began:
        return "asked"
    lead = _number(environment, "PHENOMHPC_SIGNAL_LEAD_S")
    near = limit and (time.time() if now is None else now) >= began + limit - lead - _SLACK_S
    return "timeout" if near else "preempted"
