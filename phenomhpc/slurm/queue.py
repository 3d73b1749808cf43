"""What Slurm knows of a person's jobs: one query of the controller; accounting only for what it has forgotten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """One job or array element: Slurm's word for its state, why it waits, where it runs, its name and folder."""

    job_id: str
    index: int | None
    state: str
    reason: str = ""
    nodes: str = ""
    name: str = ""
    folder: str = ""
    comment: str = ""

    @property
    def is_running(self) -> bool:
        """Its tasks may be at work."""
        return self.is_live and self.state not in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"}

    @property
    def is_live(self) -> bool:
        """It runs, or will."""
        return self.state in LIVE


@dataclass(frozen=True, kw_only=True)
class Queue:
    """All jobs of one person that the controller remembers, at one moment."""

    jobs: tuple[JobState, ...]

    @property
    def num_queued(self) -> int:
        """Jobs that count against the person's limits: those that wait or run, every array element for itself."""
        return sum(job.is_live for job in self.jobs)

    def of_run(self, root: Path) -> list[JobState]:
        """The jobs that were submitted for a run: they start in its folder."""
        real = os.path.realpath(root)
        return [job for job in self.jobs if os.path.realpath(job.folder) == real]


def _element(text: str) -> tuple[str, int | None]:
    job_id, _, index = text.partition("_")
    return job_id, int(index) if index.isdigit() else None


def parse_squeue(text: str) -> list[JobState]:
    """Lines of `squeue -h -r -o %i|%T|%r|%N|%j|%k|%Z`."""
    states = []
    for line in text.splitlines():
        element, state, reason, nodes, name, comment, folder = (part.strip() for part in line.split("|", 6))
        job_id, index = _element(element)
        states.append(
            JobState(
                job_id=job_id,
                index=index,
                state=state,
                reason=reason,
                nodes=nodes,
                name=name,
                folder=folder,
                comment=comment,
            )
        )
    return states


def parse_sacct(text: str) -> list[JobState]:
    """Lines of `sacct -n -X -P -o JobID,State,NodeList`; `CANCELLED by 0` is CANCELLED."""
    states = []
    for line in text.splitlines():
        element, state, nodes = (part.strip() for part in line.split("|", 2))
        job_id, index = _element(element)
        if "[" not in element:  # array elements that never started are listed as one
            states.append(JobState(job_id=job_id, index=index, state=state.split()[0] if state else "", nodes=nodes))
    return states


def query_queue(root: Path) -> Queue:
    """The jobs of the owner of `root` (a run directory, or the folder of all runs).

    What is absent has been forgotten by the controller (MinJobAge), and that means nothing by itself.
    Raises UnreachableError when the controller does not answer.
    """
    argv = ["squeue", "-h", "-r", "-t", "all", "-u", str(root.stat().st_uid), "-o", "%i|%T|%r|%N|%j|%k|%Z"]
    try:
        return Queue(jobs=tuple(parse_squeue(run_program(argv))))
    except ProgramFailedError as error:
        raise UnreachableError(f"squeue: {error}") from error


def query_accounting(job_ids: Sequence[str]) -> list[JobState]:
    """What accounting knows of jobs; nothing where there is none, or it does not answer."""
    if not job_ids:
        return []
    try:
        return parse_sacct(
            run_program(["sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State,NodeList"])
        )
    except (ProgramFailedError, UnreachableError):
        return []
