"""Running a job here and now, in the same run directory and by the same tasks as on Slurm.

A run of the same settings that was killed or failed here is gone on with, unasked: its units and checkpoints count.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty
from typing import Any

from phenomhpc.config import AnyConfig, dump
from phenomhpc.errors import FencedError, NoCheckpointError, PhenomError, StopRequested, UsageError, WorkError
from phenomhpc.jobs.base import ArrayPlan, Plan, Summary, begin, has_next_stage, load
from phenomhpc.jobs.drift import keep_here
from phenomhpc.jobs.pack import pack
from phenomhpc.jobs.script_code import describe_code
from phenomhpc.jobs.task import GANG_KIND, run_task
from phenomhpc.progress import Message, Progress, Stage, forwarding
from phenomhpc.runs import (
    RunPaths,
    Unit,
    Units,
    collect_provenance,
    create_run,
    list_runs,
    open_attempt,
    read_events,
    read_outcome,
    read_provenance,
    write_manifest,
    write_outcome,
)

# Units are cut finer than the workers, so that a slow one does not leave the others idle at the end.
TASKS_PER_WORKER = 4


@contextlib.contextmanager
def _locked(paths: RunPaths) -> Iterator[bool]:
    """Hold a run for this process; False when another one here has it.  The lock dies with its holder."""
    with paths.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _unfinished(config: AnyConfig) -> list[RunPaths]:
    """Runs of exactly these settings that were started here and have not finished, newest first."""
    text = dump(config)
    found = []
    for paths in reversed(list_runs(Path(config.runs))):
        outcome = read_outcome(paths)
        ended = outcome is not None and outcome["state"] == "finished"
        submitted = any(paths.attempts.glob("*/slurm.json"))
        same = read_provenance(paths)["kind"] == config.kind and paths.run_yaml.read_text() == text
        if same and not ended and not submitted:
            found.append(paths)
    return found


@contextlib.contextmanager
def _run_directory(
    config: AnyConfig, command: Sequence[str], name: str | None, fresh: bool
) -> Iterator[tuple[RunPaths, bool]]:
    """The locked run directory to work in, and whether it existed."""
    for paths in [] if fresh or name else _unfinished(config):
        with _locked(paths) as free:
            if free:
                yield paths, True
                return
    # Here the code runs where it lies: what is described is not copied.
    provenance = {**collect_provenance(command), **describe_code(config, copied=False)}
    paths = create_run(Path(config.runs), config.kind, dump(config), provenance, name=name)
    with _locked(paths):
        yield paths, False


def run_here(
    config: AnyConfig,
    *,
    command: Sequence[str],
    progress: Progress,
    name: str | None = None,
    fresh: bool = False,
) -> tuple[RunPaths, Summary]:
    """Run a job to its end on this machine; returns its directory and how it ended.

    fresh: never go on with an unfinished run of the same settings.  Raises PhenomError with one line.
    """
    job = load(config.kind)
    with _run_directory(config, command, name, fresh) as (paths, existed):
        if existed:
            progress.say(f"going on with run {paths.id}, which has the same settings and had not finished")
        try:
            begin(config, paths, anew=True)
            while _attempt(config, paths, job.plan(config, paths), progress):
                pass
            summary = job.finish(config, paths, progress)
        except PhenomError as error:
            if isinstance(error, UsageError) and not existed and not paths.last_attempt():
                _forget(paths)  # nothing was started: a wrong command leaves no run behind
            else:
                write_outcome(paths, state="failed", exit_code=error.exit_code, message=str(error))
            raise
        set_aside = [list(entry) for entry in summary.set_aside]
        write_outcome(paths, state="finished", exit_code=summary.exit_code, message=summary.text, set_aside=set_aside)
        return paths, summary


def _forget(paths: RunPaths) -> None:
    shutil.rmtree(paths.root)


def _attempt(config: AnyConfig, paths: RunPaths, plan: Plan, progress: Progress) -> bool:
    """Do what the plan says as one attempt; does another stage follow?"""
    attempt, token = open_attempt(paths)
    if isinstance(plan, ArrayPlan):
        workers = max(1, min(load(config.kind).workers(config, plan.units), len(plan.units)))
        units = pack(plan.units, workers * TASKS_PER_WORKER if workers > 1 else 1)
    else:
        workers, units = 1, Units.of([Unit(unit_id="gang", kind=GANG_KIND)])
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    for thing, reason in plan.set_aside if isinstance(plan, ArrayPlan) else ():
        progress.say(f"set aside: {thing}: {reason}")
    if isinstance(plan, ArrayPlan) and plan.num_done:
        progress.say(f"{plan.num_done} {plan.noun} were complete already")
    if not units:
        return False
    keep_here(paths.attempt(attempt))
    if workers == 1:
        for task in range(units.num_tasks):
            _check(paths, attempt, task, run_task(str(paths.root), attempt, task, progress=progress))
    else:
        _in_processes(paths, attempt, units, workers, progress)
    return has_next_stage(config.kind, units[0].kind)


def _check(paths: RunPaths, attempt: int, task: int, code: int) -> None:
    """Raise what a task's exit code says, with the message the task recorded."""
    if not code:
        return
    last = [event for event in read_events(paths, attempt=attempt) if event["task"] == task and "message" in event]
    message = last[-1]["message"] if last else f"task {task} of run {paths.id} ended with code {code}"
    kinds = {kind.exit_code: kind for kind in (UsageError, StopRequested, FencedError, NoCheckpointError)}
    raise kinds.get(code, WorkError)(message)


_send_queue: Any = None


def _begin_worker(queue: Any) -> None:
    global _send_queue
    _send_queue = queue


def _worker(root: str, attempt: int, task: int) -> int:
    return run_task(root, attempt, task, progress=forwarding(_send_queue.put))


def _in_processes(paths: RunPaths, attempt: int, units: Units, workers: int, progress: Progress) -> None:
    """Run tasks in `workers` spawned processes; their progress is drawn here."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    tasks = range(units.num_tasks)
    with ProcessPoolExecutor(workers, context, _begin_worker, (queue,)) as pool:
        futures = {pool.submit(_worker, str(paths.root), attempt, task): task for task in tasks}
        _draw(queue, list(futures), int(units.numpy("count").sum()), progress)
        for future, task in futures.items():
            try:
                code = future.result()
            except BrokenProcessPool as error:
                raise WorkError(
                    f"run {paths.id}: a worker process was killed (out of memory?); run again to go on"
                ) from error
            _check(paths, attempt, task, code)


def _draw(queue: Any, futures: Sequence[Future[int]], count_all: int, progress: Progress) -> None:
    """Draw what workers send until all of them are done.

    The stage of an array job counts what Unit.count counts, so that all tasks share one bar of `count_all`.
    """
    with contextlib.ExitStack() as stack:
        stages: dict[str, Stage] = {}
        while True:
            finished = all(future.done() for future in futures)
            try:
                name, total, unit, count, figures, note = _message(queue)
            except Empty:
                if finished:
                    return
                continue
            if not name:
                progress.say(note or "")
                continue
            if name not in stages:
                stages[name] = stack.enter_context(progress.stage(name, count_all if total else total, unit))
            if note is not None:
                stages[name].note(note)
            if count or figures:
                stages[name].advance(count, **figures)


def _message(queue: Any) -> Message:
    message: Message = queue.get(timeout=0.2)
    return message
