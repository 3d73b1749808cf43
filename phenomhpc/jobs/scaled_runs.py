"""Runs as points of a scaling: FLOP, loss and recalls of each, with what the two are of, so that unlike ones are not mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phenomhpc.config import EvaluateConfig, PretrainConfig, load_run_config
from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import CheckpointMeta, read_meta
from phenomhpc.models.costs import model_cost
from phenomhpc.runs import RunPaths, find_run, read_provenance
from phenomhpc.train.named import named_checkpoint

LAST_LOSSES = 0.05  # share of the steps whose mean is the training loss, where nothing was held out
OF_MODEL = ("kind", "crop_px", "patch_px", "mask_ratio", "fourier_weight")  # settings that change what a loss means
OF_EVALUATION = ("align", "batch", "arm_correction")  # and a recall

Recalls = dict[str, tuple[float, float | None, float | None]]


@dataclass(frozen=True, kw_only=True)
class ScaledRun:
    """One run.  flop: of its training; recalls: (value, low, high) by annotation, none of a run that was not evaluated.

    loss_of, recall_of: what they were measured by and on; losses, or recalls, of which one entry differs do not compare
    """

    name: str
    checkpoint: str
    flop: float
    crop_flop: int
    crops: int
    loss: float | None
    loss_of: dict[str, str]
    recalls: Recalls
    recall_of: dict[str, str]
    meta: CheckpointMeta


def read_run(name: str, runs: Path) -> ScaledRun:
    """FLOP, loss and recalls of a run of evaluate (of the checkpoint that it evaluated) or of pretrain (its newest one)."""
    paths = find_run(runs, name)
    kind = str(read_provenance(paths)["kind"])
    recalls: Recalls = {}
    recall_of: dict[str, str] = {}
    if kind == "evaluate":
        checkpoint, recalls, recall_of = _evaluated(paths)
    elif kind == "pretrain":
        checkpoint = named_checkpoint(str(paths.root), runs)
    else:
        raise UsageError(f"scaling: {name} is a run of {kind}; name runs of evaluate or pretrain")
    meta = read_meta(checkpoint)
    crop_flop = model_cost(meta.model, len(meta.channels)).training_flop
    loss, loss_of = _loss(checkpoint, meta)
    return ScaledRun(
        name=paths.id,
        checkpoint=str(checkpoint),
        flop=float(crop_flop * meta.next_index),
        crop_flop=crop_flop,
        crops=meta.next_index,
        loss=loss,
        loss_of=loss_of,
        recalls=recalls,
        recall_of=recall_of,
        meta=meta,
    )


def require_alike(score: str, runs: Sequence[ScaledRun], is_loss: bool) -> None:
    """Raise UsageError where the runs' losses (else their recalls) are not of one definition, naming the setting and two runs."""
    for run in runs[1:]:
        first, other = (one.loss_of if is_loss else one.recall_of for one in (runs[0], run))
        for key in {**first, **other}:
            ours, theirs = first.get(key, "not known"), other.get(key, "not known")
            if ours != theirs:
                raise UsageError(
                    f"scaling: {score} does not compare: {key} is {ours} in {runs[0].name}, {theirs} in {run.name}; "
                    "name runs in which it is the same"
                )


def _evaluated(paths: RunPaths) -> tuple[Path, Recalls, dict[str, str]]:
    try:
        value = json.loads(paths.evaluation.read_bytes())
        checkpoint, rows = value["checkpoint"], [row for row in value["recalls"] if row["source"] == "encoder"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UsageError(
            f"scaling: {paths.id} has no {paths.evaluation.name} of this version; run evaluate again"
        ) from error
    if not checkpoint or not Path(checkpoint).exists():
        raise UsageError(
            f"scaling: {paths.id}: its checkpoint {checkpoint or ''} is not there, so its FLOP is not known; "
            "evaluate embeddings of a checkpoint that is"
        )
    recalls: Recalls = {}
    for row in rows:  # they come by thresholds: the first pair counts
        recalls.setdefault(row["annotation"], (row["recall"], row["ci_low"], row["ci_high"]))
    config = load_run_config(paths.run_yaml)
    assert isinstance(config, EvaluateConfig)
    thresholds = f"{rows[0]['lo']:g}, {rows[0]['hi']:g}" if rows else ""
    return Path(checkpoint), recalls, {"thresholds": thresholds, **_chosen(config.model_dump(), OF_EVALUATION)}


def _loss(checkpoint: Path, meta: CheckpointMeta) -> tuple[float | None, dict[str, str]]:
    """The held-out loss of the checkpoint's step, else the mean training loss before it; and what it is of."""
    if checkpoint.parent.name != "checkpoints":
        return None, {}
    from phenomhpc.train.metrics import read_metrics
    from phenomhpc.train.validation import read_validations

    paths = RunPaths(checkpoint.parent.parent)
    of = _chosen(meta.model, OF_MODEL) | {
        "channels": ",".join(meta.channels),
        "scale": ",".join(f"{one:g}" for one in meta.scale),
        "illumination": meta.illumination,
        "snapshot": meta.snapshot[:12],
    }
    held_out = [row for row in read_validations(paths.validation).to_pylist() if row["step"] <= meta.step]
    if held_out:
        config = load_run_config(paths.run_yaml)
        assert isinstance(config, PretrainConfig)
        holdout = ", ".join(f"{key} {value}" for key, value in config.data.holdout.model_dump().items() if value)
        crops = str(held_out[-1]["crops"])
        return float(held_out[-1]["val_loss"]), {
            "crops": "held out",
            "holdout": holdout,
            "number of crops": crops,
            **of,
        }
    losses = [row["loss"] for row in read_metrics(paths.metrics).to_pylist() if row["step"] < meta.step]
    known = [loss for loss in losses if loss is not None and np.isfinite(loss)]
    if not known:
        return None, {}
    return float(np.mean(known[-max(1, round(len(known) * LAST_LOSSES)) :])), {"crops": "trained on", **of}


def _chosen(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    return {key: str(settings[key]) for key in keys}
