"""What is measured of one map beside the recall of known relationships; each measure where its input is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.jobs.evaluation.groups import MIN_COMPLEX
from phenomhpc.jobs.evaluation.mapping import means_by
from phenomhpc.jobs.evaluation.wells import DOSE, Wells
from phenomhpc.maps import (
    ArmRecalls,
    ComplexScores,
    CompoundRetrieval,
    PerturbationScores,
    ProximityBias,
    ReplicateRetrieval,
    complex_coherence,
    compound_gene_retrieval,
    perturbation_consistency,
    perturbation_magnitude,
    proximity_bias,
    recalls_by_arm,
    replicate_retrieval,
)
from phenomhpc.maps.bootstrap import RETRIEVED, keyed
from phenomhpc.maps.checks import Rows

Array = NDArray[np.float64]
Result = TypeVar("Result")
MAX_RETRIEVED = 20_000  # wells that replicate retrieval ranks against each other: its time grows with their square
CONSISTENCY, MAGNITUDE, COHERENCE = "perturbation consistency", "perturbation magnitude", "complex coherence"
PROXIMITY, RETRIEVAL, COMPOUNDS = "proximity bias", "replicate retrieval", "compound-gene retrieval"
BY_ARM = "recall within and between arms"


class _Draws(TypedDict):
    """Of the intervals."""

    bootstrap: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """Results, None where an input is lacking; left_out: (benchmark, reason) of those; num_retrieved: wells that retrieval saw."""

    by_arm: dict[str, ArmRecalls]
    proximity: ProximityBias | None
    consistency: PerturbationScores | None
    magnitude: PerturbationScores | None
    coherence: ComplexScores | None
    retrieval: ReplicateRetrieval | None
    num_retrieved: int
    compounds: CompoundRetrieval | None
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One source, as it is measured.  aligned: f[n, k] of all wells, read in pieces; profiles: f64[g, k] of the map's labels."""

    wells: Wells
    aligned: Rows
    profiles: Array
    labels: list[str]
    annotations: Annotations
    complexes: Mapping[str, Collection[str]]
    config: EvaluateConfig

    @property
    def draws(self) -> _Draws:
        return _Draws(bootstrap=self.config.bootstrap, seed=self.config.seed)

    @property
    def in_map(self) -> NDArray[np.bool_]:
        return np.array([bool(label) for label in self.wells.label])

    @property
    def silent(self) -> list[str]:
        """Unexpressed genes of the map."""
        return sorted(set(self.annotations.unexpressed) & set(self.labels))


class _Tried:
    """Measures that are tried; left_out: (benchmark, reason) of those that lacked an input, or refused it."""

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []

    def __call__(self, name: str, make: Callable[[], Result], *needs: tuple[object, str]) -> Result | None:
        """What `make` gives; None where one of needs (what must be there, the reason it is not) is empty, or it refuses."""
        reason = next((reason for there, reason in needs if not there), None)
        if reason is None:
            try:
                return make()
            except UsageError as error:
                reason = str(error)
        self.left_out.append((name, reason))
        return None


def measure(of: Subject) -> Benchmarks:
    """Every benchmark of one source.  What cannot be measured is left out with its reason, which is the measure's own error."""
    tried = _Tried()
    names = [label for label in of.wells.label if label]
    chosen = retrieved_rows(np.flatnonzero(of.in_map), names, of.config.seed)
    by_arm, proximity = _of_arms(of, tried)
    consistency, magnitude = _of_replicates(of, tried)
    return Benchmarks(
        by_arm=by_arm or {},
        proximity=proximity,
        consistency=consistency,
        magnitude=magnitude,
        coherence=tried(
            COHERENCE,
            lambda: complex_coherence(of.profiles, of.labels, of.complexes, min_genes=MIN_COMPLEX, **of.draws),
            (of.complexes, f"no complex of at least {MIN_COMPLEX} genes is known (complexes.tsv in the annotations)"),
        ),
        retrieval=tried(
            RETRIEVAL,
            lambda: replicate_retrieval(of.aligned[chosen], [of.wells.label[row] for row in chosen], **of.draws),
        ),
        compounds=tried(
            COMPOUNDS,
            lambda: _compounds(of),
            (of.annotations.targets, "no targets of compounds are known (targets.tsv in the annotations)"),
            (any(of.wells.compound), "no well has a compound"),
        ),
        num_retrieved=len(chosen),
        left_out=tuple(tried.left_out),
    )


def _of_arms(of: Subject, tried: _Tried) -> tuple[dict[str, ArmRecalls] | None, ProximityBias | None]:
    """Recall by arm and proximity bias."""
    arms, here = of.annotations.arms, set(of.labels)
    known = {name: pairs for name, pairs in of.annotations.relationships.items() if _any_mapped(pairs, here)}
    some_arms = (arms, "no chromosome arms (gene_chromosome_map.tsv in the annotations)")
    by_arm = tried(
        BY_ARM,
        lambda: recalls_by_arm(of.profiles, of.labels, known, arms, of.config.thresholds, **of.draws),
        some_arms,
    )
    return by_arm, tried(PROXIMITY, lambda: proximity_bias(of.profiles, of.labels, arms, **of.draws), some_arms)


def _of_replicates(of: Subject, tried: _Tried) -> tuple[PerturbationScores | None, PerturbationScores | None]:
    """Consistency and magnitude."""
    wells, silent, no_label = of.wells, of.silent, ~of.in_map
    some_silent = (silent, "no unexpressed gene is in the map (unexpressed.txt in the annotations, or --unexpressed)")
    consistency = tried(
        CONSISTENCY,
        lambda: perturbation_consistency(of.aligned, wells.label, silent, is_left_out=no_label, **of.draws),
        some_silent,
    )
    magnitude = tried(
        MAGNITUDE,
        lambda: perturbation_magnitude(
            of.aligned, wells.label, wells.is_control, silent, is_left_out=no_label & ~wells.is_control, **of.draws
        ),
        some_silent,
        (wells.is_control.any(), "no control wells"),
    )
    return consistency, magnitude


def _any_mapped(pairs: list[tuple[str, str]], labels: set[str]) -> bool:
    return any(first in labels and second in labels for first, second in pairs)


def _compounds(of: Subject) -> CompoundRetrieval:
    """Doses of a compound are profiles of their own under the compound's name."""
    doses, names = means_by(of.aligned, of.wells.compound)
    compounds = [name.rpartition(DOSE)[0] for name in names]
    return compound_gene_retrieval(doses, compounds, of.profiles, of.labels, of.annotations.targets, **of.draws)


def retrieved_rows(rows: NDArray[np.intp], names: list[str], seed: int, most: int = MAX_RETRIEVED) -> NDArray[np.intp]:
    """Rows of as many perturbations as have at most so many wells together, keyed by the seed: all wells of each.

    names: of the rows' perturbations
    """
    if len(rows) <= most:
        return rows
    _, code, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
    order = keyed(seed, RETRIEVED).permutation(len(counts))
    chosen: NDArray[np.intp] = rows[np.isin(code, order[np.cumsum(counts[order]) <= most])]
    return chosen
