"""submitit as the executor: it hands a script to sbatch, reads the job's id, and keeps the script beside the attempt.

What is submitted is our text (render.py), in a scrubbed environment.  Nothing is pickled: what a task needs to know is a run
directory and a number, which its command line says; so an array of a hundred thousand elements is one script, and what runs
can be read.
"""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from subprocess import CalledProcessError

from submitit.core import utils
from submitit.slurm.slurm import SlurmExecutor

from phenomhpc.errors import UnreachableError
from phenomhpc.runs import make_folder
from phenomhpc.slurm.programs import LIMIT_S, has_slurm, refusal, scrubbed_names

# sbatch waits and asks again while the controller is busy.
SUBMIT_LIMIT_S = 4 * LIMIT_S
_TIMED_OUT = 124


class PhenomExecutor(SlurmExecutor):
    """Submits one text.  submitit's own map_array, pickles and result files are not used."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(folder)
        self._text = text

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._text

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [word for name in scrubbed_names(os.environ) for word in ("-u", name)]
        return ["env", *unset, "timeout", str(SUBMIT_LIMIT_S), "sbatch", str(submission_file_path)]

    def submit_text(self) -> str:
        return str(self._submit_command("").job_id)


def submit_script(run_id: str, folder: Path, text: str) -> str:
    """Submit a script, keeping it in `folder` by its job id, which is returned.

    Raises UsageError with sbatch's own words when it refuses, LimitReachedError when the person has too many jobs in the queue,
    UnreachableError when the controller does not answer.
    """
    if not has_slurm():
        raise UnreachableError("sbatch: not found; is Slurm's client installed on this machine?")
    make_folder(folder)
    try:
        with redirect_stderr(StringIO()):  # it repeats there what the error says
            return PhenomExecutor(folder, text).submit_text()
    except (utils.FailedJobError, utils.FailedSubmissionError) as error:
        if isinstance(error.__cause__, CalledProcessError) and error.__cause__.returncode == _TIMED_OUT:
            raise UnreachableError(f"sbatch: no answer within {SUBMIT_LIMIT_S:g} s; is slurmctld up?") from error
        raise refusal(run_id, str(error)) from error
