"""What Slurm knows of a run's jobs: one batched query, and a second one only for what the first no longer knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, run_program

LIVE = frozenset(
    {
        "PENDING",
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "STOPPED",
        "SIGNALING",
        "STAGE_OUT",
    }
)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """One job or array element: Slurm's word for its state, why it waits, and where it runs."""

    job_id: str
    index: int | None
    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_live(self) -> bool:
        """It runs, or will."""
        return self.state in LIVE


def _element(text: str) -> tuple[str, int | None]:
    job_id, _, index = text.partition("_")
    return job_id, int(index) if index.isdigit() else None


def parse_squeue(text: str) -> list[JobState]:
    """Lines of `squeue -h -r -o %i|%T|%r|%N`."""
    states = []
    for line in text.splitlines():
        name, state, reason, nodes = (part.strip() for part in line.split("|", 3))
        job_id, index = _element(name)
        states.append(JobState(job_id=job_id, index=index, state=state, reason=reason, nodes=nodes))
    return states


def parse_sacct(text: str) -> list[JobState]:
    """Lines of `sacct -n -X -P -o JobID,State,NodeList`; `CANCELLED by 0` is CANCELLED."""
    states = []
    for line in text.splitlines():
        name, state, nodes = (part.strip() for part in line.split("|", 2))
        job_id, index = _element(name)
        if "[" not in name:
            states.append(JobState(job_id=job_id, index=index, state=state.split()[0] if state else "", nodes=nodes))
    return states


def query_jobs(job_ids: Sequence[str]) -> dict[tuple[str, int | None], JobState]:
    """State of each job (array element) that Slurm still knows; what it does not know is absent, and means nothing.

    Raises UnreachableError when the controller does not answer.
    """
    if not job_ids:
        return {}
    try:
        known = parse_squeue(
            run_program(["squeue", "-h", "-r", "-t", "all", "-j", ",".join(job_ids), "-o", "%i|%T|%r|%N"])
        )
    except ProgramFailedError:
        known = []  # "Invalid job id": the controller has forgotten all of them
    found = {(state.job_id, state.index): state for state in known}
    missing = [job_id for job_id in job_ids if not any(key[0] == job_id for key in found)]
    if missing:
        for state in _accounted(missing):
            found.setdefault((state.job_id, state.index), state)
    return found


def _accounted(job_ids: Sequence[str]) -> list[JobState]:
    """What accounting knows; nothing where there is none."""
    try:
        return parse_sacct(
            run_program(["sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State,NodeList"])
        )
    except (ProgramFailedError, UnreachableError):
        return []
