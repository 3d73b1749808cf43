"""Stragglers: found among real ranks of which one is made slow, named, and told of by status and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.config.models import FaultsConfig
from phenomhpc.jobs.alarms import alarms_of
from phenomhpc.jobs.status import run_status
from phenomhpc.jobs.why import why
from phenomhpc.nodes.interface import interface_of
from phenomhpc.runs import RunPaths, read_events
from phenomhpc.runs.heartbeat import ENVIRONMENT, read_beats
from phenomhpc.train.launch import launch
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.stragglers import COMPUTE, DATA, Slow, Stragglers, lost, slow_ranks
from tests.unit.test_train_loop import REPOSITORY, new_run, start, store
from tests.unit.test_train_mlflow import free_port
from tests.unit.train_store import settings

__all__ = ["store"]


# On a busy machine it takes this thread a while to come back: the rank stands still for much longer than that.
STOPPED_S = 0.25


class Hindered(threading.Thread):
    """Stops one rank's process and lets it go on, in turns: most of its time it stands still."""

    def __init__(self, beats: Path, rank: int) -> None:
        super().__init__(daemon=True)
        self.beats, self.rank, self.done = beats, rank, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.01):
            for beat in read_beats(self.beats):
                if beat.rank == self.rank and beat.step is not None:
                    self._send(beat.pid, signal.SIGSTOP)
                    self.done.wait(STOPPED_S)
                    self._send(beat.pid, signal.SIGCONT)

    def _send(self, pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            self.done.set()


def told(paths: RunPaths, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(paths) if event["event"] == name]


def test_a_rank_that_is_stopped_in_turns_is_named(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = tmp_path / "beats"
    beats.mkdir()
    monkeypatch.setenv(ENVIRONMENT, str(beats))
    config = settings(
        store, tmp_path, ranks_per_node=2, optim__steps=40, log_every_steps=5, faults__straggler_share=0.5
    )
    paths = new_run(config)
    hindered = Hindered(beats, rank=1)
    hindered.start()
    try:
        launch(config, start(paths))
    finally:
        hindered.done.set()
        hindered.join()
    event = told(paths, "straggler")[0]
    assert event["rank"] == 1 and event["node"] and event["share"] > 0.5 and event["seconds"] > 0
    assert event["part"] in (COMPUTE, DATA) and event["step"] >= 14
    assert not [other for other in told(paths, "straggler") if other["rank"] != 1]
    rows = read_metrics(paths.metrics)
    assert np.median(rows["straggler_share"].to_numpy()) > 0.1
    assert rows["slowest_rank"].to_pylist().count(1) > 25
    (line,) = run_status(paths).alarms
    assert line.startswith(f"straggler: rank 1 on {event['node']} is slower than the others by ")
    assert why(paths).alarms == (line,)


# One rank of two, of which the second reads its crops from a slow disk.
RANK = """
import os, sys, time
from pathlib import Path
from phenomhpc.config import load_run_config
from phenomhpc.crops.mending import MendingReader
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, TaskContext
from phenomhpc.train.loop import train
paths = RunPaths(Path(sys.argv[1]))
if os.environ["RANK"] == "1":
    read = MendingReader.read
    def slow(*args):
        time.sleep(0.1)
        return read(*args)
    MendingReader.read = slow
ctx = TaskContext(paths=paths, attempt=1, task=0, token=sys.argv[2], units=(), progress=silent())
train(load_run_config(paths.run_yaml), ctx)
"""


def test_a_rank_that_reads_slowly_is_told_from_one_that_computes_slowly(store: Path, tmp_path: Path) -> None:
    paths = new_run(settings(store, tmp_path, optim__steps=20, faults__straggler_share=0.5))
    ctx = start(paths)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    network = {"GLOO_SOCKET_IFNAME": str(interface_of("127.0.0.1")), "PYTHONPATH": str(REPOSITORY)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(paths.root), ctx.token],
            env={**os.environ, **world, **network, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    events = told(paths, "straggler")
    assert [(event["rank"], event["part"]) for event in events] == [(1, DATA)]
    # Four crops of each step, 0.1 s each.
    assert 0.3 < events[0]["seconds"] < 4


def times(*ranks: tuple[float, float]) -> Any:
    return np.array(ranks, np.float64)


def test_what_is_slow_is_measured_against_the_usual() -> None:
    assert slow_ranks(times((0.0, 1.0)), 0.25) == []
    assert slow_ranks(times((0.0, 1.0), (0.0, 1.2)), 0.25) == []
    (found,) = slow_ranks(times((0.0, 1.0), (0.1, 1.9)), 0.25)
    assert (found.rank, found.part) == (1, COMPUTE) and found.share == pytest.approx(1.0)
    (found,) = slow_ranks(times((0.1, 1.0), (0.9, 1.0), (0.1, 1.0), (0.1, 1.0)), 0.25)
    assert (found.rank, found.part) == (1, DATA) and found.seconds == pytest.approx(0.8)
    # A slow node of two: all of its ranks.
    assert [entry.rank for entry in slow_ranks(times(*[(0, 1.0)] * 4, *[(0, 2.0)] * 4), 0.25)] == [4, 5, 6, 7]
    # Times that differ anyway: nobody is out of the ordinary.
    spread = times(*[(0.0, 1 + 0.1 * number) for number in range(12)])
    assert slow_ranks(spread, 0.25) == []


@given(
    st.lists(st.floats(0.9, 1.1), min_size=3, max_size=40),
    st.integers(0, 39),
    st.floats(0.001, 1000),
    st.sampled_from([0, 1]),
)
def test_one_that_takes_three_times_as_long_is_found_in_any_unit(
    usual: Sequence[float], place: int, unit: float, part: int
) -> None:
    own = np.zeros((len(usual), 2))
    own[:, 1] = usual
    assert slow_ranks(own, 0.25) == []
    own[place % len(usual), part] += 2.0
    (found,) = slow_ranks(own * unit, 0.25)
    assert found.rank == place % len(usual) and found.part == (DATA, COMPUTE)[part]


def test_a_hiccup_is_no_straggler_and_the_end_is_told_too() -> None:
    watch = Stragglers(config=FaultsConfig(straggler_intervals=2), interval=1, nodes=("a", "b"), ctx=None)  # type: ignore[arg-type]
    slow = [Slow(rank=1, seconds=1.0, share=1.0, part=COMPUTE)]
    found = [watch.judge(entry) for entry in (slow, [], slow, slow, slow, [], slow, [], [], [], slow)]
    kinds = [[kind for kind, _ in entry] for entry in found]
    assert kinds == [[], [], [], ["straggler"], [], [], [], [], ["straggler_over"], [], []]


def test_the_share_lost_is_beyond_the_usual_one() -> None:
    assert lost([1.0], 2.0) == (None, None)
    assert lost([1.0, 1.5, 1.0], 2.0) == (pytest.approx(0.25), 1)


def event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": name, **fields}


def test_alarms_say_what_holds_now() -> None:
    full = event("alarm", step=20, what="disk_full", message="...")
    assert alarms_of([]) == []
    (line,) = alarms_of([event("checkpoint", step=10), full, event("alarm", step=30, what="disk_full")])
    assert line == "disk full: no checkpoint is saved since step 20, the newest is of step 10; free space"
    (line,) = alarms_of([full, event("checkpoint", step=30)])
    assert line == "disk full: no room for the checkpoint of step 20; that of step 30 was saved"
    (line,) = alarms_of([event("skipped", steps=[4], total=1), event("skipped", steps=[7, 8], total=3)])
    assert line == "no finite gradient in 3 step(s), which changed nothing; the last was step 8"
    spike = event("spike", steps=[33], losses=[9.0], samples=[[264, 272]])
    (line,) = alarms_of([spike])
    assert line == "loss leaped at step 33; there was no checkpoint to go back to"
    (line,) = alarms_of([spike, event("rollback", step=30, reached=35, skip_ledger=[[264, 272]])])
    assert line == "loss leaped at step 33; 1 rollback(s), the last from step 35 to 30; 8 samples are left out"
    (line,) = alarms_of([event("damaged", field="P/A01/1", by="P/A02/1", reason="crc32c differs")] * 2)
    assert line == "damaged: 1 field(s) are replaced by others: P/A01/1 (crc32c differs)"
    slow = event("straggler", rank=3, node="n17", share=0.42, seconds=0.12, part=COMPUTE, step=400)
    (line,) = alarms_of([event("started"), slow])
    assert line == (
        "straggler: rank 3 on n17 is slower than the others by 42% (0.12 s a step, most of it computing), seen at step 400"
    )
    assert alarms_of([slow, event("straggler_over", rank=3, node="n17", step=500)]) == []
    assert alarms_of([slow, event("started")]) == []
