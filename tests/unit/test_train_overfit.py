"""Overfitting: a model that sees the same few crops over and over draws their hidden patches from memory: not yet sharply, but
better than a blur of what is visible, and better than those of crops that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from phenomhpc.config import PretrainConfig, validate
from phenomhpc.jobs.here import run_here
from phenomhpc.models.checkpoint import load_encoder, newest_committed
from phenomhpc.models.mae import MaskedAutoencoder, build_mae
from phenomhpc.models.standardise import standardise
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot, open_store
from tests.unit.train_store import convert

CROPS, EDGE, BATCH, STEPS = 32, 64, 8, 1500
MASKS = 4
MODEL = {
    "name": "overfit", "crop_px": EDGE, "patch_px": 8, "dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 4.0, "layer_scale": 0.1,
    "qk_norm": True, "drop_path": 0.0, "mask_ratio": 0.75, "fourier_weight": 0.0, "decoder_dim": 64, "decoder_depth": 1,
    "decoder_heads": 4,
}  # fmt: skip


def make_store(folder: Path, seed: int) -> Path:
    """32 wells of one field each, of a crop's size: every visit of a field is the same crop."""
    spec = SyntheticSpec(
        seed=seed, experiments=1, plate_rows=4, plate_columns=8, field_px=EDGE, num_genes=8, cells_per_megapixel=900.0
    )  # fmt: skip
    write_plates(folder / "raw", spec, silent(), workers=1)
    return convert(folder / "raw", folder / "store", folder / "runs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("overfit"), 0)


def overfit(store: Path, runs: Path, steps: int) -> PretrainConfig:
    optim = {
        "name": "adamw",
        "peak_lr": 3e-3,
        "beta2": 0.95,
        "weight_decay": 0.0,
        "global_batch": BATCH,
        "micro_batch": BATCH,
    }
    config = validate(
        "pretrain",
        {
            "store": [str(store)], "runs": str(runs), "seed": 3, "device": "cpu", "threads_per_rank": 1, "model": MODEL,
            "optim": {**optim, "steps": steps, "warmup_fraction": 0.05}, "data": {"flips": False},
            "checkpoint": {"every_steps": steps},
        },
    )  # fmt: skip
    assert isinstance(config, PretrainConfig)
    return config


def crops_of(store: Path) -> torch.Tensor:
    """All of them, standardised, f32[32, 6, 64, 64]."""
    snapshot = Snapshot.open(open_store(str(store)))
    pixels = np.zeros((CROPS, len(snapshot.channels), EDGE, EDGE), snapshot.dtype)
    with ShardReader(snapshot.store, snapshot) as reader:
        for number in range(CROPS):
            reader.read(number, 0, 0, pixels[number])
    return standardise(torch.from_numpy(pixels), torch.from_numpy(snapshot.scale))


def hidden(model: MaskedAutoencoder, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the values in hidden patches, under a few masks: as they are, as the model draws them, and as a blur of the visible ones
    tells them; the visible ones weigh by their distance."""
    noise = torch.rand(MASKS, len(crops), model.num_patches, generator=torch.Generator().manual_seed(1))
    found = []
    for part in noise:
        shown = model.reconstruct(crops, part)
        is_hidden = (shown.masked == 0).all(dim=1, keepdim=True).expand_as(crops)
        seen = [np.where(is_hidden, 0.0, value) for value in (crops, torch.ones_like(crops))]
        value, weight = (gaussian_filter(image, (0, 0, 4, 4)) for image in seen)
        blurred = torch.from_numpy(value / np.maximum(weight, 1e-3))
        found.append([image[is_hidden].double() for image in (crops, shown.reconstructed, blurred)])
    true, drawn, blurred = (torch.cat(parts) for parts in zip(*found, strict=True))
    return true, drawn, blurred


def error(guess: torch.Tensor, true: torch.Tensor) -> float:
    """Mean square error over that of a fill with the mean, which is 0 in a standardised crop."""
    return float((guess - true).square().mean() / true.square().mean())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_32_crops_are_learned_by_heart(store: Path, tmp_path: Path) -> None:
    crops = crops_of(store)
    config = overfit(store, tmp_path, STEPS)
    untrained = build_mae(crops.shape[1], seed=config.seed, **config.model.model_dump()).eval()
    true, drawn, blurred = hidden(untrained, crops)
    assert error(drawn, true) > 0.95
    best_blind = min(1.0, error(blurred, true))
    paths, _ = run_here(config, command=["pretrain"], progress=silent())
    newest = newest_committed(paths.checkpoints, pytest.fail)
    assert newest is not None
    model = load_encoder(newest)[0]
    true, drawn, _ = hidden(model, crops)
    correlation = float(torch.corrcoef(torch.stack([drawn, true]))[0, 1])
    unseen_true, unseen_drawn, _ = hidden(model, crops_of(make_store(tmp_path / "unseen", 1)))
    seen, unseen = error(drawn, true), error(unseen_drawn, unseen_true)
    print(
        f"error {seen:.3f}, correlation {correlation:.3f}; of a blur {best_blind:.3f}; on crops never seen {unseen:.3f}"
    )
    assert seen < 0.85 * best_blind and correlation > 0.7
    assert seen < 0.8 * unseen  # from memory
