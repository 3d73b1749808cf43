"""Batches through DALI: pixel for pixel and figure for figure those of the plain path; one clear sentence without DALI."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from phenomhpc.config import PretrainConfig, dump
from phenomhpc.crops import Loader, Sampler, StepBatch, flip_target
from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.dali import DaliLoader, Flipper, ReadyBatch, require_dali
from phenomhpc.errors import UsageError
from phenomhpc.jobs.preflight import prepare
from phenomhpc.jobs.pretrain import plan
from phenomhpc.models.standardise import STANDARDISE_EPS, standardise
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, TaskContext, claim_start, create_run, open_attempt
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.seal import seal
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.crop_store import add_plate, new_store, pixels_of
from tests.unit.train_store import convert, settings, write_plate

with_dali = pytest.mark.skipif(
    importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None,
    reason="nvidia.dali is absent (extra gpu)",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CROP, CHANNELS, PATCHES, BATCH = 16, 2, 4, 12
CPU = torch.device("cpu")
SCALE = {"uint8": np.full(3, 255, np.float32), "uint16": np.array([900, 5_000, 41_000], np.float32)}


def samples(dtype: str) -> NDArray[Any]:
    """(40, 3, 24, 24): noise over the whole range, dim, flat, bright with a little noise, and empty crops, eight of each."""
    rng = np.random.default_rng(5)
    top = int(np.iinfo(dtype).max)
    parts = [rng.integers(low, high, (8, 3, 24, 24)) for low, high in ((0, top + 1), (0, 4), (top - 9, top + 1))]
    return np.concatenate([*parts, np.full((8, 3, 24, 24), top - 3), np.zeros((8, 3, 24, 24), int)]).astype(dtype)


def turned(pixels: NDArray[Any], flip: NDArray[np.uint8]) -> NDArray[Any]:
    out = np.empty_like(pixels)
    for row, code in enumerate(flip.tolist()):
        flip_target(out[row], code)[...] = pixels[row]
    return out


def assert_standardised(ours: torch.Tensor, pixels: NDArray[Any], scale: NDArray[np.float32]) -> None:
    """Equal to the plain path but for the rounding of both.

    Each may err by two units in the last place of the largest scaled pixel, in the pixel and in the mean, which the division
    by the deviation magnifies; and by as much of the result itself.
    """
    plain = standardise(torch.from_numpy(pixels), torch.from_numpy(scale)).numpy()
    scaled = pixels / scale.astype(np.float64)[:, None, None]
    deviation = np.sqrt(scaled.var((2, 3), keepdims=True) + STANDARDISE_EPS)
    unit = 2.0**-23
    allowed = 4 * unit * scaled.max((2, 3), keepdims=True) / deviation + 4 * unit * np.abs(plain)
    assert ours.dtype == torch.float32 and (np.abs(ours.numpy() - plain) <= allowed).all()


@with_dali
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_every_flip_moves_the_very_pixels_and_crops_are_standardised_alike(dtype: str, where: str) -> None:
    pixels, flip = samples(dtype), np.tile(np.arange(8, dtype=np.uint8), 5)
    flipper = Flipper(SCALE[dtype], torch.device(where), batch=len(pixels))
    made = flipper(pixels, flip)
    assert {tensor.device.type for tensor in made} == {where}
    flipped, standardised = (tensor.cpu() for tensor in made)
    expected = turned(pixels, flip)
    assert flipped.numpy().dtype == pixels.dtype and np.array_equal(flipped.numpy(), expected)
    assert_standardised(standardised, expected, SCALE[dtype])
    assert not standardised[-8:].any()  # what pads a batch stays empty
    # Where the plain path's roundings are not magnified, none is larger than 2^-20.
    plain = standardise(torch.from_numpy(expected), torch.from_numpy(SCALE[dtype]))
    assert (standardised[:8] - plain[:8]).abs().max() <= 2.0**-20
    assert not torch.equal(standardised[1], standardised[2])
    flipper.close()


@with_dali
def test_tensors_are_the_callers_and_pixels_free_to_be_overwritten() -> None:
    pixels, flip = samples("uint8"), np.zeros(40, np.uint8)
    flipper = Flipper(SCALE["uint8"], CPU, batch=40)
    kept = [flipper(pixels, flip)]
    copies = [tensor.clone() for tensor in kept[0]]
    for value in range(5):
        pixels[...] = value
        kept.append(flipper(pixels, flip))
    flipper.close()
    gc.collect()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept[0], copies, strict=True))
    assert [int(flipped.max()) for flipped, _ in kept[1:]] == list(range(5))


@pytest.fixture(scope="module", params=["uint8", "uint16"])
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = new_store(tmp_path_factory.mktemp("store"), dtype=request.param)
    for seed, plate in enumerate(("P1", "P2")):
        add_plate(store, plate, pixels_of(seed, 4, CHANNELS, 40, 33, request.param))
    return seal(store, silent())


@pytest.fixture
def reader(snapshot: Snapshot) -> Iterator[ShardReader]:
    with ShardReader(snapshot.store, snapshot) as opened:
        yield opened


def loader_of(reader: Any, snapshot: Snapshot, **more: Any) -> Loader:
    given: dict[str, Any] = {"global_batch": BATCH, "micro_batch": 5, "num_patches": PATCHES} | more
    sampler = Sampler(snapshot.table, seed=3, crop_px=CROP)
    return Loader(reader, sampler, num_channels=CHANNELS, dtype=snapshot.dtype, **given)


def steps_of(reader: Any, snapshot: Snapshot, count: int, *, threads: int = 1, **more: Any) -> list[StepBatch]:
    """Steps through DALI; their `pixels` are gone, the tensors stay."""
    source = Corpus(snapshots=(snapshot,)).crops_of("keep") if more.get("workers") else reader
    with (
        loader_of(source, snapshot, defer_flips=True, **more) as loader,
        DaliLoader(loader, snapshot.scale, CPU, threads=threads) as ready,
    ):
        return [next(ready) for _ in range(count)]


def tensors_of(steps: list[StepBatch]) -> list[torch.Tensor]:
    return [batch.standardised for step in steps for batch in step.micro if isinstance(batch, ReadyBatch)]


@with_dali
@pytest.mark.parametrize(("rank", "world", "workers"), [(0, 1, 0), (1, 2, 0), (2, 5, 0), (0, 1, 2)])
def test_steps_are_those_of_the_plain_path(
    reader: ShardReader, snapshot: Snapshot, rank: int, world: int, workers: int
) -> None:
    ready = steps_of(reader, snapshot, 4, rank=rank, world=world, workers=workers)
    with loader_of(reader, snapshot, rank=rank, world=world) as plain:
        for ours in ready:
            step = next(plain)
            assert (ours.step, ours.first_index, ours.index_digest) == (step.step, step.first_index, step.index_digest)
            for made, batch in zip(ours.micro, step.micro, strict=True):
                for name in ("index", "weight", "mask_noise", "drop_key"):
                    assert np.array_equal(getattr(made, name), getattr(batch, name)), name
                assert isinstance(made, ReadyBatch) and made.standardised.isfinite().all()
                assert_standardised(made.standardised, np.array(batch.pixels), snapshot.scale)


@with_dali
def test_a_restart_goes_on_with_the_same_bits_and_threads_change_none(reader: ShardReader, snapshot: Snapshot) -> None:
    whole = tensors_of(steps_of(reader, snapshot, 6))
    assert len(whole) == 18
    for later in (
        steps_of(reader, snapshot, 3, start_step=3),
        steps_of(reader, snapshot, 3, start_step=3, threads=3, workers=2),
    ):
        assert all(torch.equal(one, other) for one, other in zip(tensors_of(later), whole[9:], strict=True))


def native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@with_dali
def test_closing_leaves_no_thread(reader: ShardReader, snapshot: Snapshot) -> None:
    steps_of(reader, snapshot, 1)  # what DALI starts once for the process
    before = native_threads()
    with loader_of(reader, snapshot, defer_flips=True) as loader:
        with DaliLoader(loader, snapshot.scale, CPU, threads=3) as ready:
            next(ready)
            assert native_threads() > before + 2
        assert native_threads() == before


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def losses(config: PretrainConfig) -> NDArray[np.float64]:
    paths = create_run(Path(config.runs), "pretrain", dump(config), {})
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0)
    train(config, TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent()))
    found: NDArray[np.float64] = read_metrics(paths.metrics)["loss"].to_numpy()
    return found


@with_dali
def test_a_training_has_the_losses_of_the_plain_one(store: Path, tmp_path: Path) -> None:
    plain = losses(settings(store, tmp_path / "plain"))
    ready = losses(settings(store, tmp_path / "dali", data__backend="dali", data__workers=1))
    assert len(plain) == 12 and plain[-1] != plain[0]
    np.testing.assert_allclose(ready, plain, rtol=1e-5)


def test_without_dali_one_sentence_says_what_to_do(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    config = settings(store, tmp_path, data__backend="dali")
    sentence = r"^data\.backend=dali: NVIDIA DALI is not installed; pip install 'phenomhpc\[gpu\]', or give data\.backend=plain$"
    run = RunPaths(tmp_path / "r")
    for asked in (
        lambda: plan(config, run),
        lambda: prepare(config, None, run, light=True),
        lambda: prepare(config, None, run),
        lambda: Flipper(SCALE["uint8"], CPU, batch=1),
    ):
        with pytest.raises(UsageError, match=sentence):
            asked()
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(UsageError, match=sentence):
        require_dali()


def test_a_container_brings_its_own_dali(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    config = settings(store, tmp_path, data__backend="dali", cluster__container="docker://x/y")
    assert plan(config, RunPaths(tmp_path / "r")).num_nodes == 1
