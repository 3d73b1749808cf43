"""A checkpoint's way back into a state: is it of this training, is it whole, does it hold what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from phenomhpc.errors import WorkError
from phenomhpc.models.checkpoint import (
    CheckpointMeta,
    damaged_bytes,
    load_tensors,
    read_meta,
    require_same,
    weights_digest,
)
from phenomhpc.models.kinds import complete_fields
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import WholeOnHost, is_sharded
from phenomhpc.train.state import TrainState


def agreed(folder: Path, here: CheckpointMeta) -> CheckpointMeta:
    """What a checkpoint is, which must be of what is trained here; raises UsageError that names the first difference."""
    there = read_meta(folder)
    way_out = "resume with the run's own settings, or begin a new run with --new-run"
    require_same(folder, there.model, complete_fields(here.model), "model.", way_out=way_out)
    for name in (
        "channels",
        "scale",
        "dtype",
        "illumination",
        "snapshot",
        "seed",
        "global_batch",
        "optimiser",
        "random_scheme",
    ):
        require_same(folder, {name: getattr(there, name)}, {name: getattr(here, name)}, "", way_out=way_out)
    require_same(folder, {"optim.ema": there.ema}, {"optim.ema": here.ema}, "", way_out=way_out)
    return there


def fill(state: TrainState, folder: Path, meta: CheckpointMeta, ranks: Ranks) -> str | None:
    """Fill the state; why it could not be done, or None.  The ranks share the reading of every byte."""
    reason = damaged_bytes(folder, ranks.rank, ranks.world)
    if ranks.any(reason is not None):
        return reason or "another rank finds it damaged"
    tensors = state.tensors()
    # DCP reads of a sharded tensor the own part, straight into it.
    on_cpu = {
        name: tensor if tensor.device.type == "cpu" or is_sharded(tensor) else torch.empty_like(tensor, device="cpu")
        for name, tensor in tensors.items()
    }
    unreadable: str | None = None
    try:
        load_tensors(folder, on_cpu)
    except WorkError as error:
        unreadable = str(error)
    if ranks.any(unreadable is not None):
        return unreadable or "another rank cannot read it"
    for name, tensor in tensors.items():
        if tensor is not on_cpu[name]:
            tensor.copy_(on_cpu[name])
    if digest_of(state.weights()) != meta.weights:
        return "its weights are not those that were saved"
    if meta.ema_weights is not None and digest_of(averaged(state)) != meta.ema_weights:
        return "its average of the weights is not the one that was saved"
    return None


def averaged(state: TrainState) -> dict[str, Tensor]:
    return {} if state.ema is None else state.ema.weights


def digest_of(weights: Mapping[str, Tensor]) -> str:
    return weights_digest(WholeOnHost(weights))
