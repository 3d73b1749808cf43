"""Wells to a map and its recalls: the steps that every source, stage and block goes through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.held import held_array, pieces_of
from phenomhpc.jobs.evaluation.wells import Wells
from phenomhpc.maps import Recall, aggregate_blocks, fit_alignment, mapped_pairs, relationship_recalls
from phenomhpc.maps.checks import Rows

Array = NDArray[np.float64]


def aligned_features(wells: Wells, config: EvaluateConfig) -> Rows:
    """Features f64[n, k] of all wells, aligned as the settings say, computed and held as held.py says; as they came, unaligned."""
    if config.align == "none":
        return wells.features
    alignment = fit_alignment(config.align, wells.features, wells.batch, wells.is_control)
    aligned = held_array(len(wells.label), alignment.num_features, np.float64, Path(config.runs))
    for rows, block in alignment.blocks(wells.features, wells.batch, wells.is_control):
        aligned[rows] = block
    return aligned


def profiles_of(wells: Wells, features: Rows) -> tuple[Array, list[str]]:
    """One profile per label of the map: (f64[g, k], the labels)."""
    return means_by(features, wells.label)


def means_by(features: Rows, names: list[str]) -> tuple[Array, list[str]]:
    """Means f64[g, k] of the rows of every name, and the g names, sorted; rows named "" are left out."""
    left_out = np.array([not name for name in names])
    return aggregate_blocks(pieces_of(features, np.flatnonzero(~left_out)), names, left_out)


def recalls_of(
    profiles: Array, labels: list[str], noun: str, annotations: Annotations, config: EvaluateConfig
) -> dict[str, list[Recall]]:
    """Recall by annotation, of those with a pair in the map.  Raises UsageError where none has one."""
    known = {name: pairs for name, pairs in annotations.relationships.items() if len(mapped_pairs(labels, pairs))}
    if not known:
        raise UsageError(
            f"annotations={config.annotations}: none of its pairs ({', '.join(annotations.relationships)}) has both ends among the "
            f"{len(labels)} {noun}s of the map ({', '.join(labels[:3])}, ...); names must agree"
        )
    return relationship_recalls(profiles, labels, known, config.thresholds, config.bootstrap, config.seed)
