"""The part of the report on how the encoder was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phenomhpc.embed.folder import Binding
from phenomhpc.report import Picture, Section, curves_figure, reconstruction_figure, themed
from phenomhpc.runs import RunPaths


def learning_sections(binding: Binding | None) -> list[Section]:
    """How the encoder was trained, where its run is at hand: reconstructions and curves."""
    if binding is None or Path(binding.checkpoint).parent.name != "checkpoints":
        return []
    training = RunPaths(Path(binding.checkpoint).parent.parent)
    pictures = [*_reconstructions(training), *_curves(training)]
    if not pictures:
        return []
    return [
        Section(
            title="How the encoder learned",
            text=(
                "The encoder was trained without labels. It is shown a part of each crop and, with a small decoder, has to "
                "complete the rest; to do so it must learn what cells look like. The decoder is then thrown away.",
            ),
            pictures=tuple(pictures),
        )
    ]


def _reconstructions(training: RunPaths) -> list[Picture]:
    if not training.reconstructions.is_file():
        return []
    with np.load(training.reconstructions, allow_pickle=False) as arrays:
        crops = [arrays[name] for name in ("original", "masked", "reconstructed")]
    return [
        themed(
            reconstruction_figure,
            *crops,
            name="reconstructions",
            alt=f"{min(len(crops[0]), 6)} crops in three rows: the original, the patches the model was shown, and its completion.",
            caption=f"Crops in false colours ({crops[0].shape[1]} channels blended): above the original, in the middle what "
            "the model was shown, below that with the hidden patches as it completed them.",
        )
    ]


def _curves(training: RunPaths) -> list[Picture]:
    from phenomhpc.train.metrics import read_metrics

    table = read_metrics(training.metrics)
    if table.num_rows < 2:
        return []
    metrics = {name: table[name].to_numpy(zero_copy_only=False) for name in ("step", "loss", "crops_per_s")}
    return [
        themed(
            curves_figure,
            metrics,
            name="training",
            alt=f"Two curves over {table.num_rows} steps: the loss goes from {metrics['loss'][0]:.3f} to "
            f"{metrics['loss'][-1]:.3f}; the median throughput is {np.nanmedian(metrics['crops_per_s']):.0f} crops per second.",
            caption=f"Training over {table.num_rows:,} steps: loss (left) and crops per second over all ranks (right), each "
            "with its running mean.",
        )
    ]
