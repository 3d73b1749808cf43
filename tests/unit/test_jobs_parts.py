"""Parts of long units are told to the run, ever more rarely, and of short ones only their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenomhpc.errors import FencedError
from phenomhpc.jobs import parts as parts_module
from phenomhpc.jobs.parts import Parts
from phenomhpc.progress import silent
from phenomhpc.runs import PROGRESS, RunPaths, TaskContext, Unit, claim_start, open_attempt, read_events


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.s = 100.0

    def monotonic(self) -> float:
        return self.s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(parts_module, "time", made)
    return made


def context(folder: Path) -> TaskContext:
    paths = RunPaths(folder / "r")
    paths.root.mkdir()
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0, "7")
    return TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent())


def convert_field(parts: Parts, clock: Clock, seconds: float) -> None:
    clock.s += seconds
    parts.part(1000)


def test_a_long_unit_is_told_of_on_its_way_and_a_short_one_at_its_end_only(tmp_path: Path, clock: Clock) -> None:
    ctx = context(tmp_path)
    with Parts(ctx, silent().stage("convert", 700, "fields")) as parts:
        parts.begin(Unit(unit_id="p/0", kind="convert", count=600))
        for _ in range(600):
            convert_field(parts, clock, 1.0)
        parts.end()
        parts.begin(Unit(unit_id="p/1", kind="convert", count=9))
        for _ in range(9):
            convert_field(parts, clock, 1.0)
        parts.end(2)
    events = read_events(ctx.paths)
    told = [event for event in events if event["event"] == PROGRESS]
    assert {event["unit_id"] for event in told} == {"p/0"} and 8 <= len(told) <= 12
    assert told[0]["count"] == 11 and all(event["bytes"] == 1000 * event["count"] for event in told)
    first, second = [event for event in events if event["event"] == "unit"]
    assert (first["seconds"], first["count"], first["bytes"], first["set_aside"]) == (600.0, 600, 600_000, 0)
    assert (second["seconds"], second["bytes"], second["set_aside"]) == (9.0, 9000, 2)


def test_who_was_replaced_tells_nothing_and_finds_it_out(tmp_path: Path, clock: Clock) -> None:
    ctx = context(tmp_path)
    parts = Parts(ctx, silent().stage("convert", 1, "fields"))
    parts.begin(Unit(unit_id="p/0", kind="convert", count=600))
    claim_start(ctx.paths, 1, 0, 1, "7")
    with pytest.raises(FencedError):
        convert_field(parts, clock, 60.0)
    assert read_events(ctx.paths) == []
