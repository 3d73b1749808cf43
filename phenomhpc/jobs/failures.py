"""Why single tasks failed: their last words, and Slurm's for their jobs and steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from phenomhpc.runs import Event, RunPaths
from phenomhpc.slurm.decide import FailureClass, TaskView
from phenomhpc.slurm.queue import JobState, StepState
from phenomhpc.slurm.record import SubmittedJobs

# Worst first: what stops a run, then what is tried again.
_ORDER = (
    FailureClass.CODE_ERROR,
    FailureClass.BAD_INPUT,
    FailureClass.NO_PROGRESS,
    FailureClass.HANG,
    FailureClass.OOM,
    FailureClass.TIMEOUT,
    FailureClass.NODE_FAIL,
    FailureClass.PREEMPTED,
    FailureClass.CANCELLED,
)
_OOM_STATE = "OUT_OF_MEMORY"
_TRACEBACK = "Traceback (most recent call last):"
_STACK = "--- stack of pid "
_TAIL_BYTES = 1 << 17


@dataclass(frozen=True, kw_only=True)
class TaskFailure:
    """Why one task of one attempt ended early.  step_state is Slurm's word for its worst step; None: nobody told."""

    attempt: int
    task: int
    failure: str
    message: str
    host: str = ""
    exit_code: int | None = None
    signal: int = 0
    max_rss_bytes: int | None = None
    slurm_state: str = ""
    step_state: str = ""
    unit_id: str | None = None
    traceback: str = ""
    log: str = ""
    log_command: str = ""


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """What accounting told, by job and array index: the job's own line, and its steps."""

    jobs: Mapping[tuple[str, int | None], StepState] = field(default_factory=dict)
    steps: Mapping[tuple[str, int | None], Sequence[StepState]] = field(default_factory=dict)

    def states(self) -> list[JobState]:
        """The jobs' states; one of whose steps ran out of memory did so itself, which Slurm may tell of the step only."""
        found = []
        for key, job in self.jobs.items():
            starved = any(step.state == _OOM_STATE for step in self.steps.get(key, ()))
            hidden = starved and job.state in {"FAILED", "COMPLETED", "CANCELLED"}
            found.append(replace(job.as_job, state=_OOM_STATE) if hidden else job.as_job)
        return found


def accounting_of(lines: Iterable[StepState]) -> Accounting:
    """Sort accounting's lines by job."""
    jobs: dict[tuple[str, int | None], StepState] = {}
    steps: dict[tuple[str, int | None], list[StepState]] = defaultdict(list)
    for line in lines:
        key = (line.job_id, line.index)
        if line.step:
            steps[key].append(line)
        else:
            jobs[key] = line
    return Accounting(jobs=jobs, steps=dict(steps))


def rank_of(view: TaskView) -> int:
    """Where a failure stands among others: the worst is 0."""
    return _ORDER.index(view.failure) if view.failure in _ORDER else len(_ORDER)


def failures_of(
    paths: RunPaths,
    views: Sequence[TaskView],
    submitted: Mapping[int, SubmittedJobs | None],
    events: Sequence[Event],
    told: Accounting,
) -> list[TaskFailure]:
    """The failed tasks of one attempt, worst first; of one class, the first to speak first."""
    failed = [view for view in views if view.failure is not None]
    if not failed:
        return []
    attempt = paths.last_attempt()
    own: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["attempt"] == attempt:
            own[event["task"]].append(event)
    found = []
    for view in failed:
        words = [event for event in own[view.task] if event["event"] == "failed"]
        rank = rank_of(view)
        said = words[-1]["time"] if words else "~"
        found.append(
            ((rank, said, view.task), _failure(paths, attempt, view, own[view.task], submitted[attempt], told))
        )
    return [failure for _, failure in sorted(found, key=lambda entry: entry[0])]


def _failure(
    paths: RunPaths,
    attempt: int,
    view: TaskView,
    own: Sequence[Event],
    submitted: SubmittedJobs | None,
    told: Accounting,
) -> TaskFailure:
    last = {event["event"]: event for event in own}
    failed, ended, started = (last.get(name, {}) for name in ("failed", "ended", "started"))
    key = _key(submitted, view.task)
    job, steps = told.jobs.get(key), told.steps.get(key, ())
    ended_badly = [step for step in steps if step.state not in {"COMPLETED", "RUNNING"}]
    worst = next((step for step in ended_badly if step.state == _OOM_STATE), ended_badly[0] if ended_badly else None)
    line = worst or job
    log = view.log if view.log and Path(view.log).is_file() else ""
    code = ended.get("code", failed.get("exit_code", line.exit_code if line else None))
    return TaskFailure(
        attempt=attempt,
        task=view.task,
        failure=str(view.failure),
        message=view.message,
        host=str(started.get("host") or (job.nodes if job else "")),
        exit_code=code,
        signal=line.signal if line else 0,
        max_rss_bytes=max((peak for peak in _peaks(ended, steps) if peak), default=None),
        slurm_state=job.state if job else view.state,
        step_state=f"{worst.step}: {worst.state}" if worst else "",
        unit_id=failed.get("unit_id"),
        traceback=str(failed.get("traceback") or (last_traceback(Path(log)) if log else "")).rstrip(),
        log=log,
        log_command=f"phenomhpc logs {paths.id} --task {view.task} --attempt {attempt}" if log else "",
    )


def _peaks(ended: Event, steps: Iterable[StepState]) -> list[int | None]:
    return [ended.get("max_rss_bytes"), *(step.max_rss_bytes for step in steps)]


def _key(submitted: SubmittedJobs | None, task: int) -> tuple[str, int | None]:
    """The job, and the array index, that a task of an attempt was."""
    if submitted is None:
        return "", None
    if submitted.gang:
        return submitted.chunks[0][0], None
    job = next(((job, offset) for job, offset, size in submitted.chunks if offset <= task < offset + size), None)
    return (job[0], task - job[1]) if job else ("", None)


def last_traceback(log: Path) -> str:
    """The last Python traceback in the tail of a log, or the stacks that the watchdog took; empty where there is none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    position = max(text.rfind(_TRACEBACK), text.rfind(f"\n{_STACK}") + 1)
    if position <= 0 and not text.startswith((_TRACEBACK, _STACK)):
        return ""
    lines = text[position:].splitlines()
    if lines[0].lstrip().startswith(_STACK):
        first = text.find(_STACK)
        return text[first:].rstrip()
    kept = lines[:1]
    for line in lines[1:]:
        kept.append(line)
        if line and not line[0].isspace():
            break  # the exception itself
    return "\n".join(kept)
