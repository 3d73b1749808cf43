"""What slurmstepd writes into the log of a task that it kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenomhpc.slurm.decide import FailureClass, TaskView, view_gang, view_tasks
from phenomhpc.slurm.last_lines import with_last_lines
from phenomhpc.slurm.queue import JobState

# Slurm 22.05, JobAcctGatherParams=OverMemoryKill
KILLED = (
    "slurmstepd-n1: error: StepId=2.0 exceeded memory limit (169553920 > 167772160), being killed\n"
    "slurmstepd-n1: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-11-26T14:55:35 ***\n"
)
STARTED = {"event": "started", "task": 0, "time": "1", "host": "n1"}


def array_view(log: Path, events: list[dict[str, object]] | None = None, state: str = "FAILED") -> TaskView:
    job = JobState(job_id="2", index=0, state=state)
    (view,) = view_tasks([str(log)], [], [STARTED, *(events or [])], {0: job})
    (told,) = with_last_lines([view], gang=False)
    return told


@pytest.mark.parametrize("state", ["FAILED", "COMPLETED"])
def test_a_task_that_slurm_killed_for_its_memory_is_oom(tmp_path: Path, state: str) -> None:
    log = tmp_path / "0.001.out"
    log.write_text("convert: 3/8 fields\n" + KILLED)
    view = array_view(log, state=state)
    assert (view.failure, view.message) == (
        FailureClass.OOM,
        "killed by Slurm: exceeded its memory limit (162 of 160 MiB)",
    )


def test_what_an_earlier_start_died_of_and_what_the_task_says_itself_count_for_more(tmp_path: Path) -> None:
    log = tmp_path / "0.001.out"
    log.write_text(KILLED + "".join(f"convert: {field}/8 fields\n" for field in range(8)))
    assert array_view(log).failure == FailureClass.NODE_FAIL
    log.write_text(KILLED)
    said = {"event": "failed", "task": 0, "time": "2", "host": "n1", "class": "bad_input", "message": "no such plate"}
    assert array_view(log, [said]).failure == FailureClass.BAD_INPUT
    assert array_view(log, state="TIMEOUT").failure == FailureClass.TIMEOUT
    assert array_view(tmp_path / "gone").failure == FailureClass.NODE_FAIL


def test_a_gang_ends_for_the_one_of_its_nodes(tmp_path: Path) -> None:
    logs = [tmp_path / f"{rank}.001.out" for rank in (0, 1)]
    logs[0].write_text("training\n")
    logs[1].write_text("training\n" + KILLED)
    events = [STARTED, {**STARTED, "task": 1}]
    job = JobState(job_id="2", index=None, state="FAILED")
    views = view_gang([str(log) for log in logs], [], events, {0: job, 1: job})
    assert [view.failure for view in with_last_lines(views, gang=True)] == [FailureClass.OOM] * 2
    logs[1].write_text("training\n")
    assert with_last_lines(views, gang=True) == views
