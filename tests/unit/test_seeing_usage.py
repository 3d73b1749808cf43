"""What a run has cost, from run directories written by the real writers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenomhpc.config import ConvertConfig, PretrainConfig, RunConfig, dump
from phenomhpc.config.base import ClusterConfig
from phenomhpc.config.training import OptimConfig
from phenomhpc.jobs.attempts import STEWARD_TASK
from phenomhpc.jobs.usage import Usage, account, run_usage, totals
from phenomhpc.runs import EventWriter, RunPaths, committing, create_run, read_events

# What the submitter writes: GPUs of one job, CPUs of one task.
ASKED_ARRAY = {"num_tasks": 2, "gpus": 0, "num_nodes": 1, "cpus": 4, "limit_minutes": 60}
ASKED_GANG = {"num_tasks": 2, "gpus": 8, "num_nodes": 2, "cpus": None, "limit_minutes": 30}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """The present moment of the run directory's writers, moved by the test."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> str:
        return (BEGAN + timedelta(seconds=self.s)).isoformat(timespec="microseconds")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("phenomhpc.runs.events.now", made)
    return made


def array_run(tmp_path: Path) -> tuple[RunPaths, ConvertConfig]:
    cluster = ClusterConfig(time_minutes=60, cpus_per_task=4)
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s", cluster=cluster)
    return create_run(tmp_path, "convert", dump(config), {}, name="r"), config


def gang_run(tmp_path: Path) -> tuple[RunPaths, PretrainConfig]:
    cluster = ClusterConfig(time_minutes=30, nodes=2, gpus_per_node=4)
    config = PretrainConfig(runs=str(tmp_path), store=("s",), optim=OptimConfig(steps=100), cluster=cluster)
    return create_run(tmp_path, "pretrain", dump(config), {}, name="g"), config


def at(clock: Clock, s: float, writer: EventWriter, event: str, **fields: Any) -> None:
    clock.s = s
    writer.emit(event, **fields)


def steps(paths: RunPaths, attempt: int, first: int, ends: list[float]) -> None:
    """The metrics file of consecutive steps that ended at these seconds."""
    times = [BEGAN + timedelta(seconds=end) for end in ends]
    table = pa.table(
        {
            "step": pa.array(range(first, first + len(ends)), pa.int64()),
            "time": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )
    with committing(paths.metrics_file(attempt, first + len(ends) - 1)) as file:
        pq.write_table(table, file)


def test_an_array_counts_each_unit_once_and_a_start_that_was_cut_to_its_last_sign(tmp_path: Path, clock: Clock) -> None:
    paths, config = array_run(tmp_path)
    steward = EventWriter(paths, 1, STEWARD_TASK, "a")
    at(clock, 0, steward, "submitted", **ASKED_ARRAY)
    cut, again = EventWriter(paths, 1, 0, "a.0"), EventWriter(paths, 1, 0, "a.1")
    at(clock, 100, cut, "started", start=0, cpus=4, gpus=0)
    at(clock, 400, cut, "unit", unit_id="p/0", seconds=200.0)
    # the power is cut; Slurm starts the task again, which does the unit once more, and a second one
    at(clock, 1000, again, "started", start=1, cpus=4, gpus=0)
    at(clock, 1300, again, "unit", unit_id="p/0", seconds=250.0)
    at(clock, 1400, again, "unit", unit_id="p/1", seconds=100.0)
    at(clock, 1401, again, "finished", units_done=2)
    at(clock, 1405, again, "ended", code=0, seconds=405.0)
    usage = run_usage(paths, config)
    assert usage.core.used == pytest.approx(4 * (300 + 405) / 3600)
    assert usage.core.useful == pytest.approx(4 * 350 / 3600)
    assert usage.core.lost == pytest.approx(4 * 355 / 3600)
    assert usage.core.asked == pytest.approx(2 * 4 * 1.0)
    assert usage.gpu == Usage().gpu


def test_a_unit_without_its_own_seconds_took_what_passed_since_the_event_before(tmp_path: Path, clock: Clock) -> None:
    paths, config = array_run(tmp_path)
    writer = EventWriter(paths, 1, 0, "a.0")
    at(clock, 0, writer, "started", cpus=1)
    at(clock, 30, writer, "unit", unit_id="p/0")
    at(clock, 50, writer, "unit", unit_id="p/1")
    at(clock, 60, writer, "failed", **{"class": "code_error"})
    usage = run_usage(paths, config)
    assert (usage.core.used * 3600, usage.core.useful * 3600) == (pytest.approx(60), pytest.approx(50))


def test_a_task_that_runs_counts_to_the_present_moment_and_one_that_finished_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, config = array_run(tmp_path)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    monkeypatch.setattr("phenomhpc.runs.events.now", lambda: hour_ago.isoformat(timespec="microseconds"))
    for task in (0, 1):
        EventWriter(paths, 1, task, "a.0").emit("started", cpus=2)
    EventWriter(paths, 1, 1, "a.0").emit("finished")
    assert run_usage(paths, config).core.used == 0
    living = run_usage(paths, config, live={0, 1}).core
    # What a living task has yet to commit is not lost.
    assert (living.used, living.lost) == (pytest.approx(2.0, abs=0.01), 0)


def test_repeated_and_uncommitted_steps_of_a_gang_are_lost(tmp_path: Path, clock: Clock) -> None:
    paths, config = gang_run(tmp_path)
    at(clock, 0, EventWriter(paths, 1, STEWARD_TASK, "a"), "submitted", **ASKED_GANG)
    nodes = [EventWriter(paths, 1, rank, "a.0") for rank in (0, 1)]
    for node in nodes:
        at(clock, 10, node, "started", gpus=4, cpus=8)
    at(clock, 110, nodes[0], "checkpoint", step=6)
    steps(paths, 1, 0, [50, 60, 70, 80, 90, 100, 120, 130])  # steps 6 and 7 were never committed
    for node in nodes:
        clock.s = 140
        node.emit("ended", code=1, seconds=130.0)
    # both nodes again, from step 6 on
    later = [EventWriter(paths, 2, rank, "b.0") for rank in (0, 1)]
    at(clock, 199, EventWriter(paths, 2, STEWARD_TASK, "b"), "submitted", **ASKED_GANG)
    for node in later:
        at(clock, 200, node, "started", gpus=4, cpus=8)
    at(clock, 205, later[0], "resumed", step=6)
    steps(paths, 2, 6, [230, 240, 250, 260])
    at(clock, 261, later[0], "checkpoint", step=10)
    for node in later:
        clock.s = 270
        node.emit("ended", code=0, seconds=70.0)
    usage = run_usage(paths, config)
    assert usage.gpu.used * 3600 == pytest.approx(8 * (130 + 70))
    # ten steps of 10 s: each attempt's first one counts as the usual 10 s, 6 and 7 once
    assert usage.gpu.useful * 3600 == pytest.approx(8 * 100)
    assert usage.gpu.lost * 3600 == pytest.approx(8 * 100)
    assert usage.gpu.asked == pytest.approx(2 * 2 * 4 * 0.5)
    # while the gang lives, the steps since its checkpoint are not lost yet
    steps(paths, 2, 10, [270, 280])
    assert run_usage(paths, config, live={0, 1}).gpu.useful > usage.gpu.useful


def test_a_gang_that_lost_its_power_lived_as_long_as_its_metrics_tell(tmp_path: Path, clock: Clock) -> None:
    paths, config = gang_run(tmp_path)
    at(clock, 0, EventWriter(paths, 1, 0, "a.0"), "started", gpus=4)
    steps(paths, 1, 0, [100, 200, 300])
    assert run_usage(paths, config).gpu.used * 3600 == pytest.approx(4 * 300)


def test_accounts_are_per_run_and_user_and_leave_out_what_is_older(tmp_path: Path, clock: Clock) -> None:
    paths, _ = array_run(tmp_path)
    writer = EventWriter(paths, 1, 0, "a.0")
    at(clock, 0, writer, "started", cpus=1)
    at(clock, 7200, writer, "ended", code=0, seconds=7200.0)
    (entry,) = account([(paths, "finished")])
    assert (entry.run, entry.state, entry.usage.core.used) == ("r", "finished", 2.0)
    assert totals([entry, entry])[entry.user].core.used == 4.0
    assert account([(paths, "finished")], datetime.now(UTC) + timedelta(hours=1)) == []
    assert read_events(paths)  # what was counted was really written


def test_without_a_limit_nothing_can_be_said_of_what_was_asked_for(tmp_path: Path, clock: Clock) -> None:
    config = ConvertConfig(runs=str(tmp_path), plates=("p",), store="s")
    paths = create_run(tmp_path, "convert", dump(config), {}, name="r")
    EventWriter(paths, 1, STEWARD_TASK, "a").emit("submitted", **{**ASKED_ARRAY, "limit_minutes": None})
    assert run_usage(paths, config).core.asked is None


def test_of_a_script_the_starts_count_that_left_something(tmp_path: Path, clock: Clock) -> None:
    cluster = ClusterConfig(time_minutes=30, nodes=1, gpus_per_node=4)
    config = RunConfig(runs=str(tmp_path), command=("python", "train.py"), cluster=cluster)
    paths = create_run(tmp_path, "run", dump(config), {}, name="s")
    steward, task = EventWriter(paths, 1, STEWARD_TASK, "t", None), EventWriter(paths, 1, 0, "t", "1")
    at(clock, 0, steward, "submitted", **{**ASKED_GANG, "num_tasks": 1, "gpus": 4, "num_nodes": 1})
    ends = [(75, "", "1 file"), (75, "1 file", "1 file"), (0, "1 file", "1 file")]  # code, mark before, mark after
    for number, (code, before, after) in enumerate(ends):
        at(clock, 100 * number, task, "started", start=number, gpus=4, cpus=2)
        at(clock, 100 * number + 60, task, "ended", code=code, seconds=60, before=before, mark=after)
    gpu = run_usage(paths, config, read_events(paths)).gpu
    assert gpu.used == pytest.approx(3 * 60 * 4 / 3600)
    assert gpu.useful == pytest.approx(2 * 60 * 4 / 3600)
