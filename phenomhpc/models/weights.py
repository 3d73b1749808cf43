"""Which weights of a checkpoint are meant: the model's own, or their moving average, where it holds one.  Without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from phenomhpc.errors import UsageError

if TYPE_CHECKING:
    from phenomhpc.models.checkpoint import CheckpointMeta

MODEL, EMA, AUTO = "model", "ema", "auto"


def has_average(meta: CheckpointMeta) -> bool:
    """Is there an average beside the weights?"""
    return meta.ema_weights is not None


def is_average(meta: CheckpointMeta) -> bool:
    """Are the weights themselves an average, without those that it is of?"""
    return meta.ema is not None and meta.ema_weights is None


def choose_weights(checkpoint: Path, meta: CheckpointMeta, weights: str) -> CheckpointMeta:
    """The meta as of a checkpoint that holds the weights that are meant and no others.

    weights: model, ema, or auto, which means the average where there is one.  Raises UsageError for what is not there.
    """
    if weights == MODEL:
        if is_average(meta):
            raise UsageError(
                f"checkpoint {checkpoint}: weights=model: it holds the average alone (decay {meta.ema:g}); take "
                "weights=ema, or the step folder that it was exported from"
            )
        return replace(meta, ema=None, ema_weights=None)
    if has_average(meta):
        assert meta.ema_weights is not None
        return replace(meta, weights=meta.ema_weights, ema_weights=None)
    if weights == EMA and not is_average(meta):
        raise UsageError(
            f"checkpoint {checkpoint}: weights=ema: it holds no average, its run had no optim.ema; take weights=model"
        )
    return meta
