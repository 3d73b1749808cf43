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
from phenomhpc.jobs.scaled_runs import ScaledRun, read_run, require_alike
from phenomhpc.maps import LogLinear, fit_log_linear
from phenomhpc.models.costs import model_cost
from phenomhpc.report import Measured, Section, Trend, render_report, scaling_figure, themed
from phenomhpc.report import Table as PageTable
from phenomhpc.runs import commit, make_folder, now

LOSS = "loss"
LARGER = 1.2  # a recipe counts as the next size when a crop costs so many times more


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What was fitted: lines by score, and what each foretells of a run of next_flop (value, low, high).

    left_out: scores without a line, with the reason
    """

    runs: tuple[ScaledRun, ...]
    lines: dict[str, LogLinear]
    left_out: dict[str, str]
    next_flop: float
    next_name: str
    predicted: dict[str, tuple[float, float, float]]


def scaling_of(names: Sequence[str], runs: Path, next_flop: float | None = None) -> Scaling:
    """Fit every score that at least three of the runs have, all by one definition.  names: runs of evaluate or of pretrain.

    Raises UsageError naming a run that cannot be used, and where no score makes a line.
    """
    found = tuple(sorted((read_run(name, runs) for name in names), key=lambda run: run.flop))
    twice = [run.name for place, run in enumerate(found) if run.name in [other.name for other in found[:place]]]
    if twice:
        raise UsageError(f"scaling: {twice[0]} is named twice; name each run once")
    flop, words = (next_flop, "as asked") if next_flop is not None else next_size(found[-1])
    lines, left_out = {}, {}
    for name in [*dict.fromkeys(name for run in found for name in run.recalls), LOSS]:
        points = [(run, value) for run in found if (value := _value(run, name)) is not None]
        try:
            require_alike(LOSS if name == LOSS else f"recall, {name}", [run for run, _ in points], name == LOSS)
            lines[name] = fit_log_linear(
                [run.flop for run, _ in points], [value for _, value in points], [run.name for run, _ in points]
            )
        except UsageError as error:
            left_out[name] = str(error)
    if not lines:
        raise UsageError(next(iter(left_out.values())))
    predicted = {name: line.predict(flop) for name, line in lines.items()}
    return Scaling(runs=found, lines=lines, left_out=left_out, next_flop=flop, next_name=words, predicted=predicted)


def _value(run: ScaledRun, name: str) -> float | None:
    return run.loss if name == LOSS else run.recalls[name][0] if name in run.recalls else None


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
        tables=(
            *(PageTable(caption=one.title, columns=one.columns, rows=one.rows) for one in (runs, lines)),
            *_left_out(found),
        ),
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


def _left_out(found: Scaling) -> list[PageTable]:
    rows = tuple(found.left_out.items())
    return [PageTable(caption="No line", columns=("score", "why"), rows=rows, numeric=False)] if rows else []


def as_json(found: Scaling) -> dict[str, Any]:
    """Every number."""
    return {
        "runs": [
            {
                key: getattr(run, key)
                for key in (
                    "name",
                    "checkpoint",
                    "flop",
                    "crop_flop",
                    "crops",
                    "loss",
                    "loss_of",
                    "recalls",
                    "recall_of",
                )
            }
            for run in found.runs
        ],
        "lines": {name: asdict(line) for name, line in found.lines.items()},
        "next_flop": found.next_flop,
        "next": found.next_name,
        "left_out": found.left_out,
        "predicted": {name: list(values) for name, values in found.predicted.items()},
    }
