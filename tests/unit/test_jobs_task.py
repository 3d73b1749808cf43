"""A task that is started again: what its earlier starts have committed is not done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.config import ConvertConfig, dump
from phenomhpc.jobs import convert
from phenomhpc.jobs.base import TaskOutcome
from phenomhpc.jobs.task import run_task
from phenomhpc.runs import (
    EventWriter,
    RunPaths,
    TaskContext,
    Unit,
    claim_start,
    commit,
    open_attempt,
    read_task_events,
    write_manifest,
)


def test_a_new_start_goes_on_behind_the_units_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = RunPaths(tmp_path / "run")
    paths.root.mkdir()
    commit(paths.run_yaml, dump(ConvertConfig(plates=("p",), store="s")))
    attempt, token = open_attempt(paths)
    units = [Unit(unit_id=f"u{number}", kind="shard", task=number // 3) for number in range(6)]
    write_manifest(paths.attempt(attempt).manifest, units, token=token)
    first = EventWriter(paths, attempt, 0, claim_start(paths, attempt, 0, 0, "7_0"), "7_0")
    first.emit("unit", unit_id="u0", set_aside=2)
    first.emit("unit", unit_id="u1", set_aside=0)
    seen: list[str] = []

    def work(config: Any, ctx: TaskContext) -> TaskOutcome:
        seen.extend(unit.unit_id for unit in ctx.units)
        return TaskOutcome(units_done=len(ctx.units), set_aside=(("a field", "torn"),))

    monkeypatch.setattr(convert, "run", work)
    second = claim_start(paths, attempt, 0, 1, "7_0")
    assert run_task(str(paths.root), attempt, 0, token=second, job_id="7_0", start=1) == 0
    assert seen == ["u2"]
    tally = json.loads(paths.done_file(0).read_bytes())
    assert tally["units_done"] == 3
    assert tally["set_aside"] == [["u0", "2 set aside by an earlier start"], ["a field", "torn"]]
    # What it says at its end is what the task has done, not what this start has: `status` counts by it.
    (last,) = [event for event in read_task_events(paths, attempt, 0) if event["event"] == "finished"]
    assert last["units_done"] == 3
    # Another task's events, and another attempt's, are none of its business.
    assert run_task(str(paths.root), attempt, 1) == 0
    assert seen == ["u2", "u3", "u4", "u5"]
