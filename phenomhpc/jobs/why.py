"""Why a run is where it is: the run directory's events, Slurm's word for the jobs and their steps, the steward's decisions.

Values only; the command line draws them.  Without accounting, and without Slurm, it does with what the run directory tells.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, load_run_config
from phenomhpc.errors import UnreachableError, UsageError, is_lost_peer
from phenomhpc.jobs.attempts import STEWARD_TASK, stage_runs_of
from phenomhpc.jobs.status import AT_WORK, UNKNOWN, RunStatus, on_slurm, run_status
from phenomhpc.runs import Event, RunPaths, read_events, read_manifest, read_outcome
from phenomhpc.slurm.decide import FailureClass, TaskView, view_gang, view_tasks
from phenomhpc.slurm.queue import JobState, Queue, StepState, query_queue, query_steps
from phenomhpc.slurm.record import SubmittedJobs, read_submitted

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
# How decide.py calls a task of which nobody knows anything.
VANISHED = "vanished"
# What a task that was cancelled may look like.
_SILENT = frozenset({FailureClass.NODE_FAIL, FailureClass.PREEMPTED})
# More hosts than this are counted, not named.
MAX_HOSTS = 3


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
class Why:
    """state and message as in RunStatus.  failure: the class, where the run or its newest attempt failed.

    summary: of the newest attempt's tasks, `612 ok, 3 oom, 1 node_fail on n17`; failures: of that attempt, worst first;
    set_aside: (thing, reason) of bad input; decided: what the steward made of it; earlier: attempts and starts that failed
    before, one line each; of a pipeline all of this is told of the stage it ended in.
    """

    id: str
    kind: str
    state: str
    message: str
    stage: str = ""
    failure: str = ""
    attempt: int = 0
    summary: str = ""
    decided: str = ""
    log: str = ""
    failures: tuple[TaskFailure, ...] = ()
    earlier: tuple[str, ...] = ()
    set_aside: tuple[tuple[str, str], ...] = ()


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


# -- the run ----------------------------------------------------------------------------------------------------------


def why(paths: RunPaths, *, task: int | None = None) -> Why:
    """Why a run is where it is; of `task` only, where given.  One question to Slurm's controller, one to accounting.

    Raises UsageError for a task that the newest attempt does not have.
    """
    queue, problem = None, ""
    if on_slurm(paths) and read_outcome(paths) is None:
        try:
            queue = query_queue(paths.root)
        except UnreachableError as error:
            problem = str(error)
    return _why(paths, task, queue, problem)


def _why(paths: RunPaths, task: int | None, queue: Queue | None, problem: str) -> Why:
    config = load_run_config(paths.run_yaml)
    status = run_status(paths, queue, problem=problem)
    stage = _stage(paths, config)
    if stage is not None and task is None and status.state != "finished":
        inner = _why(stage[1], None, queue, problem)
        told = replace(inner, id=paths.id, kind=config.kind, state=status.state, message=status.message)
        return replace(told, stage=f"{stage[0]}, run {stage[1].id}: {inner.state}: {inner.message}")
    return _explain(paths, status, task, queue)


def _stage(paths: RunPaths, config: AnyConfig) -> tuple[str, RunPaths] | None:
    """The stage a pipeline ended in, or is at."""
    if not isinstance(config, PipelineConfig):
        return None
    if on_slurm(paths):
        runs = list(stage_runs_of(paths, config).items())
    else:
        from phenomhpc.jobs.pipeline import stage_runs

        runs = [(stage, RunPaths(paths.root.parent / run)) for stage, run in stage_runs(paths).items()]
    return runs[-1] if runs else None


def _explain(paths: RunPaths, status: RunStatus, task: int | None, queue: Queue | None) -> Why:
    numbers = range(1, paths.last_attempt() + 1)
    submitted = {number: read_submitted(paths.attempt(number)) for number in numbers}
    ids = [job for jobs in submitted.values() if jobs for job in jobs.job_ids]
    told = accounting_of(query_steps(ids)) if on_slurm(paths) else Accounting()
    events = read_events(paths)
    jobs = [*told.states(), *(queue.jobs if queue else ())]
    views = {number: _views(paths, number, submitted[number], events, jobs) for number in numbers}
    newest = [_as_ended(view, status) for view in views.get(paths.last_attempt(), [])]
    if task is not None:
        newest = [view for view in newest if view.task == task]
        if not newest:
            raise UsageError(
                f"run {paths.id}: attempt {paths.last_attempt()} has no task {task}; see phenomhpc why {paths.id}"
            )
    failures = _failures(paths, newest, submitted, events, told)
    decided = [event for event in events if event["event"] == "decided"]
    outcome = read_outcome(paths)
    failure = failures[0].failure if failures else ""
    if outcome is not None and outcome.get("failure"):
        failure = str(
            outcome["failure"]
        )  # what decided: two ends at one point are no_progress, whatever each of them was
    log = ""
    if not failures and task is None and outcome is not None and outcome["state"] == "failed":
        failure, log = _end_failure(paths)
    return Why(
        id=status.id,
        kind=status.kind,
        state=status.state,
        message=status.message,
        failure=failure,
        attempt=paths.last_attempt(),
        summary=_summary(newest),
        decided=f"{decided[-1]['action']}: {decided[-1]['reason']}" if decided and failures else "",
        log=log,
        failures=tuple(failures),
        earlier=tuple(_earlier(views, events, decided)),
        set_aside=tuple((str(thing), str(reason)) for thing, reason in outcome.get("set_aside", ())) if outcome else (),
    )


def unit_classes(paths: RunPaths) -> dict[str, str]:
    """Why the task failed that had a unit last, by unit; of a run that has ended.  Units of tasks that were done are left out."""
    outcome = read_outcome(paths)
    cancelled = outcome is not None and outcome["state"] == "cancelled"
    numbers = range(1, paths.last_attempt() + 1)
    submitted = {number: read_submitted(paths.attempt(number)) for number in numbers}
    told = accounting_of(query_steps([job for jobs in submitted.values() if jobs for job in jobs.job_ids]))
    events = read_events(paths)
    found: dict[str, str] = {}
    for number in numbers:
        manifest = paths.attempt(number).manifest
        views = {view.task: view for view in _views(paths, number, submitted[number], events, told.states())}
        for unit in read_manifest(manifest) if manifest.is_file() else ():
            view = views.get(unit.task)
            if view is None or view.failure is None:
                found.pop(unit.unit_id, None)
                continue
            silent = cancelled and number == numbers[-1] and view.failure in _SILENT
            found[unit.unit_id] = str(FailureClass.CANCELLED if silent else view.failure)
    return found


def _end_failure(paths: RunPaths) -> tuple[str, str]:
    """The class of a run all of whose tasks are done, and which failed at its end; and where its end was logged."""
    bad = any(json.loads(path.read_bytes()).get("set_aside") for path in paths.done.glob("*.json"))
    log = paths.log_file("steward", paths.last_attempt())
    kind = FailureClass.BAD_INPUT if bad else FailureClass.CODE_ERROR
    return str(kind), str(log) if log.is_file() else ""


def _views(
    paths: RunPaths,
    attempt: int,
    submitted: SubmittedJobs | None,
    events: Sequence[Event],
    jobs: Sequence[JobState],
) -> list[TaskView]:
    """Every task of an attempt as the steward sees it; of one here only those that spoke.  jobs: the latest state counts."""
    own = [event for event in events if event["attempt"] == attempt and event["task"] != STEWARD_TASK]
    done = {event["task"] for event in own if event["event"] == "finished"}
    if submitted is None:  # here
        spoke = {event["task"] for event in own if event["event"] in {"failed", "preempted", "finished"}}
        views = view_tasks([""] * (max(spoke, default=-1) + 1), done, own, {})
        return [view for view in views if view.task in spoke]
    states = submitted.by_task(jobs)
    logs = paths.log_names(submitted.num_tasks, attempt)
    if submitted.gang:
        views = view_gang(logs, done, own, states)
    else:
        views = view_tasks(logs, done, own, states, submitted.fed)
    return [_by_decision(view, states, events, attempt) for view in views]


def _as_ended(view: TaskView, status: RunStatus) -> TaskView:
    """What silence means: of a cancelled run that it was cancelled, while Slurm does not answer nothing."""
    if view.failure not in _SILENT:
        return view
    if status.state == "cancelled":
        return replace(view, failure=FailureClass.CANCELLED, message=status.message)
    if status.state == UNKNOWN and VANISHED in view.message:
        return replace(view, failure=None, message="")
    return view


def _by_decision(view: TaskView, states: Mapping[int, JobState], events: Sequence[Event], attempt: int) -> TaskView:
    """Where neither the task nor Slurm tells any more, what the steward saw when they did."""
    if view.failure is None or view.task in states or VANISHED not in view.message:
        return view
    classes = {
        name
        for event in events
        if event["event"] == "decided" and event["attempt"] == attempt
        for name in event.get("classes") or ()
    }
    if len(classes) != 1:
        return view
    return replace(
        view, failure=FailureClass(classes.pop()), message="the steward saw it; Slurm has forgotten it since"
    )


# -- tasks ------------------------------------------------------------------------------------------------------------


def _failures(
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
        rank = _ORDER.index(view.failure) if view.failure in _ORDER else len(_ORDER)
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


# -- in words ---------------------------------------------------------------------------------------------------------


def _summary(views: Sequence[TaskView]) -> str:
    """`612 ok, 3 oom, 1 node_fail on n17, 2 running`: most telling first."""
    hosts: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for view in views:
        if view.failure is not None:
            counts[str(view.failure)] += 1
            if view.host:
                hosts[str(view.failure)].add(view.host)
    words = [(sum(view.done for view in views), "ok")]
    parts = [f"{count} {name}" for count, name in words if count]
    for name, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        where = hosts[name]
        named = f" on {', '.join(sorted(where))}" if 0 < len(where) <= MAX_HOSTS else ""
        parts.append(f"{count} {name}{named}")
    living = Counter(
        "running" if view.live and view.state in AT_WORK else "waiting"
        for view in views
        if not view.done and view.failure is None
    )
    parts += [f"{count} {name}" for name, count in sorted(living.items())]
    return ", ".join(parts)


def _earlier(views: Mapping[int, Sequence[TaskView]], events: Sequence[Event], decided: Sequence[Event]) -> list[str]:
    """One line for every attempt that failed before the newest, and for starts that Slurm repeated within an attempt."""
    lines = []
    newest = max(views, default=0)
    for attempt, tasks in views.items():
        failed = [view for view in tasks if view.failure is not None]
        if attempt < newest and failed:
            then = [f"; then {event['action']}" for event in decided if event["attempt"] == attempt]
            first = min(failed, key=lambda view: (_rank(view), view.task))
            lines.append(
                f"attempt {attempt}: {_summary(tasks)} (task {first.task}: {first.message}){''.join(then[-1:])}"
            )
        repeated = _repeated(event for event in events if event["attempt"] == attempt)
        if repeated:
            counts = ", ".join(f"{count} {name} on {host}" for (name, host), count in sorted(repeated.items()))
            lines.append(f"attempt {attempt}: {sum(repeated.values())} start(s) that Slurm repeated: {counts}")
        lines += [
            f"attempt {attempt}: went on with {', '.join(event['nodes'])} after losing {', '.join(event['lost'])}: {event['why']}"
            for event in events
            if event["attempt"] == attempt and event["event"] == "round" and event["lost"]
        ]
    lines += [
        f"retried after attempt {event['attempt']}: {event['was']}: {event['message']}"
        for event in events
        if event["event"] == "retried"
    ]
    return lines


def _rank(view: TaskView) -> int:
    return _ORDER.index(view.failure) if view.failure in _ORDER else len(_ORDER)


def _repeated(events: Iterable[Event]) -> Counter[tuple[str, str]]:
    """Why and where starts ended that another start of the same task followed; one that said nothing lost its node,
    one that blames another rank lost that one's."""
    last: dict[int, Event] = {}
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        task = event["task"]
        if event["event"] == "started" and task in last:
            before = last[task]
            if before.get("class") == FailureClass.CODE_ERROR and is_lost_peer(str(before.get("message", ""))):
                before = {**before, "class": FailureClass.NODE_FAIL}
            word = {"failed": before.get("class"), "preempted": before.get("reason") or "preempted"}.get(
                before["event"]
            )
            found[str(word or FailureClass.NODE_FAIL), str(before.get("host", "?"))] += 1
        if event["event"] in {"started", "failed", "preempted", "finished"}:
            last[task] = event
    return found
