"""What a task inside a Slurm job knows of its place."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, run_program

# Set by the batch script (render.py): when this start of the job began (seconds since 1970), and its time limit.
BEGAN, LIMIT, LEAD = "PHENOMHPC_JOB_BEGAN", "PHENOMHPC_LIMIT_S", "PHENOMHPC_SIGNAL_LEAD_S"
# The lead where there is no job.
_LEAD_HERE_S = 30
# Slurm may signal up to a minute early, and looks at limits every half minute.
_SLACK_S = 90
_ANSWER_S = 10.0


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
        hosts=_names(nodes),
        index=int(index or 0),
        gpus=_number(environment, "SLURM_GPUS_ON_NODE"),
        cpus=cpus,
        mem_mb=_number(environment, "SLURM_MEM_PER_NODE") or cpus * _number(environment, "SLURM_MEM_PER_CPU"),
    )


def _names(nodes: str) -> tuple[str, ...]:
    """The hosts of Slurm's short form: n[1-3] is n1, n2, n3."""
    if "[" in nodes or "," in nodes:
        return tuple(run_program(["scontrol", "show", "hostnames", nodes]).split())
    return (nodes,)


def is_ours(job_id: str, restarts: int, host: str) -> bool | None:
    """Does Slurm count this node among those of this start of the running job?  None: it gives no answer."""
    try:
        text = run_program(["scontrol", "show", "job", "-o", job_id], limit_s=_ANSWER_S)
        found = parse_job(text)
        return found[:2] == ("RUNNING", restarts) and host in _names(found[2])
    except UnreachableError:
        return None
    except ProgramFailedError as error:
        return False if "Invalid job id" in str(error) else None


def parse_job(text: str) -> tuple[str, int, str]:
    """State, restarts and nodes of `scontrol show job -o`'s line."""
    fields = dict(re.findall(r"(?:^|\s)(JobState|Restarts|NodeList)=(\S*)", text))
    return fields.get("JobState", ""), int(fields.get("Restarts") or 0), fields.get("NodeList", "")


def is_stop_due(environment: Mapping[str, str] = os.environ, now: float | None = None) -> bool:
    """Is it time to stop for the job's limit?  For those who cannot hear Slurm's signal: it goes to the first node alone."""
    began, limit = _number(environment, BEGAN), _number(environment, LIMIT)
    lead = _number(environment, LEAD)
    return bool(began and limit) and (time.time() if now is None else now) >= began + limit - lead


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else 0


def signal_lead_s(environment: Mapping[str, str] = os.environ) -> int:
    """How long before its limit Slurm warns this job, seconds; where there is no job, what a person may wait for."""
    return _number(environment, LEAD) or _LEAD_HERE_S


def stop_reason(environment: Mapping[str, str] = os.environ, now: float | None = None) -> str:
    """Why Slurm asks this job to stop at the moment `now` (seconds since 1970): `timeout` when its limit is near, else
    `preempted`; `asked` where there is no job."""
    began, limit = _number(environment, BEGAN), _number(environment, LIMIT)
    if not began:
        return "asked"
    lead = _number(environment, LEAD)
    near = limit and (time.time() if now is None else now) >= began + limit - lead - _SLACK_S
    return "timeout" if near else "preempted"
