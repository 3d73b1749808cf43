"""Cancelling a run on Slurm: its jobs, its stewards, its stages; written down, so that it stays cancelled."""

from __future__ import annotations

import time

from phenomhpc.config import load_run_config
from phenomhpc.errors import UsageError
from phenomhpc.jobs.attempts import parent_of, stage_runs_of, steward_lock
from phenomhpc.jobs.status import on_slurm
from phenomhpc.jobs.steward import emit, step
from phenomhpc.progress import Progress
from phenomhpc.runs import RunPaths, read_events_but_units, read_outcome, write_outcome
from phenomhpc.slurm.observe import observe
from phenomhpc.slurm.submit import cancel_jobs

# How long Slurm is given to end what was cancelled, before the person is told that it still does.
GONE_S = 30.0
POLL_S = 0.5


def cancel_run(paths: RunPaths, progress: Progress) -> str:
    """Cancel a run; returns what was done in words.  What was committed stays.

    Raises UsageError for a run that is not on Slurm, UnreachableError when Slurm does not answer.
    """
    outcome = read_outcome(paths)
    if outcome is not None:
        return f"{paths.id} had ended already: {outcome['state']}"
    if not on_slurm(paths):
        started = [event for event in read_events_but_units(paths) if event["event"] == "started"]
        where = f" (process {started[-1]['pid']} on {started[-1]['host']})" if started else ""
        raise UsageError(f"run {paths.id}: was started here, not on Slurm; press Ctrl-C where it runs{where}")
    _cancel(paths)
    left = _wait_until_gone(paths)
    outcome = read_outcome(paths)
    if outcome is not None and outcome["state"] != "cancelled":
        return f"{paths.id} had just ended: {outcome['state']}"
    pipeline = parent_of(paths)
    if pipeline is not None and read_outcome(pipeline) is None:
        step(pipeline, progress)
    still = f"; Slurm is still ending job(s) {', '.join(left)}" if left else ""
    return f"{paths.id} is cancelled; what it had committed stays{still}"


def _cancel(paths: RunPaths) -> None:
    """A steward at work is ended first, which frees the lock; what it had submitted meanwhile is found under the lock."""
    cancel_jobs(_living(paths))
    with steward_lock(paths):
        if read_outcome(paths) is None:
            write_outcome(paths, state="cancelled", exit_code=1, message="cancelled by a person")
            emit(paths, max(1, paths.last_attempt()), "cancelled")
        cancel_jobs(_living(paths))
    for run in stage_runs_of(paths, load_run_config(paths.run_yaml)).values():
        if read_outcome(run) is None:
            _cancel(run)


def _living(paths: RunPaths) -> list[str]:
    seen = observe(paths)
    return sorted({*seen.live, *seen.stewards, *seen.strays})


def _wait_until_gone(paths: RunPaths) -> list[str]:
    """Jobs of the run and its stages that have not gone in time."""
    runs = [paths, *stage_runs_of(paths, load_run_config(paths.run_yaml)).values()]
    deadline = time.monotonic() + GONE_S
    while True:
        left = [job for run in runs for job in _living(run)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)
