"""Training: the same whatever the ranks and the interruptions."""

from __future__ import annotations

import dataclasses
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from phenomhpc.config import PretrainConfig, dump, load_run_config
from phenomhpc.errors import FencedError, KilledError, StopRequested, UsageError, WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.pretrain import data_words
from phenomhpc.models.checkpoint import damage, newest_committed, read_meta, step_folder
from phenomhpc.nodes.interface import interface_of
from phenomhpc.progress import Stage, silent
from phenomhpc.runs import (
    RunPaths,
    TaskContext,
    Unit,
    claim_start,
    create_run,
    open_attempt,
    read_events,
    write_manifest,
)
from phenomhpc.train.launch import cores_here, launch
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import SCHEMA, read_metrics
from tests.unit.train_store import convert, settings, write_plate

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def new_run(config: PretrainConfig) -> RunPaths:
    return create_run(Path(config.runs), "pretrain", dump(config), {})


def start(paths: RunPaths, *, at_step: dict[int, Callable[[TaskContext], None]] | None = None) -> TaskContext:
    """A new attempt's context; `at_step` acts right after that many steps, as another process could."""
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0)
    ctx = TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent())
    if at_step:
        ctx = dataclasses.replace(ctx, progress=Acting(ctx, at_step))
    return ctx


class Acting(type(silent())):  # type: ignore[misc]
    """Shows nothing; acts after given numbers of steps."""

    def __init__(self, ctx: TaskContext, at_step: dict[int, Callable[[TaskContext], None]]) -> None:
        self.ctx, self.at_step, self.done = ctx, at_step, 0

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return self  # type: ignore[no-any-return]

    def advance(self, n: int = 1, **figures: float) -> None:
        self.done += n
        if self.done in self.at_step:
            self.at_step[self.done](self.ctx)


def ask_to_stop(ctx: TaskContext) -> None:
    ctx.paths.attempt(ctx.attempt).stop_file(ctx.task).touch()


def wait_for(step: int) -> Callable[[TaskContext], None]:
    """Return when the checkpoint of this step, which is written while training goes on, is committed."""

    def wait(ctx: TaskContext) -> None:
        deadline = time.monotonic() + 60
        while damage(step_folder(ctx.paths.checkpoints, step)) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


def losses(paths: RunPaths) -> np.ndarray:
    metrics = read_metrics(paths.metrics)
    assert metrics["step"].to_pylist() == list(range(metrics.num_rows))
    return metrics["loss"].to_numpy()


def final(paths: RunPaths) -> tuple[int, str]:
    folder = newest_committed(paths.checkpoints, pytest.fail)
    assert folder is not None
    meta = read_meta(folder)
    return meta.step, meta.weights


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The run of one rank, from beginning to end."""
    config = settings(store, tmp_path_factory.mktemp("undisturbed"))
    paths = new_run(config)
    train(config, start(paths))
    return paths


def test_metrics_hold_every_step_with_the_columns_of_the_design(undisturbed: RunPaths) -> None:
    metrics = read_metrics(undisturbed.metrics)
    assert metrics.schema == SCHEMA
    assert metrics["first_index"].to_pylist() == list(range(0, 12 * 8, 8))
    assert len(set(metrics["index_digest"].to_pylist())) == 12
    for name in ("loss", "loss_mse", "loss_fourier", "lr", "grad_norm", "crops_per_s"):
        values = metrics[name].to_numpy()
        assert np.isfinite(values).all()
        assert (values > 0).all()
    combined = 0.99 * metrics["loss_mse"].to_numpy() + 0.01 * metrics["loss_fourier"].to_numpy()
    np.testing.assert_allclose(metrics["loss"].to_numpy(), combined, rtol=1e-6)
    assert all(0 < share <= 1 for share in metrics["goodput"].to_pylist())
    assert metrics["tflops"].null_count == 0 and metrics["mfu"].null_count == 12  # a CPU's peak is not known


def test_metrics_say_what_the_crops_asked_of_the_disk(undisturbed: RunPaths, four_ranks: RunPaths) -> None:
    crop_bytes = 2 * 32 * 32
    sums = []
    for paths in (undisturbed, four_ranks):
        metrics = read_metrics(paths.metrics)
        of = {name: metrics[name].to_numpy() for name in metrics.column_names if name not in ("time", "index_digest")}
        np.testing.assert_allclose(of["data_mb_s"] * 1e6, of["crops_per_s"] * crop_bytes)
        seconds = 8 / of["crops_per_s"]
        read = of["read_mb_s"] * 1e6 * seconds
        np.testing.assert_allclose(of["read_amplification"], read / (8 * crop_bytes))
        assert not of["cache_hit_share"].any()
        sums.append((np.rint(read), np.rint(of["reads_s"] * seconds)))
        # The store is one shard: each rank opens it in its first step.
        assert np.rint(of["opens_s"] * seconds).tolist() == [1 if paths is undisturbed else 4] + [0] * 11
    # The same crops on one rank and on four, so the same bytes and requests.
    assert np.array_equal(sums[0], sums[1]) and (sums[0][1] >= 8).all()


class Told(type(silent())):  # type: ignore[misc]
    """Shows nothing; keeps the figures it was given."""

    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return self  # type: ignore[no-any-return]

    def advance(self, n: int = 1, **figures: float) -> None:
        self.figures += [figures] if figures else []


@pytest.mark.parametrize("cached", [False, True])
def test_the_live_line_says_how_the_crops_come(store: Path, tmp_path: Path, cached: bool) -> None:
    cache = str(tmp_path / "nvme") if cached else None
    paths = new_run(settings(store, tmp_path, optim__steps=3, log_every_steps=1, data__cache=cache))
    told = Told()
    train(load_run_config(paths.run_yaml), dataclasses.replace(start(paths), progress=told))  # type: ignore[arg-type]
    metrics = read_metrics(paths.metrics)
    assert len(told.figures) == 3
    for figures, row in zip(told.figures, metrics.to_pylist(), strict=True):
        assert figures["mb_per_s"] == pytest.approx(row["data_mb_s"])
        assert figures["data_wait"] == pytest.approx(row["data_wait"] * row["crops_per_s"] / 8)
        assert figures.get("cache_hits") == (row["cache_hit_share"] if cached else None)


def test_metrics_of_an_older_version_are_read_as_null(undisturbed: RunPaths, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    new = read_metrics(undisturbed.metrics)
    pq.write_table(new.slice(0, 5).drop_columns(["data_mb_s", "read_amplification"]), tmp_path / "001-00000004.parquet")
    pq.write_table(new.slice(5), tmp_path / "002-00000011.parquet")
    mixed = read_metrics(tmp_path)
    assert mixed.schema == SCHEMA and mixed["loss"].to_pylist() == new["loss"].to_pylist()
    assert mixed["data_mb_s"].to_pylist() == [None] * 5 + new["data_mb_s"].to_pylist()[5:]
    words = data_words(mixed, 8)
    assert words.split("; ")[0].endswith("% of a step waits for crops") and "MB/s of pixels; " in words
    assert data_words(mixed.slice(0, 5), 8).count(";") == 0 and "cache" not in words


def test_checkpoints_come_at_their_cadence_and_at_the_end(undisturbed: RunPaths) -> None:
    steps = [event["step"] for event in read_events(undisturbed) if event["event"] == "checkpoint"]
    assert steps == [5, 10, 12]
    assert sorted(path.name for path in undisturbed.checkpoints.iterdir()) == ["step-00000010", "step-00000012"]


def test_a_stopped_run_commits_and_goes_on_bit_for_bit(store: Path, tmp_path: Path, undisturbed: RunPaths) -> None:
    config = settings(store, tmp_path)
    paths = new_run(config)
    with pytest.raises(StopRequested, match="stopped as asked after step 8"):
        train(config, start(paths, at_step={7: ask_to_stop}))
    assert final(paths)[0] == 8
    result = train(config, start(paths))
    assert result.steps == 12
    assert np.array_equal(losses(paths), losses(undisturbed))
    assert final(paths) == final(undisturbed)
    resumed = [event["step"] for event in read_events(paths) if event["event"] == "resumed"]
    assert resumed == [8]


def test_a_finished_run_has_nothing_left_to_do(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, optim__steps=2)
    paths = new_run(config)
    first = train(config, start(paths))
    again = train(config, start(paths))
    assert (again.steps, again.checkpoint, again.loss) == (2, first.checkpoint, None)


def test_a_store_that_grew_does_not_change_the_order_of_a_run_begun(store: Path, tmp_path: Path) -> None:
    write_plate(tmp_path / "raw")
    own = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    config = settings(own, tmp_path / "runs")
    paths, whole = new_run(config), new_run(config)
    train(config, start(whole))
    with pytest.raises(StopRequested):
        train(config, start(paths, at_step={5: ask_to_stop}))
    write_plate(tmp_path / "raw", seed=1, name="Plate2")
    convert(tmp_path / "raw", own, tmp_path / "runs")
    train(config, start(paths))
    assert np.array_equal(losses(paths), losses(whole))


def test_a_replaced_attempt_leaves_without_a_further_checkpoint(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path)
    paths = new_run(config)
    with pytest.raises(FencedError):
        train(config, start(paths, at_step={5: wait_for(5), 7: lambda ctx: void(open_attempt(ctx.paths))}))
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step-00000005"]
    assert read_metrics(paths.metrics).num_rows == 5


def void(value: object) -> None:
    del value


def test_adamw_with_clipping_resumes_bit_for_bit_too(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, optim__name="adamw", optim__clip_grad_norm=0.1)
    paths, whole = new_run(config), new_run(config)
    train(config, start(whole))
    with pytest.raises(StopRequested):
        train(config, start(paths, at_step={6: ask_to_stop}))
    train(config, start(paths))
    assert np.array_equal(losses(paths), losses(whole))
    assert final(paths) == final(whole)


TASK = """
import sys
import threading
from phenomhpc.jobs.task import run_task
if __name__ == "__main__":
    root, task, *hosts = sys.argv[1:]
    sys.exit(run_task(root, 1, int(task), hosts=tuple(hosts), job_id=root))
"""


def open_gang(paths: RunPaths) -> None:
    """The first attempt of a gang, as it is opened here and on Slurm."""
    attempt, token = open_attempt(paths)
    write_manifest(paths.attempt(attempt).manifest, [Unit(unit_id="gang", kind="gang")], token=token)


def node(paths: RunPaths, folder: Path, task: int, hosts: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """One node's task of the first attempt, in a process group of its own."""
    program = folder / "task.py"
    program.write_text(TASK)
    command = [sys.executable, str(program), str(paths.root), str(task), *hosts]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, start_new_session=True)


@pytest.fixture(scope="module")
def two_ranks(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Two ranks, asked to stop before their first step; the stop comes through the agent.  Then to the end."""
    config = settings(store, tmp_path_factory.mktemp("two"), ranks_per_node=2)
    paths = new_run(config)
    ctx = start(paths)
    ask_to_stop(ctx)
    with pytest.raises(StopRequested, match="stopped as asked after step 1"):
        launch(config, ctx)
    result = launch(config, start(paths))
    assert (result.steps, result.checkpoint.name) == (12, "step-00000012")
    return paths


@pytest.fixture(scope="module")
def four_ranks(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    config = settings(store, tmp_path_factory.mktemp("four"), ranks_per_node=4)
    paths = new_run(config)
    launch(config, start(paths))
    return paths


def test_one_two_and_four_ranks_see_the_same_crops_and_agree(
    undisturbed: RunPaths, two_ranks: RunPaths, four_ranks: RunPaths
) -> None:
    digests = read_metrics(undisturbed.metrics)["index_digest"].to_pylist()
    for other in (two_ranks, four_ranks):
        assert read_metrics(other.metrics)["index_digest"].to_pylist() == digests
        np.testing.assert_allclose(losses(other), losses(undisturbed), rtol=1e-5)
    np.testing.assert_allclose(
        read_metrics(four_ranks.metrics)["grad_norm"].to_numpy()[:1],
        read_metrics(undisturbed.metrics)["grad_norm"].to_numpy()[:1],
        rtol=1e-5,
    )


def test_a_checkpoint_of_four_ranks_goes_on_with_one_two_and_three(
    store: Path, tmp_path: Path, four_ranks: RunPaths
) -> None:
    """From step 12, where four ranks have left it, three steps further."""
    digests, further = [], []
    for world in (1, 2, 3):
        config = settings(store, tmp_path, optim__steps=15, ranks_per_node=world)
        paths = RunPaths(tmp_path / str(world))
        shutil.copytree(four_ranks.root, paths.root)
        launch(config, start(paths))
        rows = read_metrics(paths.metrics)
        assert rows["first_index"].to_pylist() == list(range(0, 15 * 8, 8))
        digests.append(rows["index_digest"].to_pylist())
        further.append(losses(paths)[12:])
        folder = newest_committed(paths.checkpoints, pytest.fail)
        assert folder is not None and read_meta(folder).world_size == world
    calm = settings(store, tmp_path, optim__steps=15)  # never interrupted, and on one rank from the beginning
    whole = new_run(calm)
    train(calm, start(whole))
    assert len(set(digests[0])) == 15
    assert [read_metrics(whole.metrics)["index_digest"].to_pylist()] * 3 == digests
    for others in further[1:]:
        np.testing.assert_allclose(others, further[0], rtol=1e-5)


def test_two_nodes_compute_what_two_ranks_of_one_do(store: Path, tmp_path: Path, two_ranks: RunPaths) -> None:
    """Two agents that meet over TCP, here both on this machine's loopback."""
    config = settings(store, tmp_path, ranks_per_node=1)
    paths = new_run(config)
    open_gang(paths)
    nodes = [node(paths, tmp_path, task, ("127.0.0.1", "127.0.0.1")) for task in (1, 0)]
    try:
        assert [process.wait(90) for process in nodes] == [0, 0]
    finally:
        for process in nodes:
            process.kill()
    assert np.array_equal(losses(paths), losses(two_ranks))
    assert final(paths) == final(two_ranks)
    finished = [event["task"] for event in read_events(paths) if event["event"] == "finished"]
    assert sorted(finished) == [0, 1]


def test_a_rank_that_fails_is_named_with_its_reason(store: Path, tmp_path: Path) -> None:
    """A truncated shard is found by the ranks, after the start; its one line comes back through the agent."""
    write_plate(tmp_path / "raw")
    own = convert(tmp_path / "raw", tmp_path / "store", tmp_path / "runs")
    shard = max((p for p in own.rglob("*") if p.is_file() and "/c/" in str(p)), key=lambda p: p.stat().st_size)
    os.truncate(shard, 1000)
    config = settings(own, tmp_path / "runs", ranks_per_node=2)
    with pytest.raises(WorkError, match=r"rank \d: .*plate EXP-1__Plate1, shard 0") as caught:
        launch(config, start(new_run(config)))
    assert "\n" not in str(caught.value)


def test_ranks_whose_origin_is_killed_count_as_killed(store: Path, tmp_path: Path) -> None:
    """The process that ranks are forked from, which alone is told how they end: nobody's code is to blame."""
    config = settings(store, tmp_path, ranks_per_node=2, optim__steps=2000, checkpoint__every_steps=2000)
    paths = new_run(config)

    def kill_origin() -> None:
        while not any(paths.metrics.glob("*")):
            if ended.wait(0.05):
                return
        os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]

    ended = threading.Event()
    killer = threading.Thread(target=kill_origin)
    killer.start()
    try:
        with pytest.raises(KilledError, match=r"rank \d: the process that starts this node's ranks was killed"):
            launch(config, start(paths))
    finally:
        ended.set()
        killer.join()


def test_kill_9_of_a_run_of_three_ranks_loses_no_bit(store: Path, tmp_path: Path) -> None:
    """Three ranks, so that the order in which gradients are added matters; AdamW, since Lion's sign could hide it."""
    config = settings(store, tmp_path, ranks_per_node=3, optim__steps=40, optim__global_batch=9, optim__name="adamw")
    whole, killed = new_run(config), new_run(config)
    launch(config, start(whole))
    open_gang(killed)
    task = node(killed, tmp_path, 0, ("127.0.0.1",))
    deadline = time.monotonic() + 60
    while not any(path.parent.name >= "step-00000010" for path in killed.checkpoints.glob("step-*/COMMITTED")):
        assert task.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(task.pid, signal.SIGKILL)
    task.wait()
    reached = newest_committed(killed.checkpoints, lambda text: None)
    assert reached is not None
    assert read_meta(reached).step < 40
    launch(config, start(killed))
    assert np.array_equal(losses(killed), losses(whole))
    assert final(killed) == final(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": ["/nowhere"]}, "store /nowhere: does not exist"),
        ({"store": []}, "store: none is given; name one or more"),
        ({"precision": "fp16"}, "precision=fp16: for embedding only"),
        ({"model__crop_px": 128}, "model.crop_px=128: the smallest field has 72x72 pixels"),
        ({"model__mask_ratio": 0.99}, "model.mask_ratio=0.99 of 16 patches leaves 0 visible"),
        ({"data__where": "sharpness > 0.2"}, "sharpness: no such column"),
        ({"snapshot": "feed"}, "snapshot feed is not there"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_made(
    store: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = settings(store, tmp_path / "runs", **changes)
    with pytest.raises(UsageError, match=message) as caught:
        run_here(config, command=["pretrain"], progress=silent())
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "runs").iterdir())


def test_a_run_resumed_with_another_architecture_is_refused(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, optim__steps=2)
    paths = new_run(config)
    train(config, start(paths))
    wider = settings(store, tmp_path, optim__steps=4, model__dim=64)
    with pytest.raises(UsageError, match=r"model\.dim is 32 there and 64 here"):
        train(wider, start(paths))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, device="cuda")
    with pytest.raises(UsageError, match="device=cuda: torch sees no GPU here"):
        train(config, start(new_run(config)))


def test_the_job_leaves_pictures_and_a_page_and_the_loss_falls(store: Path, tmp_path: Path) -> None:
    config = settings(
        store, tmp_path, optim__steps=60, optim__name="adamw", optim__peak_lr=3e-3, checkpoint__every_steps=50
    )
    paths, summary = run_here(config, command=["pretrain"], progress=silent())
    with np.load(paths.reconstructions, allow_pickle=False) as images:
        original, masked, reconstructed = (images[name] for name in ("original", "masked", "reconstructed"))
    assert original.shape == masked.shape == reconstructed.shape == (6, 2, 32, 32)
    hidden = (masked == 0).all(axis=1)
    assert hidden.mean() == pytest.approx(0.75)
    assert np.array_equal(np.where(hidden[:, None], 0, original), masked)
    assert paths.reconstructions.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = paths.report.read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert summary.report == str(paths.report)
    values = losses(paths)
    assert values[-10:].mean() < 0.9 * values[:10].mean()


def test_a_launch_leaves_the_environment_as_it_was(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits a job next, from this process, must not send it to this run's network interface."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    before = dict(os.environ)
    config = settings(store, tmp_path, ranks_per_node=2, optim__steps=1)
    launch(config, start(new_run(config)))
    assert dict(os.environ) == before


def test_a_task_that_slurm_does_not_bind_uses_no_more_cores_than_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = len(os.sched_getaffinity(0))
    for granted, cores in ((None, usable), ("1", 1), (str(usable + 8), usable), ("odd", usable)):
        if granted is None:
            monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
        else:
            monkeypatch.setenv("SLURM_CPUS_ON_NODE", granted)
        assert cores_here() == cores


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
