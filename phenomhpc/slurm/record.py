"""slurm.json of an attempt: which jobs were submitted for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from phenomhpc.runs import AttemptPaths, canonical_json, commit
from phenomhpc.slurm.queue import JobState
from phenomhpc.slurm.render import MARK

_COMMENT = re.compile(rf"{MARK} attempt=(\d+) chunk=(\d+) offset=(\d+) size=(\d+)")


@dataclass(frozen=True, kw_only=True)
class SubmittedJobs:
    """(job id, offset, size) per chunk, and the steward's job id.  It grows while chunks are fed.

    An array's element i is task offset + i; a gang is one job of num_tasks nodes, one task each.  num_tasks: of the whole
    attempt, those included that are still to be submitted.
    """

    chunks: tuple[tuple[str, int, int], ...]
    num_tasks: int
    gang: bool
    steward: str | None = None

    @property
    def job_ids(self) -> list[str]:
        return [job_id for job_id, _, _ in self.chunks]

    @property
    def fed(self) -> int:
        """Tasks that were submitted: the first so many."""
        if self.gang:
            return self.num_tasks if self.chunks else 0
        return sum(size for _, _, size in self.chunks)

    def with_chunk(self, job_id: str, offset: int, size: int) -> SubmittedJobs:
        return replace(self, chunks=(*self.chunks, (job_id, offset, size)))

    def job_of(self, task: int) -> str:
        """The job (of an array: the array) that a submitted task belongs to."""
        return self.element_of(task)[0]

    def element_of(self, task: int) -> tuple[str, int | None]:
        """The job, and its element where it is an array, that a submitted task is."""
        if self.gang:
            return self.chunks[0][0], None
        return next((job_id, task - offset) for job_id, offset, size in self.chunks if offset <= task < offset + size)

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


def adopt(jobs: SubmittedJobs, attempt: int, states: Iterable[JobState]) -> SubmittedJobs:
    """The record with the chunk that was submitted but not written down, because its submitter was killed in between.

    At most one can be missing, the next: each is written down before the one behind it is submitted.
    """
    for state in states:
        match = _COMMENT.search(state.comment)
        if match is None:
            continue
        of_attempt, number, offset, size = map(int, match.groups())
        if (of_attempt, number, offset) == (attempt, len(jobs.chunks), jobs.fed):
            return jobs.with_chunk(state.job_id, offset, size)
    return jobs


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
