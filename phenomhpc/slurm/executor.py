"""submitit as the executor: it pickles a call of a run directory and a task index, and starts it inside the job.

The script is ours (render.py), the environment is scrubbed, and arrays go through this class too: submitit's own
`_internal_process_submissions` names SlurmExecutor outright and would bypass a subclass.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from submitit.core import core, utils
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from phenomhpc.runs import RunPaths
from phenomhpc.slurm.plan import Chunk, Submission
from phenomhpc.slurm.programs import refusal, scrubbed_names
from phenomhpc.slurm.render import render


class PhenomExecutor(SlurmExecutor):
    """Submits one chunk of a submission."""

    def __init__(self, submission: Submission, chunk: Chunk) -> None:
        folder = RunPaths(submission.run_root).attempt(submission.attempt).submitit
        super().__init__(folder, python=submission.python)
        self.update_parameters(nodes=submission.num_nodes, ntasks_per_node=1)
        self._submission, self._chunk = submission, chunk

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return render(self._submission, self._chunk, command)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [word for name in scrubbed_names(os.environ) for word in ("-u", name)]
        return ["env", *unset, "sbatch", str(submission_file_path)]

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        folder = utils.JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for delayed in delayed_submissions:
            path = folder / f"{uuid.uuid4().hex}.pkl"
            delayed.set_timeout(self._submission.cluster.time_minutes or 0, self.max_num_timeout)
            delayed.dump(path)
            pickles.append(path)
        first = self._submit_command(self._submitit_command_str)
        if self._submission.gang:
            first.paths.move_temporary_file(pickles[0], "submitted_pickle")
            return [first]
        ids = [f"{first.job_id}_{index}" for index in range(len(pickles))]
        jobs: list[core.Job[Any]] = [SlurmJob(folder=self.folder, job_id=job_id, tasks=[0]) for job_id in ids]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs


def submit_chunk(submission: Submission, chunk: Chunk, entry: Callable[[str, int, int], None]) -> str:
    """Submit one chunk; returns the job's id.  `entry(run directory, attempt, task)` is called in each task.

    Raises UsageError with sbatch's own words when it refuses, UnreachableError when the controller does not answer.
    """
    executor = PhenomExecutor(submission, chunk)
    root = str(submission.run_root)
    try:
        with executor.batch():
            jobs = [
                executor.submit(entry, root, submission.attempt, chunk.offset + index) for index in range(chunk.size)
            ]
    except (utils.FailedJobError, utils.FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch" in line] or str(error).splitlines()
        raise refusal(submission.run_id, lines[-1]) from error
    return str(jobs[0].job_id).partition("_")[0]
