"""Starting Slurm's programs: the only place where they are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from phenomhpc.errors import PhenomError, UnreachableError, UsageError

LIMIT_S = 30
# What a submitting shell inside a job would leak into the new one; SLURM_CONF says where the cluster is.
SCRUBBED_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "PMIX_", "PMI_")
KEPT = ("SLURM_CONF",)
# What Slurm's clients say when the controller, the database or munge does not answer, or no slurm.conf is found.
_UNREACHABLE = (
    "Unable to contact slurm controller",
    "Connection refused",
    "Connection timed out",
    "Socket timed out",
    "Transport endpoint is not connected",
    "configuration source",
    "Munge encode failed",
    "Zero Bytes were transmitted",
)


class ProgramFailedError(Exception):
    """A program ended with another code than 0; str() is its last line on stderr."""


def scrubbed_names(environment: Iterable[str]) -> list[str]:
    """Names that must not travel into a submitted job."""
    return sorted(name for name in environment if name.startswith(SCRUBBED_PREFIXES) and name not in KEPT)


def has_slurm() -> bool:
    """Is there a Slurm client on this machine?"""
    return shutil.which("sbatch") is not None


def run_program(argv: Sequence[str], *, stdin: str | None = None, limit_s: float = LIMIT_S) -> str:
    """stdout of one of Slurm's programs, run in a scrubbed environment.

    Raises ProgramFailedError with its last words, UnreachableError when it is not there, hangs, or cannot reach the controller.
    """
    done = _start(argv, stdin, limit_s)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        if is_unreachable(done.stderr):
            raise UnreachableError(f"{argv[0]}: {words}; is slurmctld up?")
        raise ProgramFailedError(words)
    return done.stdout


def try_program(argv: Sequence[str], *, stdin: str | None = None, limit_s: float = LIMIT_S) -> tuple[int, str]:
    """Exit code and all words on stderr of one of Slurm's programs.  Raises UnreachableError when it is not there, or hangs."""
    done = _start(argv, stdin, limit_s)
    return done.returncode, done.stderr.strip() or done.stdout.strip()


def _start(argv: Sequence[str], stdin: str | None, limit_s: float) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in scrubbed_names(os.environ)}
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=limit_s, env=environment)
    except FileNotFoundError as error:
        raise UnreachableError(f"{argv[0]}: not found; is Slurm's client installed on this machine?") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{argv[0]}: no answer within {limit_s:g} s; is slurmctld up?") from error


def is_unreachable(words: str) -> bool:
    """Do a client's words mean that Slurm did not answer?"""
    return any(sign in words for sign in _UNREACHABLE)


class LimitReachedError(UsageError):
    """The person has as many jobs in the queue as may be; with fewer, this one would be taken."""


# Slurm's names for the limits on jobs in the queue (MaxSubmitJobs and its kin); other policies are refusals for good.
_SUBMIT_LIMITS = re.compile(r"SubmitJob|job count limit|temporarily unable to accept job", re.IGNORECASE)


def refusal(run_id: str, text: str) -> PhenomError:
    """What sbatch's words amount to: Slurm is away, the queue's limits are reached, or it will not take this."""
    lines = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.strip()] or ["no reason given"]
    reasons = [line.removeprefix("Batch job submission failed: ").rstrip(".") for line in lines]
    words = "; ".join(dict.fromkeys(reasons[-3:]))
    if is_unreachable(text):
        return UnreachableError(f"run {run_id}: {words}; is slurmctld up?")
    if _SUBMIT_LIMITS.search(text):
        return LimitReachedError(
            f"run {run_id}: too many jobs are in the queue: {words}; wait for some, or cancel some"
        )
    return UsageError(f"run {run_id}: Slurm refuses the job: {words}")
