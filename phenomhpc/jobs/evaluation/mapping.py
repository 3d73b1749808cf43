"""Wells to a map and its recalls: the steps that every source, stage and block goes through."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.wells import Wells
from phenomhpc.maps import Recall, aggregate, align, mapped_pairs, relationship_recalls

Array = NDArray[np.float64]


def aligned_features(wells: Wells, config: EvaluateConfig) -> Array:
    """Features f64[n, k] of all wells, aligned as the settings say."""
    if config.align == "none":
        return wells.features
    return align(config.align, wells.features, wells.batch, wells.is_control)


def profiles_of(wells: Wells, features: Array) -> tuple[Array, list[str]]:
    """One profile per label of the map: (f64[g, k], the labels)."""
    in_map = np.array([bool(label) for label in wells.label])
    return aggregate(features[in_map], [label for label in wells.label if label])


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
