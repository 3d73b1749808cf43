"""slurm.json of an attempt: which jobs were submitted for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from phenomhpc.runs import AttemptPaths, canonical_json, commit
from phenomhpc.slurm.queue import JobState


@dataclass(frozen=True, kw_only=True)
class SubmittedJobs:
    """(job id, offset, size) per chunk, and the steward's job id.

    An array's element i is task offset + i; a gang is one job of num_tasks nodes, one task each.
    """

    chunks: tuple[tuple[str, int, int], ...]
    num_tasks: int
    gang: bool
    steward: str | None = None

    @property
    def job_ids(self) -> list[str]:
        return [job_id for job_id, _, _ in self.chunks]

    def job_of(self, task: int) -> str:
        """The job (of an array: the array) that a task belongs to."""
        if self.gang:
            return self.chunks[0][0]
        return next(job_id for job_id, offset, size in self.chunks if offset <= task < offset + size)

    def by_task(self, states: Iterable[JobState]) -> dict[int, JobState]:
        """States by task; foreign jobs are left out."""
        offsets = {job_id: offset for job_id, offset, _ in self.chunks}
        found: dict[int, JobState] = {}
        for state in states:
            if state.job_id not in offsets:
                continue
            if self.gang:
                found.update(dict.fromkeys(range(self.num_tasks), state))
            elif state.index is not None:
                found[offsets[state.job_id] + state.index] = state
        return found


def write_submitted(attempt: AttemptPaths, jobs: SubmittedJobs) -> None:
    """Commit slurm.json."""
    commit(attempt.slurm, canonical_json(asdict(jobs)))


def read_submitted(attempt: AttemptPaths) -> SubmittedJobs | None:
    """slurm.json, or None for an attempt that was never submitted."""
    try:
        raw = json.loads(attempt.slurm.read_bytes())
    except FileNotFoundError:
        return None
    chunks = tuple((str(job_id), int(offset), int(size)) for job_id, offset, size in raw["chunks"])
    return SubmittedJobs(chunks=chunks, num_tasks=raw["num_tasks"], gang=raw["gang"], steward=raw["steward"])
