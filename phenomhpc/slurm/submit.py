"""The only side effect of a submission: sbatch, and what is written down about it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from phenomhpc.errors import PhenomError, WorkError
from phenomhpc.runs import RunPaths, commit, make_folder
from phenomhpc.slurm.plan import Chunk, Submission
from phenomhpc.slurm.programs import ProgramFailedError, refusal, run_program
from phenomhpc.slurm.record import SubmittedJobs, write_submitted
from phenomhpc.slurm.render import render, render_steward

PACKAGE = Path(__file__).resolve().parent.parent


def snapshot_code(paths: RunPaths) -> None:
    """Copy the package into RUN/code, once: every attempt imports what was submitted."""
    if paths.code.is_dir():
        return
    partial = paths.code.with_name("code.partial")
    shutil.rmtree(partial, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(PACKAGE, partial / PACKAGE.name, ignore=ignore)
    recipes = PACKAGE.parent / "jobs"
    if not (PACKAGE / "recipes").is_dir() and recipes.is_dir():
        shutil.copytree(recipes, partial / "jobs", ignore=ignore)
    partial.rename(paths.code)


def script_of(submission: Submission, chunk: Chunk) -> str:
    """The script as --dry-run shows it and script.sbatch keeps it."""
    attempt = RunPaths(submission.run_root).attempt(submission.attempt)
    return render(
        submission, chunk, f"{submission.python} -u -m submitit.core._submit {shlex.quote(str(attempt.submitit))}"
    )


def submit_attempt(submission: Submission, entry: Callable[[str, int, int], None]) -> SubmittedJobs:
    """Submit every chunk of an attempt whose folder and manifest are written, then its steward.

    When Slurm refuses one of them, those before it are cancelled and its words raised.  slurm.json is committed
    when all of them are in the queue; what holds when killed before: jobs that no slurm.json names.  observe() calls them
    strays, the next attempt fences and cancels them.
    """
    from phenomhpc.slurm.executor import submit_chunk

    paths = RunPaths(submission.run_root)
    attempt = paths.attempt(submission.attempt)
    make_folder(paths.logs)
    commit(attempt.script, "\n".join(script_of(submission, chunk) for chunk in submission.chunks))
    jobs = SubmittedJobs(chunks=(), num_tasks=submission.num_tasks, gang=submission.gang)
    try:
        for chunk in submission.chunks:
            job_id = submit_chunk(submission, chunk, entry)
            jobs = replace(jobs, chunks=(*jobs.chunks, (job_id, chunk.offset, chunk.size)))
        write_submitted(attempt, jobs)
        if submission.cluster.steward:
            jobs = replace(jobs, steward=submit_steward(submission, jobs.job_ids))
            write_submitted(attempt, jobs)
    except PhenomError:
        cancel_jobs(jobs.job_ids)
        raise
    return jobs


def submit_steward(submission: Submission, after: Sequence[str], begin_s: int = 0) -> str:
    """Submit the steward's job behind the jobs `after`; returns its id."""
    make_folder(RunPaths(submission.run_root).logs)
    script = render_steward(submission, after, begin_s)
    try:
        return run_program(["sbatch", "--parsable"], stdin=script).strip().partition(";")[0]
    except ProgramFailedError as error:
        raise refusal(submission.run_id, str(error)) from error


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """scancel; jobs that have ended already are no error."""
    if not job_ids:
        return
    try:
        run_program(["scancel", *job_ids])
    except ProgramFailedError as error:
        if "Invalid job id" not in str(error):
            raise WorkError(f"scancel {' '.join(job_ids)}: {error}") from error
