"""Truth planted into wells is found: batch effects hide it until alignment, arm bias fakes it until correction."""

from __future__ import annotations

import numpy as np
import pytest

from phenomhpc.maps import (
    aggregate,
    align,
    arm_correction,
    correctable_arms,
    perturbation_consistency,
    perturbation_magnitude,
    proximity_bias,
    recalls_by_arm,
    relationship_recall,
)
from tests.unit.planted_maps import PlantedWells, planted_wells


def profiles(wells: PlantedWells, method: str | None) -> tuple[np.ndarray, list[str]]:  # type: ignore[type-arg]
    features = wells.features if method is None else align(method, wells.features, wells.batch, wells.is_control)
    perturbed = ~wells.is_control
    return aggregate(features[perturbed], np.array(wells.label)[perturbed])


def recall(wells: PlantedWells, method: str | None) -> float:
    return relationship_recall(*profiles(wells, method), wells.pairs)[0].recall


@pytest.mark.parametrize("method", ["center_scale", "pca_cs", "tvn", "coral"])
def test_recall_rises_from_chance_to_its_planted_level_through_alignment(method: str) -> None:
    wells = planted_wells(batch_effect=8.0)
    planted = wells.planted_recall(chance=0.10)
    assert planted == pytest.approx(0.64)
    assert abs(recall(wells, None) - 0.10) < 0.06
    assert abs(recall(wells, method) - planted) < 0.06
    assert abs(recall(planted_wells(), None) - planted) < 0.06


def test_the_published_tvn_leaves_batch_offsets_that_ours_takes_out() -> None:
    wells = planted_wells(batch_effect=8.0)
    assert recall(wells, "tvn_efaar") < recall(wells, "tvn") - 0.05


def test_planted_arm_bias_disappears_by_correction_without_recall_falling() -> None:
    wells = planted_wells(arm_bias=1.0, strength=1.5)
    features, genes = profiles(wells, "tvn")
    assert len(correctable_arms(genes, wells.arms, wells.unexpressed)) == 12
    corrected = arm_correction(features, genes, wells.arms, wells.unexpressed)
    before, after = (proximity_bias(map_, genes, wells.arms) for map_ in (features, corrected))
    assert before.ci_low is not None and before.ci_low > 0.9
    assert abs(after.effect - 0.5) < 0.03  # a 24th too low: the unexpressed genes are parts of the mean they lose
    biased, mended = (
        recalls_by_arm(map_, genes, {"known": wells.pairs}, wells.arms)["known"] for map_ in (features, corrected)
    )
    planted = wells.planted_recall(chance=0.10)
    assert biased.within[0].recall == 1.0 and biased.between[0].recall < planted - 0.1
    assert abs(mended.within[0].recall - planted) < 0.06 and abs(mended.between[0].recall - planted) < 0.06
    total = [relationship_recall(map_, genes, wells.pairs)[0].recall for map_ in (features, corrected)]
    assert total[1] >= total[0] and abs(total[1] - planted) < 0.06


def test_perturbations_that_do_something_are_told_from_those_that_do_not() -> None:
    wells = planted_wells(batch_effect=4.0, replicates=5)
    aligned = align("tvn", wells.features, wells.batch, wells.is_control)
    perturbed = ~wells.is_control
    labels = np.array(wells.label)
    magnitude = perturbation_magnitude(aligned, labels, wells.is_control, wells.unexpressed)
    consistency = perturbation_consistency(aligned[perturbed], labels[perturbed], wells.unexpressed)
    for scores in (magnitude, consistency):
        assert scores.num_null == len(wells.unexpressed)
        hit = dict(zip(scores.labels, scores.p_values <= 0.05, strict=True))
        real = {gene for pair in wells.real_pairs for gene in pair}
        assert np.mean([hit[gene] for gene in real]) > 0.95
        assert np.mean([hit[gene] for gene in scores.labels if gene not in real]) < 0.12
        assert scores.interval is not None and scores.interval[0] <= scores.hit_rate <= scores.interval[1]
