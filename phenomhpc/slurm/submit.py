"""The only side effect of a submission: sbatch, and what is written down about it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.runs import RunPaths, make_folder
from phenomhpc.slurm.plan import Submission
from phenomhpc.slurm.programs import LimitReachedError, ProgramFailedError, run_program
from phenomhpc.slurm.record import SubmittedJobs, write_submitted
from phenomhpc.slurm.render import render, render_steward
from phenomhpc.slurm.window import Chunk, next_chunk

PACKAGE = Path(__file__).resolve().parent.parent
# When a steward looks whose jobs Slurm has forgotten already.
FORGOTTEN_S = 15


def snapshot_code(paths: RunPaths) -> None:
    """Copy the package into RUN/code, once: every attempt imports what was submitted."""
    if not paths.code.is_dir():
        copy_code(paths.code)


def copy_code(folder: Path) -> None:
    """Copy the package that runs now, with its recipes, to `folder`, in place of what is there.

    What numba has compiled goes with it, and the times of the files by which numba knows that it fits: else every run would compile
    anew on every node, a quarter of a minute.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(PACKAGE, partial / PACKAGE.name, ignore=_left_out)
    recipes = PACKAGE.parent / "jobs"
    if not (PACKAGE / "recipes").is_dir() and recipes.is_dir():
        shutil.copytree(recipes, partial / "jobs", ignore=_left_out)
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder.parent)
    partial.rename(folder)


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Of a folder's entries those that are not copied: Python's own caches, but for numba's."""
    if Path(folder).name == "__pycache__":
        return {name for name in names if Path(name).suffix not in (".nbi", ".nbc")}
    return {name for name in names if name == "__pycache__" and not any((Path(folder) / name).glob("*.nbi"))}


def chunk_to_feed(submission: Submission, jobs: SubmittedJobs, *, living: int, queued: int) -> Chunk | None:
    """What of an attempt is to be submitted next; None while there is no room, or nothing is left."""
    if submission.gang:
        return None if jobs.chunks else Chunk(number=0, offset=0, size=1)
    return next_chunk(
        submission.window,
        submission.limits,
        num_tasks=submission.num_tasks,
        fed=jobs.fed,
        number=len(jobs.chunks),
        living=living,
        queued=queued,
    )


def feed(submission: Submission, jobs: SubmittedJobs, *, living: int, queued: int) -> SubmittedJobs:
    """Submit what of an attempt has room in the queue now; returns what is submitted then.

    living: arrays of the attempt that have not ended; queued: the person's jobs in the queue.
    What holds when killed: slurm.json is committed after every job, so at most one job is not in it; its comment names it,
    and `record.adopt` finds it.  A limit that is reached after all (others submit too) is no error: the rest waits.
    """
    from phenomhpc.slurm.executor import submit_script

    paths = RunPaths(submission.run_root)
    attempt = paths.attempt(submission.attempt)
    make_folder(paths.logs)
    while True:
        chunk = chunk_to_feed(submission, jobs, living=living, queued=queued)
        if chunk is None:
            return jobs
        try:
            job_id = submit_script(submission.run_id, attempt.submitit, render(submission, chunk))
        except LimitReachedError:
            return jobs
        jobs = jobs.with_chunk(job_id, chunk.offset, chunk.size)
        write_submitted(attempt, jobs)
        living, queued = living + 1, queued + chunk.size


def submit_steward(submission: Submission, after: Sequence[str], begin_s: int = 0, *, any_of: bool = False) -> str:
    """Submit the steward's job, to start when all of the jobs `after` (or any of them) have ended; returns its id.

    Jobs that Slurm has forgotten meanwhile are no obstacle: it then starts by itself a little later.
    """
    from phenomhpc.slurm.executor import submit_script

    paths = RunPaths(submission.run_root)
    make_folder(paths.logs)
    folder = paths.attempt(max(1, submission.attempt)).submitit
    try:
        return submit_script(submission.run_id, folder, render_steward(submission, after, begin_s, any_of=any_of))
    except UsageError as error:
        if not after or "ependency" not in str(error):
            raise
        return submit_script(submission.run_id, folder, render_steward(submission, (), FORGOTTEN_S))


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """scancel; jobs that have ended already are no error."""
    if not job_ids:
        return
    try:
        run_program(["scancel", *job_ids])
    except ProgramFailedError as error:
        if "Invalid job id" not in str(error):
            raise WorkError(f"scancel {' '.join(job_ids)}: {error}") from error


def requeue_job(job_id: str) -> None:
    """Put a running job back into the queue.  Raises WorkError when Slurm refuses, UnreachableError when it does not answer."""
    try:
        run_program(["scontrol", "requeue", job_id])
    except ProgramFailedError as error:
        raise WorkError(f"scontrol requeue {job_id}: {error}") from error
