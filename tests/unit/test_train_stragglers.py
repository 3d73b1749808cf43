"""Stragglers: found among real ranks of which one is made slow, named, and told of by status and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.config.training import FaultsConfig
from phenomhpc.jobs.alarms import alarms_of
from phenomhpc.jobs.status import run_status
from phenomhpc.jobs.why import why
from phenomhpc.runs import RunPaths, read_events
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.stragglers import COMPUTE, DATA, Slow, Stragglers, lost, slow_ranks
from tests.unit.rank_processes import train_by_ranks
from tests.unit.test_train_loop import new_run, start, store
from tests.unit.train_store import settings

__all__ = ["store"]


def told(paths: RunPaths, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(paths) if event["event"] == name]


# The second rank takes 0.1 s more for each call of one method.
SLOW = """
import importlib, time
if os.environ["RANK"] == "1":
    owner = getattr(importlib.import_module({module!r}), {kind!r})
    usual = getattr(owner, {method!r})
    def slow(*args):
        time.sleep(0.1)
        return usual(*args)
    setattr(owner, {method!r}, slow)
"""


@pytest.mark.parametrize(
    ("slow", "part"),
    [
        ("phenomhpc.crops.mending:MendingReader:read", DATA),
        ("phenomhpc.models.vit_mae:VitEncoderMae:encode_visible", COMPUTE),
    ],
)
def test_a_slow_rank_is_named_and_what_it_is_slow_in(store: Path, tmp_path: Path, slow: str, part: str) -> None:
    paths = new_run(settings(store, tmp_path, optim__steps=20, faults__straggler_share=0.5))
    module, kind, method = slow.split(":")
    train_by_ranks(paths, start(paths), SLOW.format(module=module, kind=kind, method=method))
    (event,) = told(paths, "straggler")
    assert (event["rank"], event["part"]) == (1, part) and event["node"] and event["share"] > 0.5
    # Four crops of each step: reading each takes 0.1 s more, or two micro-batches do, the last of which is not looked at whole.
    assert 0.08 < event["seconds"] < 4
    rows = read_metrics(paths.metrics)
    assert np.median(rows["straggler_share"].to_numpy()) > 0.1
    assert rows["slowest_rank"].to_pylist().count(1) > 15
    (line,) = run_status(paths).alarms
    assert line.startswith(f"straggler: rank 1 on {event['node']} is slower than the others by ")
    assert why(paths).alarms == (line,)


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
