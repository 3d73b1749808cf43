"""The end of an elastic gang's task, where nodes were lost: Slurm's view of the job no longer follows from exit codes.

The batch script and srun live on the job's first node.  While that lives, a lost node's exit code hides the others': a file says
what they want.  Once it is gone nobody ends or requeues the job, which stays RUNNING: the lowest rank that is left does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from signal import SIGTERM

from phenomhpc.config import AnyConfig
from phenomhpc.errors import DONE, TASK_REQUEUE, PhenomError
from phenomhpc.jobs.attempts import exclude_sick
from phenomhpc.runs import RoundsPaths, RunPaths, commit, read_task_events
from phenomhpc.runs.rounds import close_rounds, newest_round, read_round, read_wishes
from phenomhpc.slurm.decide import HEAD_LOST
from phenomhpc.slurm.inside import Place, is_ours
from phenomhpc.slurm.submit import cancel_jobs, requeue_job

LAST_WORDS_S = 20.0
TERMINATED = 128 + SIGTERM


def end_elastic(
    paths: RunPaths, config: AnyConfig, place: Place, attempt: int, code: int, emit: Callable[..., None]
) -> None:
    """Call last, on every node that ends by itself with `code`: excludes nodes that were lost, ends or requeues the job where
    its first node cannot.

    Event `head_lost` before the latter.  Never raises for Slurm's silence: the job's limit ends it then.
    """
    files = paths.attempt(attempt).rounds(place.restarts)
    if code != DONE:
        close_rounds(files, host=place.host, code=code, words="its task has ended")
    left = _left(files)
    if not left or left[0] != place.rank or len(left) == len(place.hosts):
        return
    lost = [host for rank, host in enumerate(place.hosts) if rank not in left]
    evidence = {
        "run": paths.id,
        "attempt": attempt,
        "job": place.job_id,
        "words": "was lost to the others in mid-training",
    }
    with suppress(PhenomError):
        exclude_sick(paths, config, lost, lambda **fields: emit("excluded", **fields), evidence)
    if left[0] == 0:
        if code == TASK_REQUEUE:
            commit(files.requeue, "")
        return
    _wait_for_others(paths, attempt, left[1:])
    emit(HEAD_LOST, node=place.hosts[0], code=code)
    try:
        # A first node that was only cut off comes back, and Slurm ends what runs there: its srun then terminates the others.
        stopped = code in (TASK_REQUEUE, TERMINATED) and is_ours(place.job_id, place.restarts, place.host) is True
        if stopped and not paths.outcome.exists():
            requeue_job(place.job_id)
        else:
            cancel_jobs([place.job_id])
    except PhenomError as error:
        print(f"job {place.job_id} has lost its first node and could not be ended: {error}", flush=True)


def _wait_for_others(paths: RunPaths, attempt: int, ranks: list[int]) -> None:
    """Let the others say how they ended; ending the job cuts them short."""
    deadline = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < deadline:
        if all(
            any(event["event"] == "ended" for event in read_task_events(paths, attempt, rank)[-1:]) for rank in ranks
        ):
            return
        time.sleep(0.2)


def _left(files: RoundsPaths) -> list[int]:
    """Ranks that were there last: those that asked for a round that never came, else the members of the newest."""
    number = newest_round(files)
    there = read_wishes(files, number + 1) or read_round(files, number) or ()
    return [member.rank for member in there]
