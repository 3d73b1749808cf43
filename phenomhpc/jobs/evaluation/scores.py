"""Maps of the embeddings and of their baselines, scored in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.wells import Wells, read_wells
from phenomhpc.maps import (
    Recall,
    aggregate,
    arm_correction,
    center_scale,
    correctable_arms,
    mapped_pairs,
    pca_cs,
    random_features,
    relationship_recalls,
    tvn,
)

ENCODER = "encoder"
UNTRAINED = "untrained"
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ScoredMap:
    """One map and its scores.  profiles: f64[g, d], one per label; recalls: by annotation."""

    source: str
    labels: list[str]
    profiles: NDArray[np.float64]
    recalls: dict[str, list[Recall]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found: the encoder's map, its baselines, and what they were made of.

    corrected_arms: number of unexpressed genes by arm; set_aside: (thing, reason)
    """

    wells: Wells
    annotations: Annotations
    maps: tuple[ScoredMap, ...]
    corrected_arms: dict[str, int]
    set_aside: tuple[tuple[str, str], ...]

    @property
    def encoder(self) -> ScoredMap:
        return self.maps[0]


def source_names(source: Path) -> list[str]:
    """What is scored: the embeddings, each of their baselines (untrained ones first), random features."""
    return [ENCODER, *sorted(EmbeddingsPaths(source).baselines(), key=lambda name: (name != UNTRAINED, name)), RANDOM]


def evaluate(config: EvaluateConfig, source: Path, annotations: Annotations, told: Callable[[str], None]) -> Evaluation:
    """Score every one of `source_names`; `told` is called with the name of each before it is scored, and may raise.

    Raises UsageError for embeddings that cannot be aligned or compared; a baseline that cannot is set aside.
    """
    maps: list[ScoredMap] = []
    set_aside = list(annotations.set_aside)
    wells = read_wells(source, config)
    for name in source_names(source):
        told(name)
        try:
            maps.append(_score(name, _wells_of(name, wells, source, config), annotations, config))
        except UsageError as error:
            if name == ENCODER:
                raise
            set_aside.append((f"baseline {name}", str(error)))
    absent = [name for name in annotations.relationships if name not in maps[0].recalls]
    set_aside += [(name, "no pair with both ends in the map") for name in absent]
    silent = annotations.unexpressed if config.arm_correction else ()
    arms = correctable_arms(maps[0].labels, annotations.arms, silent)
    return Evaluation(
        wells=wells, annotations=annotations, maps=tuple(maps), corrected_arms=arms, set_aside=tuple(set_aside)
    )


def _wells_of(name: str, wells: Wells, source: Path, config: EvaluateConfig) -> Wells:
    if name == ENCODER:
        return wells
    if name == RANDOM:
        num_wells, num_features = wells.features.shape
        return wells.with_features(random_features(num_wells, num_features, config.seed))
    return read_wells(EmbeddingsPaths(source).baseline(name).root, config)


def _score(source: str, wells: Wells, annotations: Annotations, config: EvaluateConfig) -> ScoredMap:
    aligned = _align(wells, config)
    in_map = np.array([bool(label) for label in wells.label])
    profiles, labels = aggregate(aligned[in_map], [label for label in wells.label if label])
    if config.arm_correction:
        profiles = arm_correction(profiles, labels, annotations.arms, annotations.unexpressed)
    known = {name: pairs for name, pairs in annotations.relationships.items() if len(mapped_pairs(labels, pairs))}
    if not known:
        raise UsageError(
            f"annotations={config.annotations}: none of its pairs ({', '.join(annotations.relationships)}) has both ends among the "
            f"{len(labels)} {wells.noun}s of the map ({', '.join(labels[:3])}, ...); names must agree"
        )
    recalls = relationship_recalls(profiles, labels, known, config.thresholds, config.bootstrap, config.seed)
    return ScoredMap(source=source, labels=labels, profiles=profiles, recalls=recalls)


def _align(wells: Wells, config: EvaluateConfig) -> NDArray[np.float64]:
    how = {"center_scale": center_scale, "pca_cs": pca_cs, "tvn": tvn}
    if config.align == "none":
        return wells.features
    if config.align == "tvn_efaar":
        return tvn(wells.features, wells.batch, wells.is_control, compat="efaar")
    return how[config.align](wells.features, wells.batch, wells.is_control)


def recall_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every score: source, annotation, and the fields of Recall with its chance level."""
    return [
        {"source": scored.source, "annotation": name, **asdict(recall), "chance": recall.chance}
        for scored in evaluation.maps
        for name, recalls in scored.recalls.items()
        for recall in recalls
    ]
