"""Maps of the embeddings and of their baselines, scored in the same way, and the encoder's at every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.batches import Seen, look
from phenomhpc.jobs.evaluation.benchmarks import Benchmarks, Subject, measure
from phenomhpc.jobs.evaluation.blocks import BlockScore, score_blocks
from phenomhpc.jobs.evaluation.groups import complexes
from phenomhpc.jobs.evaluation.held import held_array
from phenomhpc.jobs.evaluation.mapping import aligned_features, profiles_of, recalls_of
from phenomhpc.jobs.evaluation.wells import Wells, read_wells
from phenomhpc.maps import (
    ProximityBias,
    Recall,
    arm_correction,
    correctable_arms,
    proximity_bias,
    random_features,
)
from phenomhpc.maps.checks import Rows

ENCODER = "encoder"
UNTRAINED = "untrained"
RANDOM = "random"
RAW, ALIGNED, CORRECTED = "not aligned", "aligned", "aligned, arms corrected"
Array = NDArray[np.float64]
Told = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ScoredMap:
    """One map and its scores.  profiles: f64[g, d], one per label; recalls: by annotation; benchmarks: all others."""

    source: str
    labels: list[str]
    profiles: Array
    recalls: dict[str, list[Recall]]
    benchmarks: Benchmarks


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The encoder's map on its way: what was done, and what of known relationships and of arms' bias is in it then."""

    name: str
    profiles: Array
    recalls: dict[str, list[Recall]]
    proximity: ProximityBias | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found: the encoder's map, its baselines, and what they were made of.

    stages: of the encoder, in order; seen: its wells as points before and after alignment; complexes: where they are from, their
    genes; corrected_arms: number of unexpressed genes by arm, of arms that can be corrected; set_aside: (thing, reason)
    """

    wells: Wells
    annotations: Annotations
    maps: tuple[ScoredMap, ...]
    stages: tuple[Stage, ...]
    seen: Seen
    complexes: tuple[str, dict[str, list[str]]]
    blocks: tuple[BlockScore, ...]
    corrected_arms: dict[str, int]
    set_aside: tuple[tuple[str, str], ...]

    @property
    def encoder(self) -> ScoredMap:
        return self.maps[0]

    def stage(self, name: str) -> Stage | None:
        """The stage of that name, if the map went through it."""
        return next((stage for stage in self.stages if stage.name == name), None)


def source_names(source: Path) -> list[str]:
    """What is scored: the embeddings, each of their baselines (untrained ones first), random features."""
    return [ENCODER, *sorted(EmbeddingsPaths(source).baselines(), key=lambda name: (name != UNTRAINED, name)), RANDOM]


def evaluate(
    config: EvaluateConfig, source: Path, annotations: Annotations, told: Told, blocks: Path | None = None
) -> Evaluation:
    """Score every one of `source_names`; `told` is called with the name of each before it is scored, and may raise.

    blocks: the folder whose blocks are compared; None: they are not.
    Raises UsageError for embeddings that cannot be aligned or compared; a baseline that cannot is set aside.
    """
    told(ENCODER)
    wells = read_wells(source, config)
    aligned = aligned_features(wells, config)
    encoder = _score(ENCODER, wells, aligned, annotations, config)
    arms = correctable_arms(encoder.labels, annotations.arms, annotations.unexpressed)
    stages = _stages(wells, aligned, arms, annotations, config)
    seen = look(wells, aligned if config.align != "none" else None, config.seed)
    del aligned
    maps, set_aside = [encoder], list(annotations.set_aside)
    for name in source_names(source)[1:]:
        told(name)
        try:
            other = _baseline(name, wells, source, config)
            maps.append(_score(name, other, aligned_features(other, config), annotations, config))
        except UsageError as error:
            set_aside.append((f"baseline {name}", str(error)))
    absent = [name for name in annotations.relationships if name not in encoder.recalls]
    set_aside += [(name, "no pair with both ends in the map") for name in absent]
    return Evaluation(
        wells=wells,
        annotations=annotations,
        maps=tuple(maps),
        stages=stages,
        seen=seen,
        complexes=complexes(encoder.labels, annotations),
        blocks=() if blocks is None else score_blocks(config, blocks, annotations, told),
        corrected_arms=arms,
        set_aside=tuple(set_aside),
    )


def _baseline(name: str, wells: Wells, source: Path, config: EvaluateConfig) -> Wells:
    if name == RANDOM:
        num_wells, num_features = wells.features.shape
        features = held_array(num_wells, num_features, np.float64, Path(config.runs))
        return wells.with_features(random_features(num_wells, num_features, config.seed, out=features))
    return read_wells(EmbeddingsPaths(source).baseline(name).root, config)


def _score(source: str, wells: Wells, aligned: Rows, annotations: Annotations, config: EvaluateConfig) -> ScoredMap:
    profiles, labels = profiles_of(wells, aligned)
    if config.arm_correction:
        profiles = arm_correction(profiles, labels, annotations.arms, annotations.unexpressed)
    subject = Subject(
        wells=wells,
        aligned=aligned,
        profiles=profiles,
        labels=labels,
        annotations=annotations,
        complexes=complexes(labels, annotations)[1],
        config=config,
    )
    return ScoredMap(
        source=source,
        labels=labels,
        profiles=profiles,
        recalls=recalls_of(profiles, labels, wells.noun, annotations, config),
        benchmarks=measure(subject),
    )


def _stages(
    wells: Wells, aligned: Rows, arms: dict[str, int], annotations: Annotations, config: EvaluateConfig
) -> tuple[Stage, ...]:
    """The map before alignment, after it, and with arms corrected, where these are different things."""
    profiles, labels = profiles_of(wells, aligned)
    found = [(ALIGNED, profiles)]
    if config.align == "none":
        found = [(RAW, profiles)]
    else:
        found.insert(0, (RAW, profiles_of(wells, wells.features)[0]))
    if arms:
        found.append((CORRECTED, arm_correction(profiles, labels, annotations.arms, annotations.unexpressed)))
    return tuple(
        Stage(
            name=name,
            profiles=one,
            recalls=recalls_of(one, labels, wells.noun, annotations, config),
            proximity=_bias(one, labels, annotations, config),
        )
        for name, one in found
    )


def _bias(profiles: Array, labels: list[str], annotations: Annotations, config: EvaluateConfig) -> ProximityBias | None:
    try:
        return proximity_bias(profiles, labels, annotations.arms, bootstrap=config.bootstrap, seed=config.seed)
    except UsageError:  # too few genes on any arm; the benchmark of the same name says so
        return None
