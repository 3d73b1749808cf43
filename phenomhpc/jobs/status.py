"""What a run looks like to a person: state, progress, failures, stages.  Values only; the command line draws them."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phenomhpc.config import PipelineConfig, load_run_config
from phenomhpc.errors import UnreachableError
from phenomhpc.jobs.alarms import alarms_of
from phenomhpc.jobs.attempts import AFTER, CLUSTER, STEWARD_TASK, stage_paths, stage_runs_of
from phenomhpc.jobs.counting import Rate, count_done, rate_of
from phenomhpc.jobs.usage import Usage, run_usage
from phenomhpc.runs import (
    Event,
    RunPaths,
    list_runs,
    read_log,
    read_outcome,
    read_provenance,
)
from phenomhpc.slurm.observe import Accounting, Observation, observe, with_forgotten, with_submitted
from phenomhpc.slurm.queue import Queue, query_queue
from phenomhpc.slurm.record import read_submitted

QUEUED, RUNNING, UNKNOWN = "queued", "running", "unknown"
# Slurm's words for a job that holds its nodes.
AT_WORK = frozenset({"RUNNING", "COMPLETING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT"})


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """state: queued, running, finished, failed, cancelled or unknown, and why in `message`.

    done and total count `noun`; parts_done and parts_total what those consist of (`parts`: fields, crops; "" where that is not
    told); rates of both, and of raw data in 10^6 bytes, per second, while it runs; loss, mfu and goodput of the newest step;
    running and waiting count tasks, failures the newest attempt's tasks by class; usage: GPU and core hours; last_known: what
    the run directory tells where the state is unknown; stages: (stage, run, state) of a pipeline, and in `stage` the status of
    the one it is at; alarms: what went wrong with a training that went on, in words.  The rest is None or empty where it does not
    apply.
    """

    id: str
    kind: str
    created: str
    state: str
    where: str
    message: str = ""
    exit_code: int | None = None
    attempt: int = 0
    done: int = 0
    total: int | None = None
    noun: str = "units"
    parts: str = ""
    parts_done: int = 0
    parts_total: int = 0
    rate_per_s: float | None = None
    parts_per_s: float | None = None
    raw_mb_per_s: float | None = None
    left_s: float | None = None
    loss: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    running: int = 0
    waiting: int = 0
    alarms: tuple[str, ...] = ()
    failures: Mapping[str, int]
    jobs: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    set_aside: int = 0
    usage: Usage = field(default_factory=Usage)
    last_known: str = ""
    report: str | None = None
    folder: str
    stages: tuple[tuple[str, str, str], ...] = ()
    stage: RunStatus | None = None


Stages = Sequence[tuple[str, RunStatus | None]]


def tended_status(paths: RunPaths) -> RunStatus:
    """The status of a run, after the steward's step where the run has no living steward to do it.

    Slurm's controller is asked once; it is not asked about a run that has ended or was not submitted.
    """
    from phenomhpc.jobs.steward import tend
    from phenomhpc.progress import lines

    if not on_slurm(paths) or read_outcome(paths) is not None:
        return run_status(paths)
    try:
        queue = query_queue(paths.root)
        before = {job for run in _runs_of(paths) for job in _submitted_ids(run)}
        tend(paths, lines(), queue=queue)
    except UnreachableError as error:
        return run_status(paths, problem=str(error))
    return run_status(paths, with_submitted(queue, before, _runs_of(paths)))


def _runs_of(paths: RunPaths) -> list[RunPaths]:
    """A run, and a pipeline's stages."""
    return [paths, *stage_runs_of(paths, load_run_config(paths.run_yaml)).values()]


def _submitted_ids(paths: RunPaths) -> list[str]:
    submitted = read_submitted(paths.attempt(paths.last_attempt()))
    return submitted.job_ids if submitted else []


def statuses(runs: Path) -> list[RunStatus]:
    """All runs in a folder, oldest first; the controller and accounting are asked once, and not at all where no run needs it."""
    found = list_runs(runs)
    queue, problem = None, ""
    going_on = [paths for paths in found if on_slurm(paths) and read_outcome(paths) is None]
    if going_on:
        try:
            queue = with_forgotten(query_queue(runs), going_on)
        except UnreachableError as error:
            problem = str(error)
    return [run_status(paths, queue, problem=problem, accounting="never") for paths in found]


def on_slurm(paths: RunPaths) -> bool:
    """Was it submitted, or does it run on the machine where it was started?"""
    return CLUSTER in read_provenance(paths)


def run_status(
    paths: RunPaths, queue: Queue | None = None, *, problem: str = "", accounting: Accounting = "always"
) -> RunStatus:
    """The status of a run.  queue: what Slurm knows, where it was asked already; problem: why it did not answer; accounting: as
    `observe` has it."""
    config = load_run_config(paths.run_yaml)
    provenance = read_provenance(paths)
    outcome = read_outcome(paths)
    if queue is None and not problem and outcome is None and on_slurm(paths):
        try:
            queue = query_queue(paths.root)  # once, for the stages too
        except UnreachableError as error:
            problem = str(error)
    events = read_log(paths)  # after the queue was: what a task says last is there when Slurm knows that it ended
    seen: Observation | None = None
    stages: Stages = ()
    if isinstance(config, PipelineConfig):
        stages = _stages(paths, config, queue, problem, accounting)
    last_known = ""
    if outcome is not None:
        state, message = str(outcome["state"]), str(outcome["message"])
    elif not on_slurm(paths):
        state, message = _state_here(paths, events)
    elif problem:
        last_known = _last_known(events, stages)
        state, message = UNKNOWN, f"{problem}{f'; last known: {last_known}' if last_known else ''}"
    else:
        seen = observe(paths, queue, accounting=accounting, events=events)
        state, message = _state(paths, seen, stages)
    count = count_done(paths, config, events)
    rate = rate_of(events, count) if state == RUNNING else Rate()
    tasks = seen.tasks if seen else ()
    running = {task.task for task in tasks if task.live and task.state in AT_WORK}
    return RunStatus(
        id=paths.id,
        kind=str(provenance["kind"]),
        created=str(provenance["created"]),
        state=state,
        where=str(provenance.get(CLUSTER) or "here"),
        message=message,
        exit_code=outcome["exit_code"] if outcome else None,
        attempt=paths.last_attempt(),
        done=count.done,
        total=count.total,
        noun=count.noun,
        parts=count.parts,
        parts_done=count.parts_done,
        parts_total=count.parts_total,
        rate_per_s=rate.per_s,
        parts_per_s=rate.parts_per_s,
        raw_mb_per_s=rate.raw_mb_per_s,
        left_s=rate.left_s,
        loss=count.loss,
        mfu=count.mfu,
        goodput=count.goodput,
        alarms=tuple(alarms_of(events)) or tuple(alarm for _, stage in stages if stage for alarm in stage.alarms),
        running=len(running),
        waiting=sum(task.live for task in tasks) - len(running),
        failures=dict(Counter(str(task.failure) for task in tasks if task.failure is not None)),
        jobs=tuple(_submitted_ids(paths)),
        hosts=tuple(sorted({task.host for task in tasks if task.task in running and task.host})),
        set_aside=len(outcome.get("set_aside", ())) if outcome else 0,
        usage=_total(stages) if stages else run_usage(paths, config, events, running),
        last_known=last_known,
        report=str(outcome["report"]) if outcome and outcome.get("report") else None,
        folder=str(paths.root),
        stages=tuple((name, stage.id if stage else "", stage.state if stage else "") for name, stage in stages),
        stage=_current(stages) if outcome is None or outcome["state"] != "finished" else None,
    )


def _current(stages: Stages) -> RunStatus | None:
    """The newest stage that was started."""
    return next((stage for _, stage in reversed(stages) if stage is not None), None)


def _total(stages: Stages) -> Usage:
    return sum((stage.usage for _, stage in stages if stage is not None), Usage())


def _last_known(events: Sequence[Event], stages: Stages) -> str:
    """The last thing the run directory tells, in words; empty where it tells nothing."""
    stage = _current(stages)
    if stage is not None:
        return f"stage {stage.id}: {stage.last_known or stage.state}"
    if not events:
        return ""
    last = events[-1]
    who = "" if last["task"] == STEWARD_TASK else f" of task {last['task']} on {last['host']}"
    return f"event `{last['event']}`{who} at {last['time'][:19].replace('T', ' ')} UTC"


def _state(paths: RunPaths, seen: Observation, stages: Stages) -> tuple[str, str]:
    """The state of a run on Slurm that has not ended, and why.  What is not known is `unknown`, never an end."""
    started = [(name, stage.state) for name, stage in stages if stage is not None]
    if started:
        return RUNNING if started[-1][1] != QUEUED else QUEUED, f"stage {started[-1][0]} is {started[-1][1]}"
    if not seen.attempt:
        other = read_provenance(paths).get(AFTER)
        return QUEUED, f"waits for {Path(other).name}" if other else "nothing was submitted yet"
    if any(task.state in AT_WORK for task in seen.tasks if task.live):
        return RUNNING, ""
    waiting = [task for task in seen.tasks if task.live]
    if waiting:
        reason = f": {waiting[0].reason}" if waiting[0].reason not in {"", "None"} else ""
        return QUEUED, f"{len(waiting)} of {len(seen.tasks)} task(s) wait{reason}"
    failed = [task for task in seen.tasks if task.failure is not None]
    if failed:
        return RUNNING, f"task {failed[0].task}: {failed[0].failure}: {failed[0].message}; the steward decides"
    return RUNNING, "all tasks are done; the steward finishes the run"


def _state_here(paths: RunPaths, events: Sequence[Event]) -> tuple[str, str]:
    """A run on this machine: it runs while its process holds the lock."""
    if paths.lock.is_file():
        with paths.lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return RUNNING, ""
    last = events[-1]["event"] if events else "nothing"
    return UNKNOWN, f"its process is gone (last event: {last}); run the same command again to go on"


def progress_of(paths: RunPaths) -> str:
    """One line, without asking Slurm."""
    config, events = load_run_config(paths.run_yaml), read_log(paths)
    if not any(event["task"] != STEWARD_TASK for event in events) and not isinstance(config, PipelineConfig):
        return f"{paths.id}: queued"
    count = count_done(paths, config, events)
    loss = f", loss {count.loss:.4f}" if count.loss is not None else ""
    return f"{paths.id}: {count.done} of {count.total if count.total is not None else '?'} {count.noun}{loss}"


def _stages(
    paths: RunPaths, config: PipelineConfig, queue: Queue | None, problem: str, accounting: Accounting
) -> Stages:
    """Every stage's name and status; None where it was not started."""
    from phenomhpc.jobs.pipeline import stage_runs

    here = {} if on_slurm(paths) else stage_runs(paths)
    found: list[tuple[str, RunStatus | None]] = []
    for stage in config.stages:
        run = stage_paths(paths, config, stage)
        if stage in here:
            run = RunPaths(Path(config.runs) / here[stage])
        made = run.run_yaml.is_file()
        found.append((stage, run_status(run, queue, problem=problem, accounting=accounting) if made else None))
    return tuple(found)
