"""Which checkpoints stay: the latest few, every so-manieth for good, the best by a metric."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from phenomhpc.commit import fsync_folder
from phenomhpc.config.training import CheckpointConfig
from phenomhpc.models.checkpoint import COMMITTED, damage, step_folders
from phenomhpc.runs import commit

SCORES = "scores.json"
# The one score of which more is better.
PROBE_ACCURACY = "probe_accuracy"
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


def superseded(checkpoints: Path, config: CheckpointConfig) -> list[Path]:
    """Step folders that nothing keeps, oldest first.

    Torn ones go with those that are older than the newest `keep`; nothing newer than the oldest of these is ever named, so
    that the newest usable one is safe whatever becomes of others.
    """
    found = step_folders(checkpoints)
    usable = [step for step, entry in found.items() if damage(entry) is None]
    if not usable:
        return []
    best = None
    if config.keep_best is not None:
        best = column(read_scores(checkpoints), config.keep_best, highest=config.keep_best == PROBE_ACCURACY)
    stay = retained(usable, keep=config.keep, keep_every=config.keep_every, best=best)
    oldest = usable[-config.keep :][0]
    return [entry for step, entry in found.items() if step < oldest and step not in stay]


def delete(folder: Path) -> None:
    """Remove a step folder; a kill in between leaves one without its mark, which is never read."""
    (folder / COMMITTED).unlink(missing_ok=True)
    fsync_folder(folder)
    shutil.rmtree(folder)
