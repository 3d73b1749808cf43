"""Which block of the encoder embeds best: every block that is there, probed and scored in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.mapping import aligned_features, profiles_of, recalls_of
from phenomhpc.jobs.evaluation.wells import Wells, read_wells
from phenomhpc.maps import Recall
from phenomhpc.maps.bootstrap import HALVES, keyed
from phenomhpc.maps.checks import Rows, read_rows
from phenomhpc.maps.probe import Probe, linear_probe

MAX_CLASSES = 200  # perturbations that the probe tells apart: those with the most wells


@dataclass(frozen=True, kw_only=True)
class BlockScore:
    """One block.  probe: None where the wells do not allow one; reason says why; recalls: by annotation, of its map."""

    block: int
    probe: Probe | None
    reason: str
    recalls: dict[str, list[Recall]]

    @property
    def mean_recall(self) -> float:
        """Over annotations, at the first thresholds."""
        return float(np.mean([recalls[0].recall for recalls in self.recalls.values()]))


def blocks_of(source: Path) -> dict[int, Path]:
    """Folders of the blocks that are embedded there, by number."""
    return {number: paths.root for number, paths in EmbeddingsPaths(source).blocks().items()}


def score_blocks(
    config: EvaluateConfig, source: Path, annotations: Annotations, told: Callable[[str], None]
) -> tuple[BlockScore, ...]:
    """Every block, ascending."""
    found = []
    for number, folder in blocks_of(source).items():
        told(f"block {number}")
        wells = read_wells(folder, config)
        aligned = aligned_features(wells, config)
        profiles, labels = profiles_of(wells, aligned)
        try:
            probe, reason = probe_wells(wells, aligned, config), ""
        except UsageError as error:
            probe, reason = None, str(error)
        recalls = recalls_of(profiles, labels, wells.noun, annotations, config)
        found.append(BlockScore(block=number, probe=probe, reason=reason, recalls=recalls))
    return tuple(found)


def best_block(scores: tuple[BlockScore, ...]) -> BlockScore:
    """The one that a linear probe reads best; where it cannot be told so, the one with the highest mean recall."""
    if all(score.probe is not None for score in scores):
        return max(scores, key=lambda score: (score.probe.accuracy if score.probe else 0.0, score.mean_recall))
    return max(scores, key=lambda score: score.mean_recall)


def probe_wells(wells: Wells, aligned: Rows, config: EvaluateConfig) -> Probe:
    """A linear classifier on half of each perturbation's wells, asked about the other half.

    Wells are parted by batch, so that what is learned must hold on plates that were not seen; where fewer than two
    perturbations lie in both halves, by chance within each perturbation.  Raises UsageError where that is not possible either.
    """
    counts = Counter(label for label in wells.label if label)
    classes = {label for label, number in counts.most_common(MAX_CLASSES) if number > 1}
    rows = np.array([row for row, label in enumerate(wells.label) if label in classes], dtype=np.intp)
    names = np.array([wells.label[row] for row in rows])
    if len(classes) < 2:
        raise UsageError(
            f"probe: {len(classes)} perturbations with two wells or more; at least 2 are needed to be told apart"
        )
    batches = np.array([wells.batch[row] for row in rows])
    order = {name: number for number, name in enumerate(sorted(set(batches)))}
    held_out = np.array([order[name] % 2 == 1 for name in batches])
    both = set(names[held_out]) & set(names[~held_out])
    if len(both) < 2:
        held_out = _every_other(names, config.seed)
        both = set(names[held_out]) & set(names[~held_out])
    kept = np.isin(names, sorted(both))
    train, test = kept & ~held_out, kept & held_out
    return linear_probe(
        read_rows(aligned, rows[train]),
        names[train].tolist(),
        read_rows(aligned, rows[test]),
        names[test].tolist(),
        draws=config.bootstrap,
        seed=config.seed,
    )


def _every_other(names: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """Half of the rows of each name, keyed by the seed."""
    shuffled = keyed(seed, HALVES).permutation(len(names))
    order = shuffled[np.argsort(names[shuffled], kind="stable")]
    starts = np.flatnonzero(np.r_[True, names[order][1:] != names[order][:-1]])
    place = np.arange(len(names)) - np.repeat(starts, np.diff(np.r_[starts, len(names)]))
    held_out = np.zeros(len(names), dtype=np.bool_)
    held_out[order] = place % 2 == 1
    return held_out
