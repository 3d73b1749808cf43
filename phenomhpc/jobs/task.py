"""One task of one attempt: what a Slurm task calls, and what a run here calls for each of its tasks."""

from __future__ import annotations

import json
import os
import re
import traceback
from pathlib import Path

from phenomhpc import errors
from phenomhpc.jobs.base import load
from phenomhpc.jobs.retried import run_config
from phenomhpc.progress import Progress, beating, lines
from phenomhpc.runs import (
    RunPaths,
    TaskContext,
    canonical_json,
    claim_start,
    commit,
    now,
    read_manifest,
    read_task_events,
)
from phenomhpc.runs.heartbeat import START, STEP, beat
from phenomhpc.slurm.decide import FailureClass
from phenomhpc.slurm.inside import stop_reason

GANG_KIND = "gang"
# Jobs whose progress is steady enough that silence means something.
WATCHED = frozenset({"convert", "rechunk", "pretrain", "embed"})
# What is said when the host's memory, not a GPU's (OutOfMemoryError), is used up, by Python, numpy and torch.
_HOST_MEMORY = re.compile(r"(^|[\s.:_])(Array)?MemoryError(:|$)|DefaultCPUAllocator: can't allocate memory")


def run_task(
    root: str,
    attempt: int,
    task: int,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    job_id: str | None = None,
    start: int = 0,
    progress: Progress | None = None,
) -> int:
    """Do task `task` of an attempt; returns its exit code (0, 1, 2, 75, 76, 79), never raises for a failure of the work.

    token: of the start that the guard has claimed and announced; here, where there is no guard, both are done first.
    A gang has one task per host.  A task whose tally of this attempt is written has nothing left to do.
    What holds when killed here: every unit that was committed stays done; the event log ends without `finished`.
    """
    paths = RunPaths(Path(root))
    config = run_config(paths)
    told = progress or lines()
    if config.kind in WATCHED:
        beat(START)
        told = beating(told, lambda: beat(STEP))
    if is_tallied(paths, attempt, task):
        return errors.DONE
    try:
        claimed = token or claim_start(paths, attempt, task, 0)
    except errors.FencedError as error:
        print(error, flush=True)
        return error.exit_code
    manifest = paths.attempt(attempt).manifest
    units = read_manifest(manifest, task=task) or read_manifest(
        manifest, task=0
    )  # a gang's only unit is its first task's
    gang = any(unit.kind == GANG_KIND for unit in units)
    before = _units_of_earlier_starts(paths, attempt, task)
    ctx = TaskContext(
        paths=paths,
        attempt=attempt,
        task=task,
        token=claimed,
        units=tuple(unit for unit in units if gang or unit.unit_id not in before),
        progress=told,
        node_rank=task if gang else 0,
        num_nodes=len(hosts) if gang else 1,
        hosts=hosts,
        job_id=job_id,
        start=start,
    )
    if token is None:
        paths.attempt(attempt).stop_file(task).unlink(missing_ok=True)
        ctx.events.emit("started", start=0, units=len(ctx.units), pid=os.getpid(), cpus=len(os.sched_getaffinity(0)))
    try:
        outcome = load(config.kind).run(config, ctx)
        done = outcome.units_done + len(before)  # of the task, whichever start did them
        ctx.events.emit("finished", units_done=done, set_aside=len(outcome.set_aside))
    except Exception as error:
        return _failed(ctx, error)
    tally = {"attempt": attempt, "token": claimed, "ended": now(), "units_done": done}
    set_aside = [
        *([unit_id, f"{count} set aside by an earlier start"] for unit_id, count in before.items() if count),
        *map(list, outcome.set_aside),
    ]
    commit(paths.done_file(task), canonical_json({**tally, "set_aside": set_aside}))
    return errors.DONE


def _units_of_earlier_starts(paths: RunPaths, attempt: int, task: int) -> dict[str, int]:
    """Units that earlier starts of this task have committed, and how much of each was set aside: an event follows the commit."""
    events = read_task_events(paths, attempt, task)
    return {event["unit_id"]: int(event.get("set_aside", 0)) for event in events if event["event"] == "unit"}


def is_tallied(paths: RunPaths, attempt: int, task: int) -> bool:
    """Has a start of this task, in this attempt, done it to the end?"""
    try:
        return bool(json.loads(paths.done_file(task).read_bytes())["attempt"] == attempt)
    except FileNotFoundError:
        return False


def _failed(ctx: TaskContext, error: Exception) -> int:
    """Record why a task ends early; a fenced one writes nothing more."""
    code = error.exit_code if isinstance(error, errors.PhenomError) else errors.WORK_FAILED
    try:
        _tell(ctx, error, code)
    except errors.FencedError as fenced:
        print(fenced, flush=True)
        return fenced.exit_code
    return code


def _tell(ctx: TaskContext, error: Exception, code: int) -> None:
    log = str(ctx.paths.log_file(ctx.task, ctx.attempt))
    if isinstance(error, errors.FencedError):
        print(error, flush=True)
    elif isinstance(error, errors.StopRequested):
        ctx.events.emit("preempted", message=str(error), reason=stop_reason(), log=log)
    elif isinstance(error, errors.PhenomError):
        if ctx.job_id is not None:  # here, whoever started the task says it
            print(f"phenomhpc: {error}", flush=True)
        fields = {"class": str(_class_of(error)), "exit_code": code, "message": str(error), "log": log}
        if isinstance(error, errors.ScriptFailedError):
            fields |= {"exit_code": error.code, **({"traceback": error.traceback} if error.traceback else {})}
        ctx.events.emit("failed", **fields, crashed=isinstance(error, errors.KilledError))
    else:
        text = "".join(traceback.format_exception(error))
        print(text, flush=True)
        fields = {"class": str(_class_of(error)), "exit_code": code, "message": f"{type(error).__name__}: {error}"}
        ctx.events.emit("failed", **fields, traceback=text, log=log)


def _class_of(error: Exception) -> FailureClass:
    if isinstance(error, errors.ScriptFailedError) and error.kind:
        return FailureClass(error.kind)
    if isinstance(error, MemoryError) or _HOST_MEMORY.search(str(error)):
        return FailureClass.OOM
    if isinstance(error, errors.HungError):
        return FailureClass.HANG
    if isinstance(error, errors.KilledError | errors.NodesLost):
        return FailureClass.NODE_FAIL
    if isinstance(error, errors.UsageError | errors.DamagedInputError):
        return FailureClass.BAD_INPUT
    return FailureClass.CODE_ERROR
