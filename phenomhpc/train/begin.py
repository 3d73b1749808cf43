"""Beginning a run with the weights of another (their average, where it has one), or of a timm ViT (--init-from): weights alone, at
step 0, with a fresh optimiser.

Only a run without a checkpoint of its own begins so.  Afterwards its own checkpoints win, and each of them names the one that it
began with, and the digest of those weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from phenomhpc.config.training import PretrainConfig
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.models.checkpoint import CheckpointMeta, load_encoder, read_meta, weights_digest
from phenomhpc.models.export import SUFFIX, read_export_meta
from phenomhpc.models.mae import MaskedAutoencoder, outline_mae
from phenomhpc.models.timm_weights import Adapt, from_timm
from phenomhpc.models.weights import is_average
from phenomhpc.runs import TaskContext
from phenomhpc.train.named import named_checkpoint
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import fill
from phenomhpc.train.state import TrainState


def begin_from(
    config: PretrainConfig, state: TrainState, channels: Sequence[str], ranks: Ranks, ctx: TaskContext
) -> None:
    """Put the weights that config.init_from means into the state's model.  Called by all ranks together.

    The first rank chooses the checkpoint, all read it.  Raises UsageError for a checkpoint that is not there or of other
    weights, WorkError for one that is damaged.
    """
    name = config.init_from
    assert name is not None
    folder = ranks.on_first(lambda: named_checkpoint(name, Path(config.runs)))
    if is_foreign(folder):
        _begin_from_timm(folder, config.adapt_channels, state, ranks, ctx)
        return
    meta = read_meta(folder)
    require_same_weights(folder, meta, state.model)
    there, meta = load_encoder(folder)
    with torch.no_grad():
        for parameter, given in zip(state.model.parameters(), there.parameters(), strict=True):
            fill(parameter, given)
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


def _begin_from_timm(path: Path, adapt: Adapt, state: TrainState, ranks: Ranks, ctx: TaskContext) -> None:
    found = _fitting(path, state.model, adapt)
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            if name in found:
                fill(parameter, found[name])
    if state.ema is not None:
        state.ema.begin()
    digest = weights_digest({name: tensor.contiguous() for name, tensor in found.items()})
    state.init_from = {"checkpoint": str(path), "weights": digest}
    if ranks.is_first:
        ctx.progress.say(f"beginning with the encoder of {path}, a timm ViT; the decoder begins anew")
        ctx.events.emit("init_from", checkpoint=str(path), weights=digest)


def require_beginning(folder: Path, model: MaskedAutoencoder, adapt: Adapt) -> None:
    """Raise UsageError where a run of `model`, which may be an outline, cannot begin with these weights."""
    if is_foreign(folder):
        _fitting(folder, model, adapt)
    else:
        require_same_weights(folder, read_meta(folder), model)


def is_foreign(path: Path) -> bool:
    """Is it a file of weights that we have not exported?"""
    if not path.is_file():
        return False
    try:
        read_export_meta(path)
    except ValueError:
        return True
    return False


def _fitting(path: Path, model: MaskedAutoencoder, adapt: Adapt) -> dict[str, Tensor]:
    weights = read_state_dict(path)
    try:
        return from_timm(weights, model, adapt_channels=adapt)
    except UsageError as error:
        raise UsageError(f"init_from={path}: {error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict: .safetensors, or what torch.save wrote, of which nothing is run.

    One that lies under `model` or `state_dict`, as training programs leave it, is taken out; DDP's `module.` is left out of
    the names.  Raises UsageError for what is no state dict, WorkError for what cannot be read.
    """
    try:
        if path.suffix == SUFFIX:
            found: object = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"init_from={path}: holds more than tensors, or is no file of torch's; save its state dict alone"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise WorkError(f"init_from={path}: cannot be read ({str(error).splitlines()[0]})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(entry, Tensor) for entry in found.values()):
        raise UsageError(f"init_from={path}: is no state dict of tensors by name, as timm's model.state_dict() is")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


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
