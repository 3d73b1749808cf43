"""A run on Slurm as its directory and the queue show it, without asking any Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phenomhpc.config import ConvertConfig, PipelineConfig, dump
from phenomhpc.errors import UsageError
from phenomhpc.jobs.attempts import AFTER, CLUSTER, stage_paths
from phenomhpc.jobs.cancel import cancel_run
from phenomhpc.jobs.counting import count_done
from phenomhpc.jobs.status import progress_of, run_status
from phenomhpc.jobs.steward import is_watched
from phenomhpc.jobs.submit import here_command
from phenomhpc.progress import silent
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    Unit,
    canonical_json,
    commit,
    create_run,
    open_attempt,
    read_events,
    write_manifest,
    write_outcome,
)
from phenomhpc.slurm.decide import Action, History, decide
from phenomhpc.slurm.observe import observe
from phenomhpc.slurm.queue import JobState, Queue
from phenomhpc.slurm.record import SubmittedJobs, read_submitted, write_submitted
from phenomhpc.slurm.submit import snapshot_code

NOBODY = Queue(jobs=())


def new_run(tmp_path: Path, name: str = "r", **provenance: object) -> RunPaths:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    return create_run(tmp_path, "convert", dump(config), {CLUSTER: "phenom", **provenance}, name=name)


def attempt_of(paths: RunPaths, num_units: int, num_tasks: int, job: str = "5") -> int:
    number, token = open_attempt(paths)
    units = [Unit(unit_id=f"p/{unit}", kind="convert", task=unit % num_tasks) for unit in range(num_units)]
    write_manifest(paths.attempt(number).manifest, units, token=token)
    chunks = ((job, 0, num_tasks),)
    write_submitted(paths.attempt(number), SubmittedJobs(chunks=chunks, num_tasks=num_tasks, gang=False, steward="6"))
    return number


def element(paths: RunPaths, index: int, state: str, job: str = "5", name: str = "r", reason: str = "") -> JobState:
    return JobState(job_id=job, index=index, state=state, name=name, folder=str(paths.root), reason=reason)


def tally(paths: RunPaths, attempt: int, task: int) -> None:
    commit(paths.done_file(task), canonical_json({"attempt": attempt, "units_done": 1}))


def test_what_was_submitted_is_read_as_it_was_written(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    number = attempt_of(paths, 4, 2)
    jobs = read_submitted(paths.attempt(number))
    assert jobs == SubmittedJobs(chunks=(("5", 0, 2),), num_tasks=2, gang=False, steward="6")
    assert json.loads(paths.attempt(number).slurm.read_bytes())["chunks"] == [["5", 0, 2]]
    assert read_submitted(paths.attempt(7)) is None


def test_a_tally_of_an_older_attempt_does_not_count(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt_of(paths, 4, 2)
    tally(paths, 1, 0)
    attempt_of(paths, 2, 1, job="8")
    seen = observe(paths, Queue(jobs=(element(paths, 0, "RUNNING", job="8"),)))
    assert (seen.attempt, [task.done for task in seen.tasks], seen.live) == (2, [False], ("8",))


def test_what_nobody_knows_is_no_success_and_the_attempt_is_repeated(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt_of(paths, 4, 2)
    tally(paths, 1, 0)
    seen = observe(paths, NOBODY)
    assert [str(task.failure) for task in seen.tasks if not task.done] == ["node_fail"]
    assert decide(seen.tasks, History(), 3).action == Action.NEXT_ATTEMPT


def test_a_job_that_no_attempt_names_is_a_stray_and_the_steward_is_not(tmp_path: Path) -> None:
    paths, other = new_run(tmp_path), new_run(tmp_path, "other")
    attempt_of(paths, 4, 2)
    jobs = (
        element(paths, 0, "RUNNING"),
        element(paths, 1, "COMPLETED"),
        element(paths, 0, "PENDING", job="4"),
        JobState(job_id="6", index=None, state="PENDING", name="steward-r", folder=str(paths.root)),
        JobState(job_id="9", index=None, state="RUNNING", name="steward-r", folder=str(paths.root)),
        element(other, 0, "RUNNING", job="3", name="other"),
    )
    seen = observe(paths, Queue(jobs=jobs), own_job="9")
    assert (seen.live, seen.stewards, seen.strays) == (("5",), ("6",), ("4",))


def test_an_attempt_whose_submitter_was_killed_was_never_submitted(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    open_attempt(paths)  # neither manifest nor slurm.json
    seen = observe(paths, Queue(jobs=(element(paths, 0, "RUNNING"),)))
    assert (seen.attempt, seen.submitted, seen.tasks, seen.strays) == (1, None, (), ("5",))
    assert run_status(paths, NOBODY).attempt == 1


@pytest.mark.parametrize(
    ("states", "tallies", "state", "said"),
    [
        (["PENDING", "PENDING"], [], "queued", "2 of 2 task(s) wait: Resources"),
        (["RUNNING", "PENDING"], [], "running", ""),
        (["COMPLETED", "NODE_FAIL"], [0], "running", "task 1: node_fail: Slurm says NODE_FAIL; the steward decides"),
        (["COMPLETED", "COMPLETED"], [0, 1], "running", "all tasks are done; the steward finishes the run"),
    ],
)
def test_a_run_is_told_in_one_word_and_why(
    tmp_path: Path, states: list[str], tallies: list[int], state: str, said: str
) -> None:
    paths = new_run(tmp_path)
    attempt_of(paths, 4, 2)
    for task in tallies:
        tally(paths, 1, task)
    jobs = tuple(element(paths, index, word, reason="Resources") for index, word in enumerate(states))
    status = run_status(paths, Queue(jobs=jobs))
    assert (status.state, status.message, status.where, status.jobs) == (state, said, "phenom", ("5",))


def test_units_are_counted_over_all_attempts(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt_of(paths, 4, 2)
    first = EventWriter(paths, 1, 0, "t")
    first.emit("started", start=0)
    first.emit("unit", unit_id="p/0")
    first.emit("unit", unit_id="p/2")
    number, token = open_attempt(paths)
    left = [Unit(unit_id=f"p/{unit}", kind="convert", task=0) for unit in (1, 3)]
    write_manifest(paths.attempt(number).manifest, left, token=token)
    second = EventWriter(paths, number, 0, token)
    second.emit("started", start=0)
    second.emit("unit", unit_id="p/1")
    count = count_done(paths, ConvertConfig(), read_events(paths))
    assert (count.done, count.total) == (3, 4)
    assert progress_of(paths) == "r: 3 of 4 units"


def test_an_outcome_is_the_last_word(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    attempt_of(paths, 4, 2)
    write_outcome(paths, state="finished", exit_code=3, message="done", set_aside=[["a", "b"]], report="R")
    status = run_status(paths, Queue(jobs=(element(paths, 0, "RUNNING"),)))
    assert (status.state, status.exit_code, status.set_aside, status.report) == ("finished", 3, 1, "R")


def test_a_run_waiting_for_another_is_queued(tmp_path: Path) -> None:
    paths = new_run(tmp_path, **{AFTER: "/runs/first"})
    status = run_status(paths, NOBODY)
    assert (status.state, status.message) == ("queued", "waits for first")


def test_a_pipeline_lists_all_its_stages(tmp_path: Path) -> None:
    config = PipelineConfig(runs=str(tmp_path), plates=("p",), store="s", annotations="a")
    paths = create_run(tmp_path, "pipeline", dump(config), {CLUSTER: "phenom"}, name="pipe")
    stage = stage_paths(paths, config, "convert")
    new_run(tmp_path, stage.id)
    attempt_of(stage, 4, 2)
    status = run_status(paths, Queue(jobs=(element(stage, 0, "RUNNING"),)))
    assert (status.state, status.message) == ("running", "stage convert is running")
    assert (status.done, status.total, status.noun) == (0, 4, "stages")
    assert status.stages[0] == ("convert", "pipe.convert", "running")
    assert [state for _, _, state in status.stages[1:]] == ["", "", ""]


def test_a_run_here_that_was_killed_is_unknown_and_cannot_be_cancelled_from_elsewhere(tmp_path: Path) -> None:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    paths = create_run(tmp_path, "convert", dump(config), {}, name="here")
    EventWriter(paths, 1, 0, "t").emit("started", start=0, pid=77)
    status = run_status(paths)
    assert (status.state, status.where) == ("unknown", "here")
    assert "run the same command again" in status.message
    with pytest.raises(UsageError, match=r"was started here.*process 77"):
        cancel_run(paths, silent())
    write_outcome(paths, state="finished", exit_code=0)
    assert cancel_run(paths, silent()) == "here had ended already: finished"


def test_the_code_snapshot_is_the_package_with_its_recipes(tmp_path: Path) -> None:
    paths = new_run(tmp_path)
    snapshot_code(paths)
    assert (paths.code / "phenomhpc" / "slurm" / "submit.py").is_file()
    assert (paths.code / "jobs" / "pretrain.yaml").is_file()
    assert not list(paths.code.rglob("*.pyc"))
    assert all(list(folder.glob("*.nbi")) for folder in paths.code.rglob("__pycache__"))
    marker = paths.code / "phenomhpc" / "marker"
    marker.touch()
    snapshot_code(paths)  # a later attempt imports what was submitted
    assert marker.exists()


def test_the_way_out_without_slurm_is_the_same_command_less_what_only_slurm_takes() -> None:
    words = ["x", "submit", "pretrain", "--store", "a", "b", "--nodes", "16", "--time=2d", "--wait", "optim.steps=5"]
    assert here_command(words) == "phenomhpc pretrain --store a b optim.steps=5"


def test_while_slurm_is_silent_a_run_is_unknown_and_an_ended_one_is_not(tmp_path: Path) -> None:
    paths, ended = new_run(tmp_path), new_run(tmp_path, "ended")
    attempt_of(paths, 4, 2)
    write_outcome(ended, state="finished", exit_code=0)
    status = run_status(paths, problem="squeue: no answer")
    assert (status.state, status.message, status.total) == ("unknown", "squeue: no answer", 4)
    assert run_status(ended, problem="squeue: no answer").state == "finished"


def test_of_two_stewards_that_leave_at_once_one_sees_to_it_that_somebody_looks_again() -> None:
    """Seen on a cluster: both were alive, each relied on the other, and the run was never looked at again."""
    alive = ("101", "118")
    leaving = {own: is_watched([job for job in alive if job != own], own) for own in alive}
    assert leaving == {"101": True, "118": False}
    assert is_watched(["9"], "10") is False and is_watched(["9"], None) is True and is_watched([], None) is False
