"""Why a run failed: what accounting writes, and run directories written by the real writers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from phenomhpc.config import ConvertConfig, PipelineConfig, PretrainConfig, dump
from phenomhpc.errors import UnreachableError, UsageError
from phenomhpc.jobs import why as why_module
from phenomhpc.jobs.attempts import CLUSTER, STEWARD_TASK, stage_paths
from phenomhpc.jobs.failures import accounting_of, last_traceback
from phenomhpc.jobs.why import Why, why
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    canonical_json,
    commit,
    create_run,
    new_token,
    open_attempt,
    write_outcome,
)
from phenomhpc.slurm.queue import JobState, Queue, StepState, parse_memory, parse_steps
from phenomhpc.slurm.record import SubmittedJobs, write_submitted

# sacct -n -P -o JobID,State,ExitCode,MaxRSS,NodeList,Elapsed,Reason, Slurm 22.05
SACCT = """\
5_0|COMPLETED|0:0||n1|00:00:12|None
5_0.batch|COMPLETED|0:0|5120K|n1|00:00:12|
5_0.0|COMPLETED|0:0|1.50G|n1|00:00:10|
5_1|FAILED|1:0||n2|00:00:12|None
5_1.batch|FAILED|1:0|5120K|n2|00:00:12|
5_1.0|OUT_OF_MEMORY|0:125|2048M|n2|00:00:10|
5_2|CANCELLED by 1000|0:15||n3|00:00:02|None
5_[3-4]|PENDING|0:0||None assigned|00:00:00|Resources
"""


class Slurm:
    """Slurm's answers, put in the place of its programs, and how often each was asked."""

    def __init__(self) -> None:
        self.sacct, self.jobs, self.asked = "", [], {"sacct": 0, "squeue": 0}
        self.silent = False

    def steps(self, ids: list[str]) -> list[StepState]:
        self.asked["sacct"] += 1
        return [step for step in parse_steps(self.sacct) if step.job_id in ids]

    def queue(self, root: Path) -> Queue:
        self.asked["squeue"] += 1
        if self.silent:
            raise UnreachableError("squeue: no answer within 30 s; is slurmctld up?")
        return Queue(jobs=tuple(self.jobs))


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm()
    monkeypatch.setattr(why_module, "query_steps", made.steps)
    monkeypatch.setattr(why_module, "query_queue", made.queue)
    return made


def array(tmp_path: Path, num_tasks: int, name: str = "r", job: str = "5") -> RunPaths:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    paths = RunPaths(tmp_path / name)
    if not paths.root.exists():
        paths = create_run(tmp_path, "convert", dump(config), {CLUSTER: "phenom"}, name=name)
    attempt, _ = open_attempt(paths)
    jobs = SubmittedJobs(chunks=((job, 0, num_tasks),), num_tasks=num_tasks, gang=False, steward=None)
    write_submitted(paths.attempt(attempt), jobs)
    return paths


def finished(paths: RunPaths, attempt: int, task: int) -> None:
    writer = EventWriter(paths, attempt, task, "t")
    writer.emit("started", start=0)
    writer.emit("finished", units_done=1)
    commit(paths.done_file(task), canonical_json({"attempt": attempt, "set_aside": []}))


def test_accounting_is_read_line_by_line() -> None:
    steps = parse_steps(SACCT)
    assert len(steps) == 7  # elements that never started are no jobs yet
    assert [(step.index, step.step) for step in steps[:3]] == [(0, ""), (0, "batch"), (0, "0")]
    assert (steps[5].state, steps[5].exit_code, steps[5].signal) == ("OUT_OF_MEMORY", 0, 125)
    assert (steps[6].state, steps[6].max_rss_bytes, steps[6].nodes) == ("CANCELLED", None, "n3")


@pytest.mark.parametrize(
    ("text", "value"), [("", None), ("0", 0), ("5120K", 5120 << 10), ("1.50G", 3 << 29), ("2Mn", 2 << 20), ("7", 7)]
)
def test_memory_is_read_in_all_its_units(text: str, value: int | None) -> None:
    assert parse_memory(text) == value


def test_memory_that_only_the_step_tells_of_makes_the_job_out_of_memory() -> None:
    states = {job.index: job.state for job in accounting_of(parse_steps(SACCT)).states()}
    assert states == {0: "COMPLETED", 1: "OUT_OF_MEMORY", 2: "CANCELLED"}


def test_an_array_is_summed_up_and_the_worst_comes_first(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 4)
    finished(paths, 1, 0)
    EventWriter(paths, 1, 1, "t").emit("started", start=0)
    bad = EventWriter(paths, 1, 3, "t")
    bad.emit("started", start=0)
    bad.emit(
        "failed",
        **{"class": "code_error", "exit_code": 1, "message": "KeyError: 'x'", "traceback": "Trace\nKeyError: 'x'\n"},
    )
    bad.emit("ended", code=1, seconds=3.0, max_rss_bytes=3 << 20)
    commit(paths.log_file(3, 1), "words\n")
    EventWriter(paths, 1, STEWARD_TASK, "").emit("decided", action="stop", reason="task 3: code_error")
    write_outcome(paths, state="failed", exit_code=1, message="task 3: code_error: KeyError: 'x'")
    slurm.sacct = SACCT
    found = why(paths)
    assert found.failure == "code_error"
    assert found.summary.startswith("1 ok, 1 cancelled, 1 code_error on ")
    assert "1 oom" in found.summary
    assert [failure.failure for failure in found.failures] == ["code_error", "oom", "cancelled"]
    worst, starved, _ = found.failures
    assert (worst.task, worst.exit_code, worst.max_rss_bytes) == (3, 1, 3 << 20)
    assert worst.traceback == "Trace\nKeyError: 'x'"
    assert worst.log_command == "phenomhpc logs r --task 3 --attempt 1"
    assert (starved.max_rss_bytes, starved.slurm_state, starved.step_state) == (2 << 30, "FAILED", "0: OUT_OF_MEMORY")
    assert found.decided == "stop: task 3: code_error"
    assert slurm.asked == {"sacct": 1, "squeue": 0}
    assert [failure.task for failure in why(paths, task=1).failures] == [1]
    with pytest.raises(UsageError, match="attempt 1 has no task 9"):
        why(paths, task=9)


def test_without_accounting_the_run_directory_is_enough(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 1)
    bad = EventWriter(paths, 1, 0, "t")
    bad.emit("started", start=0)
    bad.emit("failed", **{"class": "hang", "exit_code": 78, "message": "rank 0 stands still"})
    bad.emit("ended", code=78, seconds=3.0, max_rss_bytes=1)
    write_outcome(paths, state="failed", exit_code=1, message="hang")
    (failure,) = why(paths).failures
    assert (failure.failure, failure.exit_code, failure.slurm_state) == ("hang", 78, "")


def test_what_slurm_has_forgotten_is_what_the_steward_saw(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 1)
    EventWriter(paths, 1, 0, "t").emit("started", start=0)
    steward = EventWriter(paths, 1, STEWARD_TASK, "")
    steward.emit("decided", action="stop", reason="task 0: timeout", classes={"timeout": 1})
    write_outcome(paths, state="failed", exit_code=1, message="timeout")
    assert why(paths).failure == "timeout"


def test_a_silent_slurm_makes_no_failures_of_tasks_that_may_well_run(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 2)
    EventWriter(paths, 1, 0, "t").emit("started", start=0)
    slurm.silent = True
    found = why(paths)
    assert (found.state, found.failure, found.failures) == ("unknown", "", ())
    assert "no answer" in found.message and "event `started` of task 0" in found.message


def test_without_accounting_what_the_controller_knows_to_run_has_not_failed(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 2)
    slurm.jobs = [JobState(job_id="5", index=index, state="RUNNING", folder=str(paths.root)) for index in (0, 1)]
    found = why(paths)
    assert (found.state, found.summary, found.failures) == ("running", "2 running", ())
    assert slurm.asked == {"sacct": 1, "squeue": 1}


def test_earlier_attempts_and_repeated_starts_are_one_line_each(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 2)
    first = EventWriter(paths, 1, 0, "t")
    first.emit("started", start=0)
    first.emit("failed", **{"class": "oom", "exit_code": 1, "message": "MemoryError"})
    again = EventWriter(paths, 1, 1, "t")
    again.emit("started", start=0)
    again.emit("preempted", message="asked to stop", reason="timeout")
    again.emit("started", start=1)
    again.emit("started", start=2)
    again.emit("finished")
    EventWriter(paths, 1, STEWARD_TASK, "").emit("decided", action="more_memory", reason="oom")
    array(tmp_path, 1, job="6")
    finished(paths, 2, 0)
    write_outcome(paths, state="finished", exit_code=0, message="all done")
    found = why(paths)
    assert (found.state, found.failure, found.summary, found.failures) == ("finished", "", "1 ok", ())
    lost, repeated = found.earlier
    assert lost.startswith("attempt 1: 1 ok, 1 oom on ")
    assert lost.endswith("(task 0: MemoryError); then more_memory")
    here = socket.gethostname()
    assert repeated == f"attempt 1: 2 start(s) that Slurm repeated: 1 node_fail on {here}, 1 timeout on {here}"


def test_a_cancelled_run_says_so_of_its_tasks_also_without_accounting(tmp_path: Path, slurm: Slurm) -> None:
    paths = array(tmp_path, 1)
    EventWriter(paths, 1, 0, "t").emit("started", start=0)
    write_outcome(paths, state="cancelled", exit_code=1, message="cancelled by a person")
    found = why(paths)
    assert (found.failure, found.failures[0].message) == ("cancelled", "cancelled by a person")


def test_a_pipeline_is_told_of_the_stage_it_failed_in(tmp_path: Path, slurm: Slurm) -> None:
    config = PipelineConfig(runs=str(tmp_path), plates=("p",), store="s", annotations="a")
    pipeline = create_run(tmp_path, "pipeline", dump(config), {CLUSTER: "phenom"}, name="pipe")
    stage = stage_paths(pipeline, config, "convert")
    array(tmp_path, 1, stage.id)
    EventWriter(stage, 1, 0, new_token()).emit("failed", **{"class": "bad_input", "exit_code": 2, "message": "torn"})
    write_outcome(stage, state="failed", exit_code=2, message="torn")
    write_outcome(pipeline, state="failed", exit_code=2, message="stage convert")
    found: Why = why(pipeline)
    assert (found.id, found.kind, found.failure) == ("pipe", "pipeline", "bad_input")
    assert found.stage == "convert, run pipe.convert: failed: torn"
    assert found.failures[0].task == 0


def test_a_run_that_failed_at_its_end_points_to_the_steward(tmp_path: Path, slurm: Slurm) -> None:
    config = PretrainConfig(runs=str(tmp_path), store=("s",))
    paths = create_run(tmp_path, "pretrain", dump(config), {CLUSTER: "phenom"}, name="g")
    attempt, _ = open_attempt(paths)
    jobs = SubmittedJobs(chunks=(("5", 0, 1),), num_tasks=2, gang=True, steward="6")
    write_submitted(paths.attempt(attempt), jobs)
    finished(paths, 1, 0)  # of a gang one tally is enough
    commit(paths.log_file("steward", 1), "Traceback ...\n")
    write_outcome(paths, state="failed", exit_code=1, message="finish: ValueError: x")
    found = why(paths)
    assert (found.failure, found.summary, found.log) == ("code_error", "2 ok", str(paths.log_file("steward", 1)))


OLD = "Traceback (most recent call last):\n  File x\nOld: 1"
NEW = "Traceback (most recent call last):\n  File y\n    z\nNew: 2"
STACKS = "--- stack of pid 1, state T ---\nThread 1\n--- stack of pid 2, state S ---"


@pytest.mark.parametrize(
    ("log", "last"), [("all well\n", ""), (f"a\n{OLD}\nb\n{NEW}\nc\n", NEW), (f"{OLD}\n{STACKS}\n", STACKS)]
)
def test_the_last_traceback_of_a_log_is_found(tmp_path: Path, log: str, last: str) -> None:
    (tmp_path / "log").write_text(log)
    assert last_traceback(tmp_path / "log") == last
