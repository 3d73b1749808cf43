"""Saving beside the training: the same files, one at a time, failures that come out, and a disk without room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from phenomhpc.errors import WorkError
from phenomhpc.models.checkpoint import META, damage, newest_committed, step_folder
from phenomhpc.runs import TaskContext, read_events
from phenomhpc.train import checkpoints as module
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.retention import note_scores
from phenomhpc.train.saving import SharedPlan
from tests.unit.test_convert_disk import MOUNTS
from tests.unit.test_train_checkpoints import assert_same, ctx, of, state_after

__all__ = ["ctx"]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but DCP's index, a pickle that names the folder and a random id."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".distcp" or path.name == META}


def test_what_is_saved_is_the_state_at_the_time_bit_for_bit_whatever_training_does_meanwhile(
    ctx: TaskContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = contents(of(ctx, background=False).save(state_after(10)))
    may_write = threading.Event()
    real = module.write_share
    monkeypatch.setattr(module, "write_share", lambda *args: may_write.wait(60) and real(*args))
    checkpoints, state = of(ctx), state_after(10)
    checkpoints.begin(state)
    state.step = 11
    for tensor in state.tensors().values():
        tensor.zero_()
    may_write.set()
    folder = checkpoints.finish()
    assert folder == step_folder(ctx.paths.checkpoints, 10) and len(plain) == 2
    assert contents(folder) == plain
    resumed = state_after(0)
    of(ctx).resume(resumed, pytest.fail)
    assert_same(resumed, 10)


def test_one_save_is_under_way_and_the_next_waits_and_says_so(
    ctx: TaskContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(ctx.progress), "say", lambda self, text: said.append(text))
    may_write = threading.Event()
    real = module.write_share
    monkeypatch.setattr(module, "write_share", lambda *args: may_write.wait(60) and real(*args))
    checkpoints = of(ctx)
    checkpoints.begin(state_after(10))
    assert said == [] and newest_committed(ctx.paths.checkpoints, said.append) is None
    threading.Timer(0.2, may_write.set).start()
    checkpoints.begin(state_after(20))
    assert damage(step_folder(ctx.paths.checkpoints, 10)) is None
    checkpoints.finish()
    assert len(said) == 1
    assert (
        said[0].startswith("checkpoint of step 20: waits for that of step 10") and "checkpoint.every_steps" in said[0]
    )
    assert damage(step_folder(ctx.paths.checkpoints, 20)) is None


@pytest.mark.parametrize("background", [True, False])
def test_what_fails_beside_the_training_comes_out_as_one_line(
    ctx: TaskContext, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error", "x.distcp")

    checkpoints = of(ctx, background=background)
    checkpoints.save(state_after(10))
    monkeypatch.setattr(module, "write_share", fail)
    with pytest.raises(WorkError, match=r"step-00000020: cannot be written \(.*Input/output error") as caught:
        checkpoints.begin(state_after(20))
        assert checkpoints._flight is not None
        checkpoints._flight.join()
        assert checkpoints.failed
        checkpoints.wait()
    assert "\n" not in str(caught.value)
    assert [path.name for path in ctx.paths.checkpoints.iterdir()] == ["step-00000010"]


def test_leaving_with_an_error_finishes_what_is_under_way(ctx: TaskContext) -> None:
    checkpoints = of(ctx)
    with pytest.raises(KeyError), checkpoints:
        checkpoints.begin(state_after(10))
        raise KeyError
    assert damage(step_folder(ctx.paths.checkpoints, 10)) is None


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_tensor_is_written_by_one_rank_and_no_rank_writes_much_more_than_its_share(world: int) -> None:
    tensors = state_after(0).tensors()
    plan = SharedPlan.of(tensors, Ranks(rank=0, world=world, local_rank=0, device=torch.device("cpu")))
    shares = [plan.names(rank) for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    sizes = [sum(tensors[name].numel() for name in share) for share in shares]
    assert max(sizes) <= sum(sizes) / world + max(tensor.numel() for tensor in tensors.values())


def test_every_so_manieth_and_the_best_stay(ctx: TaskContext) -> None:
    checkpoints = of(ctx, keep=1, keep_every=40, keep_best="probe_accuracy")
    for step, probe in ((10, 0.2), (20, 0.7), (30, 0.6), (40, 0.1), (50, 0.3), (60, 0.4)):
        note_scores(ctx.paths.checkpoints, step, {"probe_accuracy": probe}, token="t")
        checkpoints.save(state_after(step))
    kept = sorted(path.name for path in ctx.paths.checkpoints.glob("step-*"))
    assert kept == ["step-00000020", "step-00000040", "step-00000060"]


FULL = """
import json, os, sys
from pathlib import Path
from phenomhpc.errors import PhenomError
from phenomhpc.models.checkpoint import newest_committed
from phenomhpc.runs import read_events
from phenomhpc.train.loop import train
from tests.unit.test_train_loop import new_run, start, wait_for
from tests.unit.train_store import settings

store, disk, relief = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
filler = disk / "filler"

def fill(ctx):
    wait_for(2)(ctx)
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass

config = settings(store, disk, checkpoint__every_steps=2, log_every_steps=1)
paths = new_run(config)
failure = None
try:
    train(config, start(paths, at_step={2: fill, relief: lambda ctx: filler.unlink()}))
except PhenomError as error:
    failure = f"{type(error).__name__}: {error}"
newest = newest_committed(paths.checkpoints)
print(json.dumps({
    "failure": failure, "newest": newest.name, "there": sorted(os.listdir(paths.checkpoints)),
    "alarms": [event["step"] for event in read_events(paths) if event["event"] == "alarm"],
}))
"""


@pytest.mark.parametrize("relief", [7, 99])
def test_a_full_disk_is_an_alarm_and_training_goes_on_until_the_last_step(tmp_path: Path, relief: int) -> None:
    if os.geteuid() or subprocess.run(MOUNTS, capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here (root is needed)")
    from tests.unit.train_store import convert, write_plate

    write_plate(tmp_path / "raw")
    store = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    disk, program = tmp_path / "disk", tmp_path / "full.py"
    disk.mkdir()
    program.write_text(FULL)
    mounted = f"mount -t tmpfs -o size=4m none {disk} && {sys.executable} {program} {store} {disk} {relief}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", mounted],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    if relief == 7:
        assert told["failure"] is None and told["newest"] == "step-00000012"
        assert told["there"] == ["step-00000010", "step-00000012"]
    else:
        assert told["failure"].startswith("DiskFullError: checkpoint ") and "No space left" in told["failure"]
        assert told["newest"] == "step-00000002" and told["there"] == ["step-00000002"]


def test_an_alarm_is_an_event_and_a_line(ctx: TaskContext, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(ctx.progress), "say", lambda self, text: said.append(text))

    def full(*args: object) -> None:
        raise OSError(122, "Disk quota exceeded", "x.distcp")  # what else a quota says needs a file system with one

    checkpoints = of(ctx)
    checkpoints.save(state_after(10))
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_share", full)
        checkpoints.begin(state_after(20))
        assert checkpoints.wait() == step_folder(ctx.paths.checkpoints, 10)
    assert len(said) == 1 and said[0].startswith("ALARM: checkpoint ") and "the newest is step-00000010" in said[0]
    alarms = [event for event in read_events(ctx.paths) if event["event"] == "alarm"]
    assert [(event["step"], event["what"]) for event in alarms] == [(20, "disk_full")]
    checkpoints.begin(state_after(30))
    assert checkpoints.finish() == step_folder(ctx.paths.checkpoints, 30)
