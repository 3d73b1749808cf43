"""Which checkpoints stay: the latest few, every so-manieth for good, the best by a metric."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from phenomhpc.runs import commit

SCORES = "scores.json"
Scores = dict[int, dict[str, float]]


def retained(
    committed: Sequence[int], *, keep: int, keep_every: int | None = None, best: Mapping[int, float] | None = None
) -> set[int]:
    """Of the steps of usable checkpoints, those that stay; the newest `keep` (1 or more) are always among them.

    keep_every: multiples of so many steps stay too.  best: a value per step, lower is better; of the committed steps that
    have one the best stays, of equals the newest.
    """
    steps = sorted(set(committed))
    stay = set(steps[-keep:])
    if keep_every is not None:
        stay |= {step for step in steps if step % keep_every == 0}
    scored = {step: best[step] for step in steps if best and step in best and not math.isnan(best[step])}
    if scored:
        stay.add(min(scored, key=lambda step: (scored[step], -step)))
    return stay


def read_scores(checkpoints: Path) -> Scores:
    """What `note_scores` has noted, by step."""
    path = checkpoints / SCORES
    if not path.is_file():
        return {}
    return {int(step): values for step, values in json.loads(path.read_bytes()).items()}


def note_scores(checkpoints: Path, step: int, values: Mapping[str, float], *, token: str) -> None:
    """Note metrics of the weights after `step` steps beside the checkpoints; before or after those are committed.

    A folder of a step is never touched again, so they cannot be kept in it.  One writer: rank 0.
    """
    scores = read_scores(checkpoints)
    scores[step] = {**scores.get(step, {}), **{name: float(value) for name, value in values.items()}}
    commit(checkpoints / SCORES, json.dumps({str(key): scores[key] for key in sorted(scores)}), token=token)


def column(scores: Scores, metric: str, *, highest: bool) -> dict[int, float]:
    """One metric by step, turned so that lower is better."""
    sign = -1.0 if highest else 1.0
    return {step: sign * values[metric] for step, values in scores.items() if metric in values}
