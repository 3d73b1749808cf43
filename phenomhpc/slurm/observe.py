"""What became of a run's newest attempt: the run directory first, Slurm for what is absent there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from phenomhpc.runs import Event, RunPaths, read_events_but_units
from phenomhpc.slurm.decide import WITHOUT_A_WORD, FailureClass, TaskView, view_gang, view_tasks
from phenomhpc.slurm.last_lines import with_last_lines
from phenomhpc.slurm.queue import JobState, Queue, query_accounting, query_queue, query_signals
from phenomhpc.slurm.record import SubmittedJobs, adopt, read_submitted

STEWARD = "steward-"
Accounting = Literal["always", "when_ended", "never"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """An attempt at one moment; attempt 0: there is none yet; submitted None: it was never (wholly) submitted.

    live: ids of its jobs that run or wait; stewards: the run's living stewards; strays: living jobs of the run that its
    newest attempt does not name (left by a submitter that was killed, or by an older attempt).  queued: how many jobs the
    owner has in the queue.
    """

    attempt: int
    submitted: SubmittedJobs | None
    tasks: tuple[TaskView, ...]
    live: tuple[str, ...]
    stewards: tuple[str, ...]
    strays: tuple[str, ...]
    queued: int = 0

    @property
    def unfed(self) -> int:
        """Tasks of the attempt that are still to be submitted."""
        return self.submitted.num_tasks - self.submitted.fed if self.submitted else 0


def observe(
    paths: RunPaths,
    queue: Queue | None = None,
    *,
    own_job: str | None = None,
    accounting: Accounting = "always",
    events: Sequence[Event] | None = None,
) -> Observation:
    """Look at the newest attempt.  queue: asked of Slurm where not given; own_job: the steward that asks;
    accounting: when it is asked about tasks that the controller has forgotten; when_ended: only where no other lives, since
    nothing is decided before; events: of the run, where they are read already (else those of array tasks that live are not: nothing
    is decided by them).

    Slurm's silence about a job never makes it done or failed while accounting knows better; a task is done when its
    tally of this attempt is written.  Raises UnreachableError when the controller does not answer.
    """
    queue = queue or query_queue(paths.root)
    attempt = paths.last_attempt()
    submitted = read_submitted(paths.attempt(attempt)) if attempt else None
    if submitted is not None:
        submitted = adopt(submitted, attempt, queue.of_run(paths.root))
    known = submitted.job_ids if submitted else []
    living = [job for job in queue.of_run(paths.root) if job.is_live and job.job_id != own_job]
    stewards = {job.job_id for job in living if job.name.startswith(STEWARD)}
    tasks: list[TaskView] = []
    live: set[str] = set()
    if submitted is not None:
        done = done_tasks(paths, attempt)
        jobs = _states(submitted, queue, done, accounting)
        if events is not None:
            own = [event for event in events if event["attempt"] == attempt]
        elif submitted.gang:
            own = read_events_but_units(paths, attempt=attempt)
        else:
            own = _words_of_ended(paths, attempt, submitted, done, jobs)
        live = {job.job_id for job in jobs.values() if job.is_live}
        logs = paths.log_names(submitted.num_tasks, attempt)
        tasks = view_gang(logs, done, own, jobs) if submitted.gang else view_tasks(logs, done, own, jobs, submitted.fed)
        if events is not None or not live:  # before all have ended nothing is decided
            tasks = _with_signals(with_last_lines(tasks, gang=submitted.gang), submitted)
    return Observation(
        attempt=attempt,
        submitted=submitted,
        tasks=tuple(tasks),
        live=tuple(sorted(live)),
        stewards=tuple(sorted(stewards)),
        queued=queue.num_queued,
        strays=tuple(sorted({job.job_id for job in living} - stewards - set(known))),
    )


def _with_signals(tasks: Sequence[TaskView], submitted: SubmittedJobs) -> list[TaskView]:
    """The tasks; those that said nothing at all because a signal ended them are a node's failure, not one of the code."""
    silent = [task.task for task in tasks if task.failure == FailureClass.CODE_ERROR and WITHOUT_A_WORD in task.message]
    if not silent:
        return list(tasks)
    ended = query_signals(sorted({submitted.job_of(task) for task in silent}))
    numbers = {task: ended[element] for task in silent if (element := submitted.element_of(task)) in ended}
    return [
        replace(
            task,
            failure=FailureClass.NODE_FAIL,
            message=f"ended by signal {numbers[task.task]} before its first word",
            crashed=True,
        )
        if task.task in numbers
        else task
        for task in tasks
    ]


def with_submitted(queue: Queue, before: Collection[str], runs: Iterable[RunPaths]) -> Queue:
    """The queue with the jobs that were submitted after it was asked, and so wait; `before` were submitted earlier."""
    new: list[JobState] = []
    for run in runs:
        submitted = read_submitted(run.attempt(run.last_attempt()))
        for job_id, _, size in submitted.chunks if submitted else ():
            if job_id not in before:
                blank = JobState(job_id=job_id, index=None, state="PENDING", name=run.id, folder=str(run.root))
                indices = [None] if submitted and submitted.gang else range(size)
                new += [replace(blank, index=index) for index in indices]
    return Queue(jobs=(*queue.jobs, *new)) if new else queue


def _states(
    submitted: SubmittedJobs, queue: Queue, done_already: Collection[int], accounting: Accounting
) -> dict[int, JobState]:
    """Slurm's state by task, of a gang the job's for all its tasks; accounting is asked only for tasks that need it."""
    known = set(submitted.job_ids)
    states = submitted.by_task(job for job in queue.jobs if job.job_id in known)
    done = set(done_already)
    lost = [task for task in range(submitted.fed) if task not in states and task not in done]
    if accounting == "when_ended" and any(state.is_live for state in states.values()):
        return states
    if lost and accounting != "never":
        ids = sorted({submitted.job_of(task) for task in lost})
        states = submitted.by_task(query_accounting(ids)) | states
    return states


def with_forgotten(queue: Queue, runs: Iterable[RunPaths]) -> Queue:
    """The queue with what accounting tells of the tasks of these runs that the controller has forgotten, in one question."""
    ids: set[str] = set()
    for run in runs:
        attempt = run.last_attempt()
        submitted = read_submitted(run.attempt(attempt)) if attempt else None
        if submitted is not None:
            known = submitted.by_task(queue.jobs).keys() | set(done_tasks(run, attempt))
            ids.update(submitted.job_of(task) for task in range(submitted.fed) if task not in known)
    there = {(job.job_id, job.index) for job in queue.jobs}
    told = [job for job in query_accounting(sorted(ids)) if (job.job_id, job.index) not in there]
    return Queue(jobs=(*queue.jobs, *told))


def _words_of_ended(
    paths: RunPaths, attempt: int, submitted: SubmittedJobs, done: Collection[int], jobs: Mapping[int, JobState]
) -> list[Event]:
    """What those tasks said that are neither done nor alive: few of many, as a rule."""
    settled = {*done, *(task for task, job in jobs.items() if job.is_live)}
    tasks = [task for task in range(submitted.fed) if task not in settled]
    return read_events_but_units(paths, attempt=attempt, tasks=tasks)


@lru_cache(maxsize=16)
def _tallied(root: Path, attempt: int) -> set[int]:
    """Tasks of an attempt whose tally was read in this process: it stays."""
    return set()


def done_tasks(paths: RunPaths, attempt: int) -> list[int]:
    """Tasks whose tally of this attempt is written."""
    found = _tallied(paths.root, attempt)
    for path in paths.done.glob("*.json") if paths.done.is_dir() else ():
        task = int(path.stem)
        if task not in found and json.loads(path.read_bytes())["attempt"] == attempt:
            found.add(task)
    return sorted(found)
