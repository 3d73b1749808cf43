"""Beginning a run with the weights of another (--init-from): weights alone (their average, where it has one), at step 0, with a
fresh optimiser.

Only a run without a checkpoint of its own begins so.  Afterwards its own checkpoints win, and each of them names the one that it
began with, and the digest of those weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import CheckpointMeta, load_encoder, read_meta
from phenomhpc.models.mae import MaskedAutoencoder, outline_mae
from phenomhpc.models.weights import is_average
from phenomhpc.runs import TaskContext
from phenomhpc.train.named import named_checkpoint
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState


def begin_from(
    name: str, runs: Path, state: TrainState, channels: Sequence[str], ranks: Ranks, ctx: TaskContext
) -> None:
    """Put the weights of the checkpoint that `name` means into the state's model.  Called by all ranks together.

    The first rank chooses the checkpoint, all read it.  Raises UsageError for a checkpoint that is not there or of other
    weights, WorkError for one that is damaged.
    """
    folder = ranks.on_first(lambda: named_checkpoint(name, runs))
    meta = read_meta(folder)
    require_same_weights(folder, meta, state.model)
    there, meta = load_encoder(folder)
    with torch.no_grad():
        for parameter, given in zip(state.model.parameters(), there.parameters(), strict=True):
            parameter.copy_(given)
    if state.ema is not None:
        state.ema.begin()
    state.init_from = {"checkpoint": str(folder), "weights": meta.weights}
    if ranks.is_first:
        what = "averaged weights" if is_average(meta) else "weights"
        ctx.progress.say(f"beginning with the {what} of {folder}, after step {meta.step} there")
        if tuple(channels) != meta.channels:
            ctx.progress.say(
                f"its channels are {', '.join(meta.channels)}, those here {', '.join(channels)}: taken in this order"
            )
        ctx.events.emit("init_from", checkpoint=str(folder), weights=meta.weights)


def require_same_weights(folder: Path, meta: CheckpointMeta, model: MaskedAutoencoder) -> None:
    """Raise UsageError naming the first weight of `model` that the checkpoint lacks, has besides, or has in another shape."""
    there = _shapes(outline_mae(len(meta.channels), seed=meta.seed, **meta.model))
    here = _shapes(model)
    for name in sorted({*there, *here}, key=lambda name: (name not in here, name)):
        if there.get(name) != here.get(name):
            raise UsageError(
                f"init_from={folder}: {name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here; "
                f"it was trained with model={meta.model['name']} on {len(meta.channels)} channels: take the same architecture"
            )


def _shapes(model: MaskedAutoencoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
