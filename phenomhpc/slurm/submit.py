"""The only side effect of a submission: sbatch, and what is written down about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phenomhpc.errors import WorkError
from phenomhpc.runs import AttemptPaths, RunPaths, canonical_json, commit, make_folder
from phenomhpc.slurm.plan import Chunk, Submission
from phenomhpc.slurm.programs import ProgramFailedError, run_program
from phenomhpc.slurm.render import render, render_steward

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class SubmittedJobs:
    """slurm.json of an attempt: (job id, offset, size) per chunk, and the steward's job id."""

    chunks: tuple[tuple[str, int, int], ...]
    steward: str | None = None

    @property
    def job_ids(self) -> list[str]:
        return [job_id for job_id, _, _ in self.chunks]

    def task_of(self, job_id: str, index: int | None) -> int | None:
        """The task of an array element (or 0 for a gang); None for a foreign job."""
        for chunk_id, offset, _ in self.chunks:
            if chunk_id == job_id:
                return offset + (index or 0)
        return None


def write_submitted(attempt: AttemptPaths, jobs: SubmittedJobs) -> None:
    """Commit slurm.json."""
    commit(attempt.slurm, canonical_json({"chunks": [list(chunk) for chunk in jobs.chunks], "steward": jobs.steward}))


def read_submitted(attempt: AttemptPaths) -> SubmittedJobs | None:
    """slurm.json, or None for an attempt that was never submitted."""
    try:
        raw = json.loads(attempt.slurm.read_bytes())
    except FileNotFoundError:
        return None
    chunks = tuple((str(job_id), int(offset), int(size)) for job_id, offset, size in raw["chunks"])
    return SubmittedJobs(chunks=chunks, steward=raw.get("steward"))


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
    return render(submission, chunk, f"{submission.python} -u -m submitit.core._submit {attempt.submitit}")


def submit_attempt(submission: Submission, entry: Callable[[str, int, int], None]) -> SubmittedJobs:
    """Submit every chunk of an attempt whose folder and manifest are written, and its steward.

    slurm.json is committed as soon as the jobs are known, and again with the steward's id.
    """
    from phenomhpc.slurm.executor import submit_chunk

    paths = RunPaths(submission.run_root)
    attempt = paths.attempt(submission.attempt)
    make_folder(paths.logs)
    commit(attempt.script, "\n".join(script_of(submission, chunk) for chunk in submission.chunks))
    submitted = tuple((submit_chunk(submission, chunk, entry), chunk.offset, chunk.size) for chunk in submission.chunks)
    jobs = SubmittedJobs(chunks=submitted)
    write_submitted(attempt, jobs)
    if submission.cluster.steward:
        steward = submit_steward(submission, f"afterany:{':'.join(jobs.job_ids)}")
        jobs = SubmittedJobs(chunks=submitted, steward=steward)
        write_submitted(attempt, jobs)
    return jobs


def submit_steward(submission: Submission, dependency: str | None) -> str:
    """Submit the steward's job; returns its id."""
    make_folder(RunPaths(submission.run_root).logs)
    try:
        return (
            run_program(["sbatch", "--parsable"], stdin=render_steward(submission, dependency))
            .strip()
            .partition(";")[0]
        )
    except ProgramFailedError as error:
        raise WorkError(f"run {submission.run_id}: Slurm refused the steward: {error}") from error


def cancel_jobs(job_ids: list[str]) -> None:
    """scancel; jobs that have ended already are no error."""
    if job_ids:
        try:
            run_program(["scancel", *job_ids])
        except ProgramFailedError as error:
            if "Invalid job id" not in str(error):
                raise WorkError(f"scancel {' '.join(job_ids)}: {error}") from error
