"""Silence: who may be quiet for how long."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.runs.heartbeat import ENVIRONMENT, PATIENCE_STEPS, START, STEP, Beat, Watch, beat, read_beats, rest


def at(count: int, phase: str = STEP, pid: int = 1) -> Beat:
    return Beat(pid=pid, rank=0, phase=phase, step=count, count=count)


@given(
    steps=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=40),
    min_s=st.floats(0.5, 20.0),
    slow_s=st.floats(20.0, 50.0),
)
def test_steady_steps_are_never_a_hang_and_eternal_silence_always_is(
    steps: list[float], min_s: float, slow_s: float
) -> None:
    watch = Watch(min_s=min_s, slow_s=slow_s, is_alive=lambda pid: True)
    now = 0.0
    watch.look([at(0)], now)
    for count, seconds in enumerate(steps, 1):
        now += seconds
        assert not watch.look([at(count)], now) or seconds > min_s
    usual = max(steps)
    assert watch.look([at(len(steps))], now + max(slow_s, min_s, PATIENCE_STEPS * usual) + 1)


def test_start_up_and_checkpoints_may_take_their_time_and_the_dead_are_not_silent() -> None:
    alive = {1, 2}
    watch = Watch(min_s=2, slow_s=60, is_alive=alive.__contains__)
    for count in range(10):
        watch.look([at(count, pid=1), at(0, START, pid=2)], count * 0.1)
    silent = watch.look([at(9, pid=1), at(0, START, pid=2)], 20)
    assert [entry.beat.pid for entry in silent] == [1]
    assert "rank 0 (pid 1) stands still in step at step 9 for 19 s (allowed: 2 s)" in str(silent[0])
    assert not watch.look([at(10, "checkpoint", pid=1)], 21)
    assert not watch.look([at(10, "checkpoint", pid=1)], 60)
    alive.clear()
    assert not watch.look([at(10, "checkpoint", pid=1)], 600)


def test_beats_are_read_by_whoever_watches_and_cost_nothing_where_nobody_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    beat(STEP, 1)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    beat(START)
    assert [(each.rank, each.phase, each.step) for each in read_beats(tmp_path)] == [(3, START, None)]
    beat(STEP, 12)
    (tmp_path / "99").touch()  # a foreign script's
    first, foreign = sorted(read_beats(tmp_path), key=lambda each: each.pid != os.getpid())
    assert (first.pid, first.phase, first.step, first.count) == (os.getpid(), STEP, 12, 2)
    os.utime(tmp_path / "99", ns=(5, foreign.count + 1))
    assert {each.pid: each.count for each in read_beats(tmp_path)}[99] == foreign.count + 1
    rest()
    assert [each.pid for each in read_beats(tmp_path)] == [99]
