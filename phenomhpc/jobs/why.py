"""Why a run is where it is: the run directory's events, Slurm's word for the jobs and their steps, the steward's decisions.

Values only; the command line draws them.  Without accounting, and without Slurm, it does with what the run directory tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from phenomhpc.config import AnyConfig, PipelineConfig, load_run_config
from phenomhpc.errors import UnreachableError, UsageError
from phenomhpc.jobs.attempts import STEWARD_TASK, stage_runs_of
from phenomhpc.jobs.drift import drift_words
from phenomhpc.jobs.failures import Accounting, TaskFailure, accounting_of, failures_of
from phenomhpc.jobs.retold import earlier_of, summary_of
from phenomhpc.jobs.status import UNKNOWN, RunStatus, on_slurm, run_status
from phenomhpc.runs import Event, RunPaths, read_events, read_manifest, read_outcome
from phenomhpc.slurm.decide import VANISHED, FailureClass, TaskView, view_gang, view_tasks
from phenomhpc.slurm.last_lines import with_last_lines
from phenomhpc.slurm.queue import JobState, Queue, query_queue, query_steps
from phenomhpc.slurm.record import SubmittedJobs, read_submitted

# What a task that was cancelled may look like.
_SILENT = frozenset({FailureClass.NODE_FAIL, FailureClass.PREEMPTED})


@dataclass(frozen=True, kw_only=True)
class Why:
    """state and message as in RunStatus.  failure: the class, where the run or its newest attempt failed.

    summary: of the newest attempt's tasks, `612 ok, 3 oom, 1 node_fail on n17`; failures: of that attempt, worst first;
    set_aside: (thing, reason) of bad input; alarms: as in RunStatus; drift: what nodes that are not alike have to do with it;
    decided: what the steward made of it; earlier: attempts and starts that failed
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
    alarms: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()


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
    failures = failures_of(paths, newest, submitted, events, told)
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
        summary=summary_of(newest),
        decided=f"{decided[-1]['action']}: {decided[-1]['reason']}" if decided and failures else "",
        log=log,
        failures=tuple(failures),
        earlier=tuple(earlier_of(views, events, decided)),
        alarms=status.alarms,
        drift=drift_words(events, {each.host for each in failures if each.host}, paths.last_attempt()),
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
    views = with_last_lines(views, gang=submitted.gang)
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
