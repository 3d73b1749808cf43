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


def measure(
    wells: Wells,
    aligned: Rows,
    profiles: Array,
    labels: list[str],
    annotations: Annotations,
    complexes: Mapping[str, Collection[str]],
    config: EvaluateConfig,
) -> Benchmarks:
    """Every benchmark of one source.  aligned: f[n, k] of all wells, read in pieces; profiles: f64[g, k] of the map's labels.

    What cannot be measured is left out with its reason, which is the measure's own error.
    """
    left_out: list[tuple[str, str]] = []
    draws = _Draws(bootstrap=config.bootstrap, seed=config.seed)
    in_map = np.array([bool(label) for label in wells.label])
    names = [label for label in wells.label if label]
    silent = sorted(set(annotations.unexpressed) & set(labels))
    known = {name: pairs for name, pairs in annotations.relationships.items() if _any_mapped(pairs, set(labels))}

    def tried(name: str, make: Callable[[], Result], *needs: tuple[object, str]) -> Result | None:
        for there, reason in needs:
            if not there:
                left_out.append((name, reason))
                return None
        try:
            return make()
        except UsageError as error:
            left_out.append((name, str(error)))
            return None

    some_silent = (silent, "no unexpressed gene is in the map (unexpressed.txt in the annotations, or --unexpressed)")
    some_arms = (annotations.arms, "no chromosome arms (gene_chromosome_map.tsv in the annotations)")
    by_arm = tried(
        BY_ARM,
        lambda: recalls_by_arm(profiles, labels, known, annotations.arms, config.thresholds, **draws),
        some_arms,
    )
    chosen = retrieved_rows(np.flatnonzero(in_map), names, config.seed)
    compounds = [name for name in wells.compound if name]
    return Benchmarks(
        by_arm=by_arm or {},
        proximity=tried(PROXIMITY, lambda: proximity_bias(profiles, labels, annotations.arms, **draws), some_arms),
        consistency=tried(
            CONSISTENCY,
            lambda: perturbation_consistency(aligned, wells.label, silent, is_left_out=~in_map, **draws),
            some_silent,
        ),
        magnitude=tried(
            MAGNITUDE,
            lambda: perturbation_magnitude(
                aligned, wells.label, wells.is_control, silent, is_left_out=~in_map & ~wells.is_control, **draws
            ),
            some_silent,
            (wells.is_control.any(), "no control wells"),
        ),
        coherence=tried(
            COHERENCE,
            lambda: complex_coherence(profiles, labels, complexes, min_genes=MIN_COMPLEX, **draws),
            (complexes, f"no complex of at least {MIN_COMPLEX} genes is known (complexes.tsv in the annotations)"),
        ),
        retrieval=tried(
            RETRIEVAL, lambda: replicate_retrieval(aligned[chosen], [wells.label[row] for row in chosen], **draws)
        ),
        compounds=tried(
            COMPOUNDS,
            lambda: _compounds(aligned, wells, profiles, labels, annotations, draws),
            (annotations.targets, "no targets of compounds are known (targets.tsv in the annotations)"),
            (compounds, "no well has a compound"),
        ),
        num_retrieved=len(chosen),
        left_out=tuple(left_out),
    )


def _any_mapped(pairs: list[tuple[str, str]], labels: set[str]) -> bool:
    return any(first in labels and second in labels for first, second in pairs)


def _compounds(
    aligned: Rows,
    wells: Wells,
    profiles: Array,
    labels: list[str],
    annotations: Annotations,
    draws: _Draws,
) -> CompoundRetrieval:
    """Doses of a compound are profiles of their own under the compound's name."""
    doses, names = means_by(aligned, wells.compound)
    compounds = [name.rpartition(DOSE)[0] for name in names]
    return compound_gene_retrieval(doses, compounds, profiles, labels, annotations.targets, **draws)


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
