"""docs/images/overfit.png: a model that has seen 32 crops over and over draws their hidden patches.

    python -m tests.bench.overfit_picture [STEPS] [PICTURE]

The test of the same (tests/unit/test_train_overfit.py) is short; this is a larger model and, on two cores, half an hour.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from phenomhpc.config import PretrainConfig, validate
from phenomhpc.jobs.here import run_here
from phenomhpc.models.checkpoint import load_encoder, newest_committed
from phenomhpc.progress import console
from tests.unit.test_train_overfit import crops_of, error, hidden, make_store, overfit

SHOWN = 6
LARGER = {"dim": 192, "depth": 4, "heads": 6, "decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 6}


def main(steps: int, picture: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name), 0)
        changed = overfit(store, Path(name) / "runs", steps).model_dump(mode="json")
        changed["model"] |= LARGER
        changed["optim"] |= {"peak_lr": 1e-3, "global_batch": 16, "micro_batch": 16}
        changed["threads_per_rank"] = None
        config = validate("pretrain", changed)
        assert isinstance(config, PretrainConfig)
        paths, _ = run_here(config, command=["pretrain"], progress=console())
        newest = newest_committed(paths.checkpoints)
        assert newest is not None
        model, crops = load_encoder(newest)[0], crops_of(store)
    true, drawn, blurred = hidden(model, crops)
    print(
        f"hidden patches: error {error(drawn, true):.3f}, of a blur {error(blurred, true):.3f} (1: a fill with the mean)"
    )
    noise = torch.rand(len(crops), model.num_patches, generator=torch.Generator().manual_seed(7))
    shown = model.reconstruct(crops, noise)
    draw([crops, shown.masked, shown.reconstructed], picture)


def draw(rows: list[torch.Tensor], picture: Path) -> None:
    """Three channels of some crops as colours: as they are, what the model sees, what it makes of it."""
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(2 * SHOWN, 2 * len(rows) + 0.4), layout="constrained")
    for row, (images, label) in enumerate(zip(rows, ("crop", "seen", "drawn"), strict=True)):
        for column in range(SHOWN):
            colours = images[column * 5, [0, 1, 2]].permute(1, 2, 0).numpy()
            axes[row, column].imshow(np.clip((colours + 1) / 4, 0, 1), interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(label)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 2200,
        Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images/overfit.png"),
    )
