"""What a run looks like to a person: state, progress, failures, stages.  Values only; the command line draws them."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, RunConfig, load_run_config
from phenomhpc.errors import UnreachableError
from phenomhpc.jobs.attempts import AFTER, CLUSTER, STEWARD_TASK, is_gang, stage_paths, stage_runs_of
from phenomhpc.jobs.usage import Usage, run_usage
from phenomhpc.runs import (
    UNITS,
    Event,
    RunPaths,
    count_units,
    first_kind,
    list_runs,
    read_log,
    read_manifest,
    read_outcome,
    read_provenance,
    unit_ids,
)
from phenomhpc.slurm.observe import Accounting, Observation, observe, with_forgotten, with_submitted
from phenomhpc.slurm.queue import Queue, query_queue
from phenomhpc.slurm.record import read_submitted

QUEUED, RUNNING, UNKNOWN = "queued", "running", "unknown"
# Slurm's words for a job that holds its nodes.
AT_WORK = frozenset({"RUNNING", "COMPLETING", "STOPPED", "SUSPENDED", "SIGNALING", "STAGE_OUT"})


@dataclass(frozen=True, kw_only=True)
class Count:
    """How much is done, over all attempts; `loss` of the newest step that was written down, of a training run."""

    done: int = 0
    total: int | None = None
    noun: str = "units"
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """state: queued, running, finished, failed, cancelled or unknown, and why in `message`.

    done and total count `noun`; rate per second; loss of the newest step; running and waiting count tasks, failures the
    newest attempt's tasks by class; usage: GPU and core hours; last_known: what the run directory tells where the state is
    unknown; stages: (stage, run, state) of a pipeline, and in `stage` the status of the one it is at.  The rest is None or
    empty where it does not apply.
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
    rate_per_s: float | None = None
    left_s: float | None = None
    loss: float | None = None
    running: int = 0
    waiting: int = 0
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
    rate, left = _rate(events, count) if state == RUNNING else (None, None)
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
        rate_per_s=rate,
        left_s=left,
        loss=count.loss,
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


def count_done(paths: RunPaths, config: AnyConfig, events: Sequence[Event]) -> Count:
    """From the run directory alone."""
    if isinstance(config, PipelineConfig):
        runs = [stage_paths(paths, config, stage) for stage in config.stages]
        ended = [read_outcome(run) for run in runs if run.root.is_dir()]
        done = sum(outcome is not None and outcome["state"] == "finished" for outcome in ended)
        return Count(done=done, total=len(runs), noun="stages")
    if isinstance(config, RunConfig):
        done = any(event["event"] == "finished" for event in events)
        return Count(done=int(done), total=1, noun="commands")
    if is_gang(config):
        step, loss = _newest_step(paths)
        return Count(done=step, total=config.optim.steps, noun="steps", loss=loss)  # type: ignore[union-attr]
    return _count_units(paths, events)


def _count_units(paths: RunPaths, events: Sequence[Event]) -> Count:
    """Units that were committed, or whose task has finished (it found some done already), of those that were ever planned."""
    newest = paths.last_attempt()
    manifest = paths.attempt(newest).manifest
    if not manifest.is_file():
        done = unit_ids(events)
        return Count(done=len(done), total=len(done) or None)
    own = [event for event in events if event["attempt"] == newest]
    finished: dict[int, int | None] = {
        event["task"]: event.get("units_done") for event in own if event["event"] == "finished"
    }
    now = unit_ids(event for event in own if event["task"] not in finished)
    before = _first_of_stage(paths, newest)
    earlier = unit_ids(event for event in events if before <= event["attempt"] < newest)
    if not earlier and None not in finished.values():  # how many there are is known without the names of all
        planned = [event["num_units"] for event in own if event["event"] == "submitted" and "num_units" in event]
        total = planned[-1] if planned else count_units(manifest)
        return Count(done=sum(num or 0 for num in finished.values()) + len(now), total=total or None)
    table = read_manifest(manifest, columns=("unit_id", "task")).table
    names, tasks = table["unit_id"].to_pylist(), table["task"].to_pylist()
    done = earlier | now | {name for name, task in zip(names, tasks, strict=True) if task in finished}
    return Count(done=len(done), total=len(done.union(names)) or None)


def _first_of_stage(paths: RunPaths, newest: int) -> int:
    """The first attempt of the stage that the newest one belongs to: units of other stages are another kind."""
    kind = first_kind(paths.attempt(newest).manifest)
    first = newest
    while first > 1:
        manifest = paths.attempt(first - 1).manifest
        if manifest.is_file() and first_kind(manifest) not in (kind, None):
            break
        first -= 1
    return first


def progress_of(paths: RunPaths) -> str:
    """One line, without asking Slurm."""
    config, events = load_run_config(paths.run_yaml), read_log(paths)
    if not any(event["task"] != STEWARD_TASK for event in events) and not isinstance(config, PipelineConfig):
        return f"{paths.id}: queued"
    count = count_done(paths, config, events)
    loss = f", loss {count.loss:.4f}" if count.loss is not None else ""
    return f"{paths.id}: {count.done} of {count.total if count.total is not None else '?'} {count.noun}{loss}"


def _newest_step(paths: RunPaths) -> tuple[int, float | None]:
    """Step and loss of the newest metrics file; they are written at checkpoints and every few logged steps."""
    import pyarrow.parquet as pq

    files = paths.metrics.glob("*.parquet") if paths.metrics.is_dir() else ()
    newest = max(files, key=lambda path: path.stem.split("-")[::-1], default=None)
    if newest is None:
        return 0, None
    table = pq.read_table(newest, columns=["step", "loss"])
    return int(table["step"][-1].as_py()) + 1, float(table["loss"][-1].as_py())


def _rate(events: Sequence[Event], count: Count) -> tuple[float | None, float | None]:
    """Units, or steps between checkpoints, per second in the newest attempt, and the seconds left at that rate."""
    newest = max((event["attempt"] for event in events if event["event"] == "started"), default=0)
    recent = [event for event in events if event["attempt"] == newest]
    saved = [event for event in recent if event["event"] == "checkpoint"]
    num_units = len(unit_ids(recent))
    if len(saved) > 1:
        began, ended, num = saved[0], saved[-1], saved[-1]["step"] - saved[0]["step"]
    elif num_units:
        began = next(event for event in recent if event["event"] == "started")
        ended, num = [event for event in recent if event["event"] in {"unit", UNITS}][-1], num_units
    else:
        return None, None
    seconds = (datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(began["time"])).total_seconds()
    rate = num / max(seconds, 1e-3)
    left = (count.total - count.done) / rate if count.total is not None and rate > 0 else None
    return rate, left


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
