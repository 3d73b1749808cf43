"""The guard: what it says and does when the work below it hangs, is killed, is replaced or asked to leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import ClusterConfig, ConvertConfig, dump
from phenomhpc.jobs.attempts import units_of
from phenomhpc.jobs.base import load
from phenomhpc.jobs.guard import stuck
from phenomhpc.jobs.processes import descendants, is_alive
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, create_run, open_attempt, read_task_events, write_manifest

LIMIT_S = 180
SPEC = SyntheticSpec(experiments=1, plates_per_experiment=1, plate_rows=2, plate_columns=4, field_px=64, num_genes=4)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plates") / "raw"
    write_plates(folder, SPEC, silent(), workers=1)
    return folder


@pytest.fixture
def planned(plates: Path, tmp_path: Path, request: pytest.FixtureRequest) -> RunPaths:
    """A conversion of one plate, as one task; the parameter is its hang_min_s, else a time that no busy machine is silent for."""
    raw = tmp_path / "raw"
    shutil.copytree(plates, raw)
    cluster = ClusterConfig(hang_min_s=getattr(request, "param", 120), hang_slow_s=120)
    config = ConvertConfig(
        plates=(str(raw),), store=str(tmp_path / "store"), runs=str(tmp_path / "runs"), shard_mb=1, cluster=cluster
    )
    paths = create_run(tmp_path / "runs", "convert", dump(config), {"command": []})
    units = units_of(load("convert").plan(config, paths), config)
    attempt, token = open_attempt(paths)
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    return paths


def block(paths: RunPaths) -> None:
    """Make the last plane one that never comes to an end: a FIFO, as a hung mount would be."""
    plane = sorted((paths.root.parent.parent / "raw").rglob("*.png"))[-1]
    plane.unlink()
    os.mkfifo(plane)


def start(paths: RunPaths, restarts: int = 0, **environment: str) -> subprocess.Popen[str]:
    """The guard as a Slurm step starts it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    place = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "phenomhpc.jobs.slurm_task", str(paths.root), "1", "0"],
        env={**inherited, **place, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def events(paths: RunPaths, name: str) -> list[dict[str, Any]]:
    return [event for event in read_task_events(paths, 1, 0) if event["event"] == name]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def at_work(paths: RunPaths, process: subprocess.Popen[str]) -> int:
    """The child's pid, once it has begun to write."""
    wait_for(lambda: descendants(process.pid) and (paths.root.parent.parent / "store" / "dataset.json").exists())
    return descendants(process.pid)[0]


def test_a_task_that_ends_well_is_told_with_its_time_and_memory(planned: RunPaths) -> None:
    process = start(planned)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    names = [event["event"] for event in read_task_events(planned, 1, 0)]
    assert names[0] == "started" and names[-2:] == ["finished", "ended"]
    ended = events(planned, "ended")[0]
    assert ended["code"] == 0 and ended["seconds"] > 0 and ended["max_rss_bytes"] > 10e6
    assert ended["before"] != ended["mark"]
    again = start(planned, restarts=1)  # requeued after its last word: nothing is left to do
    again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0
    assert len(events(planned, "finished")) == 1


@pytest.mark.parametrize("planned", [3], indirect=True)
def test_a_hung_task_is_dumped_killed_and_named(planned: RunPaths) -> None:
    block(planned)
    process = start(planned)
    child = at_work(planned, process)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 78
    assert not is_alive(child)
    failed = events(planned, "failed")[-1]
    assert failed["class"] == "hang" and "stands still in step" in failed["message"]
    assert f"stack of pid {child}" in output
    assert "convert_unit" in output  # py-spy's view of where it hung
    assert events(planned, "ended")[-1]["code"] == 78


def test_a_task_killed_by_a_signal_is_a_crash_told_by_its_guard(planned: RunPaths) -> None:
    block(planned)
    process = start(planned)
    os.kill(at_work(planned, process), signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + 9
    failed = events(planned, "failed")[-1]
    assert (failed["class"], failed["crashed"]) == ("node_fail", True)
    assert "SIGKILL" in failed["message"]


def test_a_replaced_task_is_killed_and_writes_nothing_more(planned: RunPaths) -> None:
    block(planned)
    process = start(planned)
    child = at_work(planned, process)
    open_attempt(planned)
    before = read_task_events(planned, 1, 0)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 76
    assert "attempt 2 has replaced attempt 1" in output
    assert not is_alive(child)
    assert read_task_events(planned, 1, 0) == before


def test_a_task_that_another_job_was_given_too_is_done_once(planned: RunPaths) -> None:
    block(planned)
    first = start(planned)
    at_work(planned, first)
    second = start(planned, SLURM_JOB_ID="8")
    output, _ = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 76
    assert "task 0 runs as job 7; job 8 leaves" in output
    first.kill()
    first.communicate(timeout=LIMIT_S)


def test_when_the_guard_is_killed_the_work_dies_with_it(planned: RunPaths) -> None:
    block(planned)
    process = start(planned)
    child = at_work(planned, process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    wait_for(lambda: not is_alive(child))


def ended(code: int, before: str, mark: str) -> dict[str, Any]:
    return {"event": "ended", "code": code, "before": before, "mark": mark}


STOP = {"event": "preempted", "reason": "timeout"}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([STOP, ended(75, "a", "a"), STOP, ended(75, "a", "a")], True),
        ([STOP, ended(75, "a", "b"), STOP, ended(75, "b", "b")], False),  # the one before got on
        ([STOP, ended(75, "a", "a")], False),
        ([STOP, ended(75, "a", "a"), {**STOP, "reason": "preempted"}, ended(75, "a", "a")], False),
        ([{**STOP, "reason": "preempted"}, ended(75, "a", "a"), STOP, ended(75, "a", "a")], False),
        ([STOP, ended(78, "a", "a"), STOP, ended(75, "a", "a")], False),  # hangs are the steward's to judge
    ],
)
def test_the_time_limit_must_not_come_twice_at_the_same_point(history: list[dict[str, Any]], expected: bool) -> None:
    assert stuck(history) is expected
