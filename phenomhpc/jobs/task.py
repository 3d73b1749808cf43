"""One task of one attempt: what a Slurm task calls, and what a run here calls for each of its tasks."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from phenomhpc import errors
from phenomhpc.config import load_run_config
from phenomhpc.jobs.base import load
from phenomhpc.progress import Progress, lines
from phenomhpc.runs import RunPaths, TaskContext, canonical_json, claim_start, commit, now, read_manifest

GANG_KIND = "gang"


def run_task(
    root: str,
    attempt: int,
    task: int,
    *,
    start: int = 0,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    job_id: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Do task `task` of an attempt; returns its exit code (0, 1, 2, 75, 76, 79), never raises for a failure of the work.

    start: how often this task was started before (Slurm's restart count).  A gang has one task per host.
    What holds when killed here: every unit that was committed stays done; the event log ends without `finished`.
    """
    paths = RunPaths(Path(root))
    config = load_run_config(paths.run_yaml)
    try:
        token = claim_start(paths, attempt, task, start)
    except errors.FencedError as error:
        print(error, flush=True)
        return error.exit_code
    paths.attempt(attempt).stop_file(task).unlink(missing_ok=True)
    units = read_manifest(paths.attempt(attempt).manifest)
    gang = any(unit.kind == GANG_KIND for unit in units)
    ctx = TaskContext(
        paths=paths,
        attempt=attempt,
        task=task,
        token=token,
        units=tuple(units if gang else (unit for unit in units if unit.task == task)),
        progress=progress or lines(),
        node_rank=task if gang else 0,
        num_nodes=len(hosts) if gang else 1,
        hosts=hosts,
        job_id=job_id,
    )
    ctx.events.emit("started", start=start, units=len(ctx.units), pid=os.getpid())
    try:
        outcome = load(config.kind).run(config, ctx)
        ctx.check_fence()
    except Exception as error:
        return _failed(ctx, error)
    ctx.events.emit("finished", units_done=outcome.units_done, set_aside=len(outcome.set_aside))
    tally = {"attempt": attempt, "token": token, "ended": now(), "units_done": outcome.units_done}
    commit(paths.done_file(task), canonical_json({**tally, "set_aside": [list(entry) for entry in outcome.set_aside]}))
    return errors.DONE


def _failed(ctx: TaskContext, error: Exception) -> int:
    """Record why a task ends early; a fenced one writes nothing more."""
    log = str(ctx.paths.log_file(ctx.task, ctx.attempt))
    if isinstance(error, errors.FencedError):
        print(error, flush=True)
    elif isinstance(error, errors.StopRequested):
        ctx.events.emit("preempted", message=str(error), log=log)
    elif isinstance(error, errors.PhenomError):
        kind = "bad_input" if isinstance(error, errors.UsageError) else "code_error"
        if ctx.job_id is not None:  # here, whoever started the task says it
            print(f"phenomhpc: {error}", flush=True)
        fields = {"class": kind, "exit_code": error.exit_code, "message": str(error), "log": log}
        ctx.events.emit("failed", **fields)
    else:
        text = "".join(traceback.format_exception(error))
        print(text, flush=True)
        last = f"{type(error).__name__}: {error}"
        fields = {"class": "oom" if isinstance(error, MemoryError) else "code_error", "exit_code": 1, "message": last}
        ctx.events.emit("failed", **fields, traceback=text, log=log)
    return error.exit_code if isinstance(error, errors.PhenomError) else errors.WORK_FAILED
