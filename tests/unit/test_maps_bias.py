"""Chromosome arms and their correction."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.maps import arm_correction, arms_of, correctable_arms, cosine_map


@pytest.mark.parametrize(
    ("locus", "arm"),
    [
        ("19q13.43", "19q"),
        ("1p36.33-p36.32", "1p"),
        ("Xq28", "Xq"),
        ("3pter-p14", "3p"),
        ("17q", "17q"),
        ("Yp11.2", "Yp"),
        ("6p21.3 alternate reference locus", "6p"),
        ("22q11.2-qter", "22q"),
        ("20", None),
        ("16p12-q12", None),
        ("21pter-qter", None),
        ("Xp22.33 and Yp11.32", None),
        ("17p12-p11 and 17q12-q21", None),
        ("reserved", None),
        ("mitochondria", None),
        ("unplaced", None),
        ("22 unplaced", None),
        ("13cen, GRCh38 novel patch", None),
        ("HSCHR6_MHC_COXp21.33", None),
        ("12 alternate reference locus", None),
        ("3 or 11p11-qter", None),
        ("", None),
    ],
)
def test_an_arm_is_taken_from_a_locus_that_names_one(locus: str, arm: str | None) -> None:
    assert arms_of({"gene": locus}) == ({} if arm is None else {"gene": arm})


@pytest.mark.shared
def test_the_published_gene_map_gives_the_arms_of_a_human_karyotype(shared_data: Path) -> None:
    with (shared_data / "annotations" / "gene_chromosome_map.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    arms = arms_of((row["Approved_symbol"], row["Locus"]) for row in rows)
    assert set(arms.values()) == {f"{name}{arm}" for name in [*range(1, 23), "X", "Y"] for arm in "pq"}
    assert arms["A1BG"] == "19q" and arms["A2M"] == "12p"
    assert 45_000 < len(arms) < len({row["Approved_symbol"] for row in rows})
    chromosomes: dict[str, set[str]] = {}
    for row in rows:
        chromosomes.setdefault(row["Approved_symbol"], set()).add(row["Chromosome"])
    assert all(arm[:-1] in chromosomes[gene] for gene, arm in arms.items())


def test_a_gene_listed_on_two_arms_is_on_none() -> None:
    assert arms_of([("A", "1p36"), ("B", "2q11"), ("A", "3q21"), ("B", "2q13")]) == {"B": "2q"}


def _biased(num_arm: int = 40, num_silent: int = 21) -> tuple[np.ndarray, list[str], dict[str, str], set[str]]:  # type: ignore[type-arg]
    generator = np.random.default_rng(8)
    features = generator.normal(size=(num_arm + 60, 24))
    features[:num_arm] += 3.0 * generator.normal(size=24)
    labels = [f"g{number}" for number in range(len(features))]
    arms = {label: "1p" if row < num_arm else "2q" for row, label in enumerate(labels[:-5])}
    return features, labels, arms, set(labels[:num_silent]) | set(labels[num_arm : num_arm + 20])


def test_the_mean_of_unexpressed_genes_is_subtracted_from_arms_with_more_than_twenty() -> None:
    features, labels, arms, silent = _biased()
    assert correctable_arms(labels, arms, silent) == {"1p": 21}
    corrected = arm_correction(features, labels, arms, silent)
    np.testing.assert_allclose(corrected[:40], features[:40] - features[:21].mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(corrected[40:], features[40:])


def test_exactly_twenty_unexpressed_genes_are_not_enough() -> None:
    features, labels, arms, silent = _biased(num_silent=20)
    assert correctable_arms(labels, arms, silent) == {}
    np.testing.assert_array_equal(arm_correction(features, labels, arms, silent), features)


def test_a_planted_arm_bias_disappears() -> None:
    features, labels, arms, silent = _biased()
    within = np.triu_indices(40, 1)
    assert cosine_map(features)[:40, :40][within].mean() > 0.8
    assert abs(cosine_map(arm_correction(features, labels, arms, silent))[:40, :40][within].mean()) < 0.05


def test_duplicate_labels_and_absent_arms_are_refused() -> None:
    with pytest.raises(UsageError, match="label a: more than one"):
        arm_correction(np.ones((2, 2)), ["a", "a"], {"a": "1p"}, ["a"])
    with pytest.raises(UsageError, match="no gene has a chromosome arm"):
        arm_correction(np.ones((2, 2)), ["a", "b"], {}, ["a"])
