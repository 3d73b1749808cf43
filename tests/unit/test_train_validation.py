"""Validation while training: it measures, and moves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phenomhpc.config import PretrainConfig
from phenomhpc.errors import FencedError, StopRequested, UsageError
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.pretrain import plan
from phenomhpc.models.checkpoint import load_encoder, newest_committed
from phenomhpc.models.standardise import standardise
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, open_attempt
from phenomhpc.train.data import CropSource
from phenomhpc.train.launch import launch
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.retention import read_scores
from phenomhpc.train.validation import read_validations
from tests.unit.test_train_loop import ask_to_stop, final, new_run, start, void
from tests.unit.train_store import convert, settings, write_plate

EVAL = {"data__holdout": {"wells": ["A05", "A06"]}, "eval__every_steps": 4, "eval__crops": 7, "eval__shown": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def watched(store: Path, runs: Path, **changes: Any) -> PretrainConfig:
    return settings(store, runs, **(EVAL | changes))


@pytest.fixture(scope="module")
def one_rank(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    config = watched(store, tmp_path_factory.mktemp("one"))
    paths = new_run(config)
    train(config, start(paths))
    return paths


def test_training_is_bit_for_bit_what_it_is_without(store: Path, tmp_path: Path, one_rank: RunPaths) -> None:
    plain = watched(store, tmp_path, eval__every_steps=None)
    without = new_run(plain)
    train(plain, start(without))
    assert final(without) == final(one_rank)
    assert read_metrics(without.metrics)["loss"].to_pylist() == read_metrics(one_rank.metrics)["loss"].to_pylist()
    assert not without.validation.exists()


def test_the_loss_is_that_of_the_held_out_crops_by_hand(store: Path, one_rank: RunPaths) -> None:
    rows = read_validations(one_rank.validation).to_pylist()
    assert [row["step"] for row in rows] == [0, 4, 8, 12]
    folder = newest_committed(one_rank.checkpoints, pytest.fail)
    assert folder is not None
    model, meta = load_encoder(folder)
    source = CropSource.open(watched(store, one_rank.root.parent))
    sampler = source.validation
    assert sampler is not None
    visits = sampler.visits(np.arange(7))
    held = {4, 5}
    assert {int(source.corpus.snapshots[0].table[number]["field"]) for number in visits.field_no} == held
    assert not visits.flip.any()
    losses = []
    with source.corpus.reader("keep") as reader, torch.no_grad():
        for row in range(7):
            pixels = np.zeros((1, 2, 32, 32), np.uint8)
            reader.read(int(visits.field_no[row]), int(visits.y[row, 0]), int(visits.x[row, 0]), pixels[0])
            noise = torch.from_numpy(sampler.mask_noise(visits.index[row], model.num_patches))
            output = model(
                standardise(torch.from_numpy(pixels), torch.tensor(meta.scale)), noise, torch.zeros(1).long()
            )
            losses.append([output.loss.item(), output.loss_mse.item(), output.loss_fourier.item()])
            if row < 2:
                with np.load(one_rank.validation_crops(12), allow_pickle=False) as shown:
                    assert shown["original"].shape == (2, 2, 32, 32)
                    hidden = shown["masked"][row] == 0
                    np.testing.assert_allclose(shown["reconstructed"][row][~hidden], shown["original"][row][~hidden])
                    drawn = model.reconstruct(standardise(torch.from_numpy(pixels), torch.tensor(meta.scale)), noise)
                    np.testing.assert_allclose(shown["reconstructed"][row], drawn.reconstructed[0], atol=1e-5)
    means = np.mean(losses, axis=0)
    np.testing.assert_allclose([rows[-1][name] for name in ("val_loss", "val_mse", "val_fourier")], means, rtol=1e-5)


def test_the_loss_does_not_depend_on_the_number_of_ranks(store: Path, tmp_path: Path, one_rank: RunPaths) -> None:
    """Three ranks, so that seven crops leave two of them with padding."""
    config = watched(store, tmp_path, ranks_per_node=3, optim__global_batch=9, eval__every_steps=12)
    paths = new_run(config)
    launch(config, start(paths))
    untrained = [read_validations(run.validation)["val_loss"][0].as_py() for run in (paths, one_rank)]
    assert untrained[0] == pytest.approx(untrained[1], rel=1e-6)
    assert read_validations(paths.validation)["step"].to_pylist() == [0, 12]


def test_crops_of_another_seed_are_the_same(store: Path, tmp_path: Path) -> None:
    both = [CropSource.open(watched(store, tmp_path, seed=seed)).validation for seed in (3, 4)]
    crops = [sampler.visits(np.arange(20)) for sampler in both if sampler is not None]
    assert all(np.array_equal(getattr(crops[0], name), getattr(crops[1], name)) for name in ("field_no", "y", "x"))


def test_a_stop_puts_a_validation_off_until_the_next_start(store: Path, tmp_path: Path, one_rank: RunPaths) -> None:
    config = watched(store, tmp_path)
    paths = new_run(config)
    with pytest.raises(StopRequested, match="after step 4"):
        train(config, start(paths, at_step={3: ask_to_stop}))
    assert read_validations(paths.validation)["step"].to_pylist() == [0]
    train(config, start(paths))
    for column in ("step", "val_loss"):
        assert (
            read_validations(paths.validation)[column].to_pylist()
            == read_validations(one_rank.validation)[column].to_pylist()
        )
    assert final(paths) == final(one_rank)


def test_a_replaced_attempt_leaves_no_validation(store: Path, tmp_path: Path) -> None:
    config = watched(store, tmp_path)
    paths = new_run(config)
    with pytest.raises(FencedError):
        train(config, start(paths, at_step={3: lambda ctx: void(open_attempt(ctx.paths))}))
    assert sorted(path.name for path in paths.validation.iterdir()) == ["001-00000000.parquet", "step-00000000.npz"]


def test_without_held_out_wells_it_is_refused_before_anything_is_made(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path / "runs", eval__every_steps=4)
    with pytest.raises(UsageError, match=r"eval\.every_steps=4: nothing is held out .* data\.holdout") as caught:
        run_here(config, command=["pretrain"], progress=silent())
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "runs").iterdir())


def test_the_page_shows_the_crops_as_a_series(store: Path, tmp_path: Path) -> None:
    config = watched(store, tmp_path, ranks_per_node=2)
    paths, _ = run_here(config, command=["pretrain"], progress=silent())
    for step in (0, 4, 8, 12):
        assert paths.validation_crops(step).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = paths.report.read_text()
    assert "completed after 0, 4, 8, 12 steps" in page and "Validation" in page


def test_the_checkpoint_with_the_lowest_loss_stays(store: Path, tmp_path: Path) -> None:
    config = watched(
        store, tmp_path, checkpoint__keep=1, checkpoint__keep_best="val_fourier", checkpoint__every_steps=4
    )
    paths = new_run(config)
    train(config, start(paths))
    found = {row["step"]: row["val_fourier"] for row in read_validations(paths.validation).to_pylist() if row["step"]}
    assert sorted(found) == [4, 8, 12]
    best = min(found, key=lambda step: found[step])
    kept = {int(path.name.rpartition("-")[2]) for path in paths.checkpoints.glob("step-*")}
    assert kept == {best, 12}
    assert {step: scores["val_fourier"] for step, scores in read_scores(paths.checkpoints).items() if step} == found


@pytest.mark.parametrize(
    ("best", "needed"), [("val_mse", "eval.every_steps"), ("probe_accuracy", "eval.probe_every_steps")]
)
def test_a_best_that_nothing_measures_is_refused(store: Path, tmp_path: Path, best: str, needed: str) -> None:
    config = settings(store, tmp_path / "runs", checkpoint__keep_best=best)
    with pytest.raises(UsageError, match=f"checkpoint.keep_best={best}: nothing measures it; give {needed}"):
        plan(config, new_run(config))
