"""What a run looks like to a person: state, progress, failures, stages.  Values only; the command line draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from phenomhpc.config import PipelineConfig, load_run_config
from phenomhpc.errors import PhenomError, UnreachableError
from phenomhpc.jobs.task import GANG_KIND
from phenomhpc.runs import Event, RunPaths, Unit, read_events, read_manifest, read_outcome, read_provenance
from phenomhpc.slurm.decide import TaskView
from phenomhpc.slurm.submit import read_submitted

QUEUED, RUNNING, UNKNOWN, WAITING = "queued", "running", "unknown", "waiting"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """state: queued, waiting, running, finished, failed, cancelled or unknown; the rest None where it does not apply.

    done and total count `noun`; rate per second; loss of the newest step; failures by class.
    """

    id: str
    kind: str
    created: str
    state: str
    where: str
    message: str = ""
    attempt: int = 0
    done: int = 0
    total: int | None = None
    noun: str = "units"
    rate_per_s: float | None = None
    left_s: float | None = None
    loss: float | None = None
    failures: Mapping[str, int]
    jobs: tuple[str, ...] = ()
    report: str | None = None
    stages: tuple[tuple[str, str, str], ...] = ()


def run_status(paths: RunPaths, *, act: bool = False) -> RunStatus:
    """The status of a run.  With `act`, the steward's step is done where a run on Slurm has no living steward."""
    from phenomhpc.jobs.steward import observe

    outcome = read_outcome(paths)
    attempt = paths.last_attempt()
    submitted = read_submitted(paths.attempt(attempt)) if attempt else None
    tasks: Sequence[TaskView] = ()
    problem = ""
    if outcome is None and submitted is not None:
        try:
            if act:
                outcome = _act(paths, submitted.steward)
            tasks = () if outcome else observe(paths, attempt)
        except UnreachableError as error:
            problem = str(error)
    return _status(paths, outcome, attempt, submitted.job_ids if submitted else [], tasks, problem)


def _act(paths: RunPaths, steward: str | None) -> dict[str, Any] | None:
    """Do the steward's step when no steward's job lives to do it."""
    from phenomhpc.jobs.steward import step
    from phenomhpc.progress import silent
    from phenomhpc.slurm.queue import query_jobs

    living = steward is not None and any(state.is_live for state in query_jobs([steward]).values())
    if not living:
        step(paths, silent())
    return read_outcome(paths)


def _status(
    paths: RunPaths,
    outcome: Mapping[str, Any] | None,
    attempt: int,
    job_ids: Sequence[str],
    tasks: Sequence[TaskView],
    problem: str,
) -> RunStatus:
    provenance = read_provenance(paths)
    events = read_events(paths)
    config = load_run_config(paths.run_yaml)
    stages: tuple[tuple[str, str, str], ...] = ()
    if isinstance(config, PipelineConfig):
        stages = _stages(paths, config)
    units = (
        read_manifest(paths.attempt(attempt).manifest) if attempt and paths.attempt(attempt).manifest.is_file() else []
    )
    done, total, noun, loss = _counts(paths, units, events, config)
    rate, left = _rate(events, attempt, done, total)
    state, message = _state(paths, outcome, tasks, events, attempt, problem, stages)
    failures = Counter(str(task.failure) for task in tasks if task.failure is not None)
    return RunStatus(
        id=paths.id,
        kind=str(provenance["kind"]),
        created=str(provenance["created"]),
        state=state,
        where="Slurm" if job_ids or any(paths.attempts.glob("*/slurm.json")) or provenance.get("after") else "here",
        message=message,
        attempt=attempt,
        done=done,
        total=total,
        noun=noun,
        rate_per_s=rate if state == RUNNING else None,
        left_s=left if state == RUNNING else None,
        loss=loss,
        failures=dict(failures),
        jobs=tuple(job_ids),
        report=str(outcome["report"]) if outcome and outcome.get("report") else None,
        stages=stages,
    )


def _state(
    paths: RunPaths,
    outcome: Mapping[str, Any] | None,
    tasks: Sequence[TaskView],
    events: Sequence[Event],
    attempt: int,
    problem: str,
    stages: Sequence[tuple[str, str, str]],
) -> tuple[str, str]:
    """The state in one word and why.  What is not known is `unknown`, never an end."""
    if outcome is not None:
        return str(outcome["state"]), str(outcome["message"])
    if problem:
        return UNKNOWN, problem
    if stages:
        return RUNNING, f"stage {stages[-1][0]}: {stages[-1][2]}"
    if not attempt:
        other = read_provenance(paths).get("after")
        return (WAITING, f"for {Path(other).name}") if other else (UNKNOWN, "nothing was started yet")
    if any(task.state in {"RUNNING", "COMPLETING"} for task in tasks):
        return RUNNING, ""
    waiting = [task for task in tasks if task.live]
    if waiting:
        return QUEUED, f"{len(waiting)} of {len(tasks)} task(s) wait"
    failed = [task for task in tasks if task.failure is not None]
    if failed:
        return RUNNING, f"task {failed[0].task}: {failed[0].failure}: {failed[0].message}; the steward decides"
    if tasks:
        return RUNNING, "all tasks are done; the steward finishes the run"
    return _state_here(paths, events)


def _state_here(paths: RunPaths, events: Sequence[Event]) -> tuple[str, str]:
    """A run on this machine: it runs while its process holds the lock."""
    import fcntl

    if not paths.lock.is_file():
        return UNKNOWN, "it has no process and no outcome"
    with paths.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return RUNNING, ""
    last = events[-1]["event"] if events else "nothing"
    return UNKNOWN, f"its process is gone (last event: {last}); run the same command again to go on"


def _counts(
    paths: RunPaths, units: Sequence[Unit], events: Sequence[Event], config: Any
) -> tuple[int, int | None, str, float | None]:
    """Done, total, what is counted, newest loss."""
    if any(unit.kind == GANG_KIND for unit in units):
        step, loss = _newest_step(paths)
        return step, config.optim.steps, "steps", loss
    finished = {str(event["unit_id"]) for event in events if event["event"] == "unit"}
    done_tasks = {event["task"] for event in events if event["event"] == "finished"}
    done = [unit for unit in units if unit.unit_id in finished or unit.task in done_tasks]
    return len(done), len(units), "units", None


def _newest_step(paths: RunPaths) -> tuple[int, float | None]:
    """Step and loss of the newest metrics file; they are written at checkpoints and every few logged steps."""
    import pyarrow.parquet as pq

    files = (
        sorted(paths.metrics.glob("*.parquet"), key=lambda path: path.stem.split("-")[1])
        if paths.metrics.is_dir()
        else []
    )
    if not files:
        return 0, None
    table = pq.read_table(files[-1], columns=["step", "loss"])
    return int(table["step"][-1].as_py()) + 1, float(table["loss"][-1].as_py())


def _rate(events: Sequence[Event], attempt: int, done: int, total: int | None) -> tuple[float | None, float | None]:
    started = [event for event in events if event["event"] == "started" and event["attempt"] == attempt]
    if not started or not done:
        return None, None
    began, newest = (datetime.fromisoformat(event["time"]) for event in (started[0], events[-1]))
    seconds = max((newest - began).total_seconds(), 1e-3)
    rate = done / seconds
    return rate, (total - done) / rate if total is not None else None


def _stages(paths: RunPaths, config: PipelineConfig) -> tuple[tuple[str, str, str], ...]:
    """(stage, run, state) of the stages that were started."""
    from phenomhpc.jobs.pipeline import stage_runs

    runs = stage_runs(paths)
    found = []
    for stage in config.stages:
        if stage in runs:
            outcome = read_outcome(RunPaths(Path(config.runs) / runs[stage]))
            found.append((stage, runs[stage], str(outcome["state"]) if outcome else RUNNING))
    return tuple(found)


def cancel_run(paths: RunPaths) -> str:
    """Cancel a run's jobs, its steward and its stages; record it.  Returns what was done in words."""
    from phenomhpc.jobs.steward import record_end
    from phenomhpc.jobs.submit import steward_lock
    from phenomhpc.progress import silent
    from phenomhpc.slurm.submit import cancel_jobs

    outcome = read_outcome(paths)
    if outcome is not None:
        return f"{paths.id} had ended already: {outcome['state']}"
    with steward_lock(paths):
        config = load_run_config(paths.run_yaml)
        for number in range(1, paths.last_attempt() + 1):
            jobs = read_submitted(paths.attempt(number))
            if jobs is not None:
                cancel_jobs([job for job in (jobs.steward, *jobs.job_ids) if job])
        if isinstance(config, PipelineConfig):
            from phenomhpc.runs import write_outcome

            write_outcome(paths, state="cancelled", exit_code=1, message="cancelled by a person")
        else:
            record_end(paths, "cancelled", 1, "cancelled by a person", silent())
    for _, run, state in _stages(paths, config) if isinstance(config, PipelineConfig) else ():
        if state == RUNNING:
            try:
                cancel_run(RunPaths(Path(config.runs) / run))
            except PhenomError as error:
                return f"{paths.id} is cancelled, but its stage {run} is not: {error}"
    return f"{paths.id} is cancelled"
