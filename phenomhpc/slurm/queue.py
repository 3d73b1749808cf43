"""What Slurm knows of a person's jobs: one query of the controller; accounting only for what it has forgotten."""

from __future__ import annotations

import os
import re
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
        folders = {folder for folder in {job.folder for job in self.jobs} if os.path.realpath(folder) == real}
        return [job for job in self.jobs if job.folder in folders]


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


STEP_FIELDS = "JobID,State,ExitCode,MaxRSS,NodeList,Elapsed,Reason"
_MEMORY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class StepState:
    """A job (step "") or one of its steps ("batch", "extern", "0", ...), as accounting tells it; None: not told.

    signal: the one that ended it, 0 for none; max_rss_bytes: of its largest task; elapsed as Slurm writes it.
    """

    job_id: str
    index: int | None
    step: str
    state: str
    exit_code: int | None = None
    signal: int = 0
    max_rss_bytes: int | None = None
    nodes: str = ""
    elapsed: str = ""
    reason: str = ""

    @property
    def as_job(self) -> JobState:
        """The same as a state of the queue."""
        return JobState(job_id=self.job_id, index=self.index, state=self.state, reason=self.reason, nodes=self.nodes)


def parse_memory(text: str) -> int | None:
    """sacct's `123456K`, `1.50G`, `0` in bytes; None for nothing."""
    text = text.strip().rstrip("nc")  # older versions tell whether it is per node or per core
    if not text:
        return None
    unit = _MEMORY.get(text[-1].upper())
    return int(float(text[:-1]) * unit) if unit else int(float(text))


def parse_steps(text: str) -> list[StepState]:
    """Lines of `sacct -n -P -o STEP_FIELDS`: jobs and their steps; array elements that never started are left out."""
    found = []
    for line in text.splitlines():
        name, state, code, memory, nodes, elapsed, reason = (part.strip() for part in line.split("|", 6))
        element, _, step = name.partition(".")
        if "[" in element or not state:
            continue
        job_id, index = _element(element)
        ended, _, signal = code.partition(":")
        found.append(
            StepState(
                job_id=job_id,
                index=index,
                step=step,
                state=state.split()[0],
                exit_code=int(ended) if ended.isdigit() else None,
                signal=int(signal) if signal.isdigit() else 0,
                max_rss_bytes=parse_memory(memory),
                nodes="" if nodes == "None assigned" else nodes,
                elapsed=elapsed,
                reason="" if reason == "None" else reason,
            )
        )
    return found


def query_steps(job_ids: Sequence[str]) -> list[StepState]:
    """What accounting knows of jobs and their steps, in one question; nothing where there is none, or it does not answer."""
    if not job_ids:
        return []
    try:
        return parse_steps(run_program(["sacct", "-n", "-P", "-j", ",".join(job_ids), "-o", STEP_FIELDS]))
    except (ProgramFailedError, UnreachableError):
        return []


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


# A shell's exit code for a command that a signal ended.
_BY_SIGNAL = 128
_ENDED_BY = re.compile(r"^JobId=(\d+)(?: ArrayJobId=(\d+) ArrayTaskId=(\d+))? .*? ExitCode=(\d+):(\d+) ")


def parse_signals(text: str) -> dict[tuple[str, int | None], int]:
    """Lines of `scontrol show job -o`: the signal that ended a job or element, itself or what its script waited for."""
    found: dict[tuple[str, int | None], int] = {}
    for line in text.splitlines():
        match = _ENDED_BY.match(line)
        if match:
            job_id, array, index, code, number = match.groups()
            signal = int(number) or max(0, int(code) - _BY_SIGNAL)
            if signal:
                found[array or job_id, int(index) if index else None] = signal
    return found


def query_signals(job_ids: Sequence[str]) -> dict[tuple[str, int | None], int]:
    """Of the jobs that the controller remembers those that a signal ended, and which; nothing where it does not answer."""
    found: dict[tuple[str, int | None], int] = {}
    for job_id in job_ids:
        try:
            found |= parse_signals(run_program(["scontrol", "show", "job", "-o", job_id]))
        except (ProgramFailedError, UnreachableError):
            continue
    return found
