"""The parity gate: figures that decide whether a backend may embed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from phenomhpc.embed.gate import THRESHOLDS, compare, require, sample_wells, some_plates
from phenomhpc.embed.wells import FieldCrops, PlateWells
from phenomhpc.errors import UsageError


def _wells(plate: str, number: int, crops: int = 6) -> PlateWells:
    corners = np.arange(2 * crops, dtype=np.int64).reshape(crops, 2)
    fields = tuple(
        (FieldCrops(field_no=i, field_index=i, site=1, corners=corners),) if i % 5 else () for i in range(number)
    )
    return PlateWells(
        metadata=pl.DataFrame(
            {
                "plate": plate,
                "well": [f"A{i:02d}" for i in range(number)],
                "perturbation": [f"gene {i % 7}" for i in range(number)],
            }
        ),
        fields=fields,
        num_crops=np.array([crops if found else 0 for found in fields]),
        status=tuple("ok" if found else "missing_plane" for found in fields),
    )


def test_the_sample_is_spread_over_plates_wells_and_crops() -> None:
    plates = [f"P{i:03d}" for i in range(100)]
    chosen = some_plates(plates, 48)
    assert chosen == ["P000", "P016", "P033", "P050", "P066", "P083"]
    wells = sample_wells({plate: _wells(plate, 50) for plate in chosen}, 48, 4)
    assert wells.num_wells == 48 and set(wells.num_crops) == {4}
    assert wells.metadata.group_by("plate").len()["len"].to_list() == [8] * 6
    assert all(fields for fields in wells.fields)
    assert wells.fields[0][0].corners.tolist() == [[0, 1], [2, 3], [6, 7], [8, 9]]
    assert some_plates(plates[:1], 48) == ["P000"] and sample_wells({"P": _wells("P", 9)}, 48, 99).num_wells == 7


def _by_hand(wells: PlateWells, vectors: np.ndarray) -> float:
    """Recall of pairs of one perturbation by counting, as in the notes, over all thresholds."""
    centred = vectors / wells.num_crops[:, None]
    centred = centred - centred.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    null = np.sort((unit @ unit.T)[i, j])
    names = wells.metadata["perturbation"].to_numpy()
    known = (unit @ unit.T)[i, j][names[i] == names[j]]
    left, right = np.searchsorted(null, known, "left") / len(null), np.searchsorted(null, known, "right") / len(null)
    return float(np.mean([((right <= lo) | (left >= hi)).mean() for lo, hi in THRESHOLDS]))


def test_the_figures_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    wells = sample_wells({"P": _wells("P", 60), "Q": _wells("Q", 60)}, 48, 4)
    reference = rng.normal(3.0, 1.0, (48, 24))
    other = reference + rng.normal(0, 0.02, reference.shape)
    (found,) = compare(wells, reference, other, [24])
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(reference, other, strict=True)]
    assert found.min_cosine == pytest.approx(min(cosines), abs=1e-12)
    assert found.worst == "/".join(wells.metadata.select("plate", "well").row(int(np.argmin(cosines))))
    assert found.relation == "perturbation" and found.num_wells == 48 and found.num_crops == 4 * 48
    assert found.reference_recall == pytest.approx(_by_hand(wells, reference), abs=1e-12)
    assert found.recall == pytest.approx(_by_hand(wells, other), abs=1e-12)


def test_each_block_is_looked_at_by_itself_and_the_worst_decides() -> None:
    wells = sample_wells({"P": _wells("P", 60)}, 48, 4)
    rng = np.random.default_rng(1)
    loud, quiet = rng.normal(0, 1000.0, (wells.num_wells, 8)), rng.normal(0, 1.0, (wells.num_wells, 8))
    reference, broken = np.hstack([loud, quiet]), np.hstack([loud, quiet[::-1]])
    limits = {"min_cosine": 0.9999, "max_recall_change": 0.001}
    assert require(compare(wells, reference, reference, [8, 8]), "x", **limits).min_cosine == pytest.approx(1.0)
    assert compare(wells, reference, broken, [16])[0].min_cosine > 0.9999
    with pytest.raises(UsageError, match=r"x does not give what fp32 torch gives: .* least cosine .* -?0\.\d+ \(P/A"):
        require(compare(wells, reference, broken, [8, 8]), "x", **limits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    wells = sample_wells({"P": _wells("P", 60)}, 16, 4)
    reference = np.random.default_rng(2).normal(size=(wells.num_wells, 8))
    other = reference.copy()
    other[3, 2] = value
    (found,) = compare(wells, reference, other, [8])
    assert found.min_cosine == -1.0
    with pytest.raises(UsageError):
        require([found], "x", min_cosine=0.0, max_recall_change=1.0)


def test_recall_alone_may_refuse() -> None:
    wells = sample_wells({"P": _wells("P", 60)}, 48, 4)
    (found,) = compare(wells, *[np.random.default_rng(3).normal(size=(wells.num_wells, 8))] * 2, [8])
    limits = {"min_cosine": 0.9999, "max_recall_change": 0.001}
    require([replace(found, recall=found.reference_recall + 0.0009)], "x", **limits)
    with pytest.raises(UsageError, match="recall of"):
        require([replace(found, recall=found.reference_recall - 0.0011)], "x", **limits)


def test_without_pairs_recall_says_nothing_and_that_must_be_allowed() -> None:
    wells = sample_wells({"P": _wells("P", 3)}, 48, 4)
    (found,) = compare(wells, *[np.random.default_rng(4).normal(size=(wells.num_wells, 8))] * 2, [8])
    assert (found.num_wells, found.relation, found.num_pairs) == (2, "", 0)
    assert found.recall is None and found.reference_recall is None and found.recall_change is None
    with pytest.raises(
        UsageError, match=r"x cannot be held against fp32 torch: 2 wells.*recall not looked at.*=1"
    ) as error:
        require([found], "x", min_cosine=0.9999, max_recall_change=0.999)
    assert "\n" not in str(error.value)
    passed = require([found], "x", min_cosine=0.9999, max_recall_change=1.0)
    assert "recall not looked at, since no relation (perturbation, gene," in passed.words()
    with pytest.raises(UsageError, match="x does not give what fp32 torch gives"):
        require([replace(found, min_cosine=0.9)], "x", min_cosine=0.9999, max_recall_change=1.0)
