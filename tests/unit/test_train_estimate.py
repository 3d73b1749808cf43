"""--estimate of a training's GPUs: arithmetic against what runs."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phenomhpc.config import PretrainConfig
from phenomhpc.errors import UsageError
from phenomhpc.jobs.train_estimate import (
    DEFAULT_MFU,
    TrainEstimate,
    estimate_train,
    line_of,
    shares_of,
    table_of,
    words_of,
)
from phenomhpc.train.loop import train
from tests.unit.test_train_loop import new_run, start
from tests.unit.train_store import convert, settings, write_plate

with warnings.catch_warnings():  # typer still asks click for names that click is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from typer.testing import CliRunner

    from phenomhpc.cli.main import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def phenom(**changes: Any) -> PretrainConfig:
    """MAE-L/8 as Phenom-1 was trained: 16 nodes of 8 GPUs."""
    model = {"name": "mae_vit_l8", "patch_px": 8, "dim": 1024, "depth": 24, "heads": 16}
    tree = {"model": model, "precision": "bf16", "cluster": {"nodes": 16, "gpus_per_node": 8}}
    tree["optim"] = {"global_batch": 16384, "micro_batch": 128, "steps": 213_000}
    return PretrainConfig(**(tree | changes))  # type: ignore[arg-type]


def estimated(config: PretrainConfig, **how: Any) -> TrainEstimate:
    return estimate_train(config, num_channels=6, num_fields=93_000_000, itemsize=1, **how)


def test_phenom_1_costs_what_is_published() -> None:
    """20,000 A100 hours for 3.5 billion crops at 48.6 crops/s: about 11 % of the peak."""
    found = estimated(phenom(), gpu="a100", crops_per_s=48.6)
    assert found.num_gpus == 128 and found.utilisation == 1
    assert found.gpu_hours == pytest.approx(20_000, rel=0.01)
    assert found.mfu == pytest.approx(0.11, abs=0.003)
    assert found.run_flop == pytest.approx(2.4e21, rel=0.03)
    assert found.wall_s == pytest.approx(found.gpu_hours / 128 * 3600)


def test_a_rate_is_the_peak_times_the_mfu_over_a_crop() -> None:
    found = estimated(phenom(), gpu="h200", mfu=0.5)
    assert found.crops_per_s == pytest.approx(0.5 * 989.4e12 / found.cost.training_flop)
    assert estimated(phenom()).mfu == DEFAULT_MFU
    assert "assumed, not measured" in str(table_of(estimated(phenom())).rows)
    with pytest.raises(UsageError, match="--gpu v100: does not compute in bf16; give precision=fp32"):
        estimated(phenom(), gpu="v100")


def test_what_does_not_fit_and_what_is_padding_is_said() -> None:
    fits = estimated(phenom(optim={"global_batch": 16384, "micro_batch": 64, "steps": 10}))
    assert fits.memory_share < 1 and words_of(fits) == []
    alone = estimated(phenom(optim={"global_batch": 4096, "micro_batch": 4096, "steps": 10}, cluster={"nodes": 1}))
    assert alone.memory_share > 1 and "give a smaller optim.micro_batch" in words_of(alone)[0]
    padded = estimated(phenom(optim={"global_batch": 16384, "micro_batch": 100, "steps": 10}))
    assert padded.computed_crops == 200 and padded.utilisation == pytest.approx(0.64)
    assert "36% of what is computed is padding" in words_of(padded)[0]


def test_parts_of_the_state_are_as_many_as_ranks_or_those_of_a_node() -> None:
    whole, full, hybrid = (estimated(phenom(sharding=kind)).memory for kind in ("none", "full", "hybrid"))
    per_node = phenom().cluster.gpus_per_node
    assert per_node and per_node < 128
    for held in ("weights", "gradients", "moments"):
        assert getattr(full, held) == getattr(whole, held) / 128
        assert getattr(hybrid, held) == getattr(whole, held) / per_node
    assert whole.gathered == 0 < full.gathered < whole.weights / 4
    assert full.total < hybrid.total < whole.total
    assert full.copies == whole.copies  # the backward pass keeps them
    assert estimated(phenom(sharding="full", activation_checkpointing=True)).memory.copies < whole.copies / 20


@pytest.mark.parametrize(
    ("batch", "per_visit", "micro", "world"), [(8, 1, 3, 1), (8, 1, 3, 3), (12, 4, 5, 2), (8, 2, 64, 3)]
)
def test_micro_batches_are_the_loaders(batch: int, per_visit: int, micro: int, world: int) -> None:
    from phenomhpc.crops import Sampler
    from phenomhpc.crops.dealing import Dealer

    table = np.zeros(5, [("height", "i4"), ("width", "i4")])
    table["height"] = table["width"] = 32

    sampler = Sampler(table, seed=0, crop_px=8, crops_per_visit=per_visit)
    dealer = Dealer(
        sampler,
        num_patches=4,
        global_batch=batch,
        micro_batch=micro,
        rank=0,
        world=world,
        digest=False,
        defer_flips=False,
    )
    assert shares_of(batch, per_visit, micro, world) == (dealer.micro_size, dealer.num_micro * dealer.micro_size)


def test_a_checkpoint_is_as_large_as_told(store: Path, tmp_path: Path) -> None:
    config = settings(store, tmp_path, optim__name="adamw", optim__steps=1, model__dim=128, model__depth=4)
    result = train(config, start(new_run(config)))
    written = sum(path.stat().st_size for path in result.checkpoint.iterdir())
    found = estimate_train(config, num_channels=2, num_fields=6, itemsize=1)
    assert written == pytest.approx(found.checkpoint_bytes, rel=0.05)
    assert found.kept_bytes == found.checkpoint_bytes


def test_the_command_tells_both_and_loads_no_torch(store: Path, tmp_path: Path) -> None:
    words = ["--store", str(store), "--runs", str(tmp_path / "runs"), "model.crop_px=32", "model.patch_px=8"]
    words += ["--estimate", "--core-crops-per-s", "1000", "--gpu", "a100", "--mfu", "0.5"]
    done = CliRunner().invoke(build(), ["pretrain", *words])
    assert done.exit_code == 0, done.output
    assert "Training, expected" in done.stdout and "MFU 50.0% of 19.5 TFLOP/s in fp32 (as given)" in done.stdout
    done = CliRunner().invoke(build(), ["pretrain", *words, "--json"])
    found = json.loads(done.stdout)
    assert found["train"]["gpu"]["name"] == "a100" and found["train"]["memory"]["total"] > 0
    assert found["data"]["gpu_crops_per_s"] == found["train"]["crops_per_s"]
    for wrong, says in (
        (["--mfu", "1.5"], "--mfu 1.5: a share of the peak"),
        (["--gpu-crops-per-s", "5"], "one follows from the other"),
        (["--gpu", "h1000"], "--gpu h1000: not known"),
    ):
        refused = CliRunner().invoke(build(), ["pretrain", *words, *wrong])
        assert isinstance(refused.exception, UsageError) and says in str(refused.exception)
    code = "import sys, phenomhpc.jobs.train_estimate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_dry_run_has_a_line_of_it(store: Path, tmp_path: Path) -> None:
    words = ["submit", "pretrain", "--store", str(store), "--runs", str(tmp_path / "runs"), "--dry-run", "--nodes", "2"]
    done = CliRunner().invoke(build(), [*words, "--gpus-per-node", "4", "model.crop_px=32", "model.patch_px=8"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("# ") and "GFLOP a crop" in line]
    assert any("8 h100 at an MFU of 35% (assumed; --estimate tells more)" in line for line in lines)
    assert line_of(estimated(phenom())).startswith("328.5 M parameters, 694 GFLOP a crop")
