"""How recall and loss grow with the compute of training, over runs, and what the next size would give.

OUT/scaling.html, scaling.png, scaling.svg, scaling.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from phenomhpc.config import ModelConfig
from phenomhpc.config.recipes import choices, recipes_folder
from phenomhpc.errors import UsageError
from phenomhpc.jobs.base import Table
from phenomhpc.maps import LogLinear, fit_log_linear
from phenomhpc.models.checkpoint import CheckpointMeta, read_meta
from phenomhpc.models.costs import model_cost
from phenomhpc.report import Measured, Section, Trend, render_report, scaling_figure, themed
from phenomhpc.report import Table as PageTable
from phenomhpc.runs import RunPaths, commit, find_run, make_folder, now, read_provenance
from phenomhpc.train.named import named_checkpoint

LOSS = "loss"
LARGER = 1.2  # a recipe counts as the next size when a crop costs so many times more
LAST_LOSSES = 0.05  # share of the steps whose mean is the training loss, where nothing was held out


@dataclass(frozen=True, kw_only=True)
class ScaledRun:
    """One run.  flop: of its training; recalls: (value, low, high) by annotation, none of a run that was not evaluated."""

    name: str
    checkpoint: str
    flop: float
    crop_flop: int
    crops: int
    loss: float | None
    loss_of: str
    recalls: dict[str, tuple[float, float | None, float | None]]
    meta: CheckpointMeta


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What was fitted: lines by score, and what each foretells of a run of next_flop (value, low, high)."""

    runs: tuple[ScaledRun, ...]
    lines: dict[str, LogLinear]
    next_flop: float
    next_name: str
    predicted: dict[str, tuple[float, float, float]]


def scaling_of(names: Sequence[str], runs: Path, next_flop: float | None = None) -> Scaling:
    """Fit every score that at least three of the runs have.  names: runs of evaluate or of pretrain.

    Raises UsageError naming a run that cannot be used, and where no score has three runs.
    """
    found = tuple(sorted((read_run(name, runs) for name in names), key=lambda run: run.flop))
    twice = [run.name for place, run in enumerate(found) if run.name in [other.name for other in found[:place]]]
    if twice:
        raise UsageError(f"scaling: {twice[0]} is named twice; name each run once")
    flop, words = (next_flop, "as asked") if next_flop is not None else next_size(found[-1])
    lines = {}
    scores = list(dict.fromkeys(name for run in found for name in run.recalls))
    reason = ""
    for name in [*scores, LOSS]:
        points = [(run, value) for run in found if (value := _value(run, name)) is not None]
        try:
            lines[name] = fit_log_linear(
                [run.flop for run, _ in points], [value for _, value in points], [run.name for run, _ in points]
            )
        except UsageError as error:
            reason = reason or str(error)
    if not lines:
        raise UsageError(reason)
    predicted = {name: line.predict(flop) for name, line in lines.items()}
    return Scaling(runs=found, lines=lines, next_flop=flop, next_name=words, predicted=predicted)


def _value(run: ScaledRun, name: str) -> float | None:
    return run.loss if name == LOSS else run.recalls[name][0] if name in run.recalls else None


def read_run(name: str, runs: Path) -> ScaledRun:
    """FLOP, loss and recalls of a run of evaluate (of the checkpoint that it evaluated) or of pretrain (its newest one)."""
    paths = find_run(runs, name)
    kind = str(read_provenance(paths)["kind"])
    recalls: dict[str, tuple[float, float | None, float | None]] = {}
    if kind == "evaluate":
        checkpoint, recalls = _evaluated(paths)
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
        meta=meta,
    )


def _evaluated(paths: RunPaths) -> tuple[Path, dict[str, tuple[float, float | None, float | None]]]:
    try:
        value = json.loads(paths.evaluation.read_bytes())
        checkpoint, rows = value["checkpoint"], value["recalls"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UsageError(
            f"scaling: {paths.id} has no {paths.evaluation.name} of this version; run evaluate again"
        ) from error
    if not checkpoint or not Path(checkpoint).exists():
        raise UsageError(
            f"scaling: {paths.id}: its checkpoint {checkpoint or ''} is not there, so its FLOP is not known"
        )
    recalls: dict[str, tuple[float, float | None, float | None]] = {}
    for row in rows:
        if row["source"] == "encoder":  # rows come by thresholds: the first pair counts
            recalls.setdefault(row["annotation"], (row["recall"], row["ci_low"], row["ci_high"]))
    return Path(checkpoint), recalls


def _loss(checkpoint: Path, meta: CheckpointMeta) -> tuple[float | None, str]:
    """The held-out loss of the checkpoint's step, else the mean training loss before it; and which of them it is."""
    if checkpoint.parent.name != "checkpoints":
        return None, ""
    from phenomhpc.train.metrics import read_metrics
    from phenomhpc.train.validation import read_validations

    paths = RunPaths(checkpoint.parent.parent)
    held_out = [row for row in read_validations(paths.validation).to_pylist() if row["step"] <= meta.step]
    if held_out:
        return float(held_out[-1]["val_loss"]), "held out"
    losses = [row["loss"] for row in read_metrics(paths.metrics).to_pylist() if row["step"] < meta.step]
    known = [loss for loss in losses if loss is not None and np.isfinite(loss)]
    if not known:
        return None, ""
    return float(np.mean(known[-max(1, round(len(known) * LAST_LOSSES)) :])), "training"


def next_size(largest: ScaledRun) -> tuple[float, str]:
    """FLOP of the smallest recipe of the same kind and patch that is larger, on as many crops; of none, four times as much."""
    model = largest.meta.model
    found: list[tuple[int, str]] = []
    for name in choices("model"):
        fields = ModelConfig(**yaml.safe_load((recipes_folder() / "model" / f"{name}.yaml").read_text())).model_dump()
        if all(fields[key] == model[key] for key in ("kind", "patch_px", "crop_px")):
            found.append((model_cost(fields, len(largest.meta.channels)).training_flop, name))
    larger = sorted(entry for entry in found if entry[0] > LARGER * largest.crop_flop)
    if larger:
        flop, name = larger[0]
        return float(flop * largest.crops), f"{name} on {largest.crops:,} crops"
    return 4.0 * largest.flop, "four times the largest run"


def tables_of(found: Scaling) -> tuple[Table, Table]:
    """The runs, and the lines with what they foretell."""
    scores = [name for name in found.lines if name != LOSS]
    rows = tuple(
        (run.name, f"{run.flop:.3g}", f"{run.crops:,}", run.loss, *(_value(run, name) for name in scores))
        for run in found.runs
    )
    runs = Table(title="Runs, by training FLOP", columns=("run", "FLOP", "crops", "loss", *scores), rows=rows)
    lines = tuple(
        (
            name,
            f"{line.slope:+.4f} [{line.slope_low:+.4f}, {line.slope_high:+.4f}]",
            line.r_squared,
            line.num_points,
            "{:.3f} [{:.3f}, {:.3f}]".format(*found.predicted[name]),
        )
        for name, line in found.lines.items()
    )
    return runs, Table(
        title=f"Per tenfold FLOP, and foretold of {found.next_flop:.3g} FLOP ({found.next_name}) [95 % intervals]",
        columns=("score", "gain", "R2", "runs", "foretold"),
        rows=lines,
    )


def _trends(found: Scaling) -> list[Trend]:
    trends = []
    for name, line in found.lines.items():
        flop = np.geomspace(found.runs[0].flop, max(found.next_flop, found.runs[-1].flop), 60)
        band = np.array([line.predict(float(at)) for at in flop])
        value, low, high = found.predicted[name]
        points = []
        for run in found.runs:
            if (known := _value(run, name)) is not None:
                interval = run.recalls[name][1:] if name in run.recalls else (None, None)
                points.append((run.flop, Measured(name=run.name, value=known, ci_low=interval[0], ci_high=interval[1])))
        trends.append(
            Trend(
                title="Loss" if name == LOSS else f"Recall, {name}",
                points=tuple(points),
                line=(flop, band[:, 0], band[:, 1], band[:, 2]),
                next=(found.next_flop, Measured(name="next", value=value, ci_low=low, ci_high=high)),
            )
        )
    return trends


def write_scaling(found: Scaling, out: Path) -> Path:
    """The page, its picture and the numbers in folder `out`; returns the page's path."""
    runs, lines = tables_of(found)
    picture = themed(
        scaling_figure,
        _trends(found),
        name="scaling",
        alt="; ".join(f"{name}: {line.slope:+.3f} per tenfold FLOP" for name, line in found.lines.items()),
        caption=f"Runs as points, the line with the 95 % interval of a new run; the ring is {found.next_name}, "
        f"{found.next_flop:.3g} FLOP.",
    )
    section = Section(
        title="Scores against training FLOP",
        text=(
            "A straight line over the logarithm of the FLOP of training. It knows no ceiling: far beyond the largest "
            "run it is a guess.",
        ),
        pictures=(picture,),
        tables=tuple(PageTable(caption=one.title, columns=one.columns, rows=one.rows) for one in (runs, lines)),
        details=(
            "FLOP of training: crops seen times three forward passes, matrix products and attention alone. Ordinary least squares; "
            "intervals by Student's t. Loss is that of held-out crops where there was a validation, else the mean of "
            "the last 5 % of steps.",
        ),
    )  # fmt: skip
    make_folder(out)
    commit(out / "scaling.json", json.dumps(as_json(found), indent=2, sort_keys=True) + "\n")
    commit(out / "scaling.png", picture.png)
    if picture.svg is not None:
        commit(out / "scaling.svg", picture.svg)
    title = f"Scaling over {len(found.runs)} runs"
    page = render_report(title, [section], made=f"Made {now()[:16].replace('T', ' ')} UTC")
    commit(out / "scaling.html", page)
    return out / "scaling.html"


def as_json(found: Scaling) -> dict[str, Any]:
    """Every number."""
    return {
        "runs": [
            {
                key: getattr(run, key)
                for key in ("name", "checkpoint", "flop", "crop_flop", "crops", "loss", "loss_of", "recalls")
            }
            for run in found.runs
        ],
        "lines": {name: asdict(line) for name, line in found.lines.items()},
        "next_flop": found.next_flop,
        "next": found.next_name,
        "predicted": {name: list(values) for name, values in found.predicted.items()},
    }
