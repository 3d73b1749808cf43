"""Recall by chromosome arm, and of two maps, against loops over one cosine matrix; on the published annotations, too."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.maps import arms_by_position, arms_of, compare_recalls, cosine_map, recalls_by_arm, relationship_recalls
from tests.unit import naive_maps as naive

THRESHOLDS = ((0.05, 0.95), (0.1, 0.9))


def random_map(num: int, seed: int = 0, dim: int = 12) -> tuple[np.ndarray, list[str]]:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(size=(num, dim)), [f"g{number:04d}" for number in range(num)]


def some_pairs(labels: list[str], num: int, seed: int = 1) -> list[tuple[str, str]]:
    rows = np.random.default_rng(seed).integers(0, len(labels), size=(num, 2))
    return [(labels[i], labels[j]) for i, j in rows]


def test_pairs_within_and_between_arms_are_scored_against_the_null_of_all() -> None:
    features, labels = random_map(300)
    pairs = some_pairs(labels, 900)
    arms = {label: f"{number % 5}p" for number, label in enumerate(labels[:-40])}
    cosines = cosine_map(features)
    known = naive.pairs_in_map(labels, pairs)
    within, between, unplaced = [], [], 0
    for i, j in known:
        if labels[i] not in arms or labels[j] not in arms:
            unplaced += 1
        elif arms[labels[i]] == arms[labels[j]]:
            within.append((i, j))
        else:
            between.append((i, j))
    result = recalls_by_arm(features, labels, {"known": pairs}, arms, THRESHOLDS)["known"]
    assert result.num_unplaced == unplaced > 0
    for number, (lo, hi) in enumerate(THRESHOLDS):
        for recalls, rows in ((result.within, within), (result.between, between)):
            assert abs(recalls[number].recall - naive.recall(cosines, rows, lo, hi)) < 1e-12
            assert (recalls[number].num_pairs, recalls[number].num_null) == (len(rows), 300 * 299 // 2)


def test_an_annotation_without_pairs_on_one_arm_has_no_recall_there() -> None:
    features, labels = random_map(30)
    arms = {label: f"{number}p" for number, label in enumerate(labels)}
    result = recalls_by_arm(features, labels, {"known": some_pairs(labels, 20)}, arms)["known"]
    assert result.within == () and len(result.between) == 2
    with pytest.raises(UsageError, match=r"both ends among the 0 of .* labels on known arms"):
        recalls_by_arm(features, labels, {"known": some_pairs(labels, 20)}, {"elsewhere": "1p"})


def test_two_maps_are_compared_over_the_same_pairs_and_genes() -> None:
    features, labels = random_map(200)
    other, other_labels = random_map(180, seed=5, dim=7)
    other_labels = other_labels[::-1]
    pairs = some_pairs(labels, 600)
    common = sorted(set(labels) & set(other_labels))
    assert len(common) == 180
    first = cosine_map(features[[labels.index(name) for name in common]])
    second = cosine_map(other[[other_labels.index(name) for name in common]])
    known = naive.pairs_in_map(common, pairs)
    for result, (lo, hi) in zip(
        compare_recalls(features, labels, other, other_labels, {"known": pairs}, THRESHOLDS)["known"],
        THRESHOLDS,
        strict=True,
    ):
        hit = naive.hits(naive.null_of(first), np.array([first[pair] for pair in known]), lo, hi)
        other_hit = naive.hits(naive.null_of(second), np.array([second[pair] for pair in known]), lo, hi)
        assert abs(result.recall - hit.mean()) < 1e-12 and abs(result.other_recall - other_hit.mean()) < 1e-12
        assert abs(result.difference - (other_hit.mean() - hit.mean())) < 1e-12
        assert (result.num_pairs, result.num_labels) == (len(known), 180)
        assert result.num_only_first == (hit & ~other_hit).sum() and result.num_only_other == (other_hit & ~hit).sum()
        paired = other_hit.astype(float) - hit
        draws = np.random.default_rng(0).choice(paired, size=(4000, len(paired))).mean(axis=1)
        np.testing.assert_allclose(result.interval, np.quantile(draws, [0.025, 0.975]), atol=0.012)


def test_a_map_does_not_differ_from_itself_and_pairing_narrows_the_interval() -> None:
    features, labels = random_map(200)
    pairs = some_pairs(labels, 600)
    same = compare_recalls(features, labels, features * 3.0, labels, {"known": pairs})["known"][0]
    assert (same.difference, same.interval, same.num_only_first, same.num_only_other) == (0.0, (0.0, 0.0), 0, 0)
    nearly = features + 0.05 * np.random.default_rng(9).normal(size=features.shape)
    paired = compare_recalls(features, labels, nearly, labels, {"known": pairs})["known"][0]
    alone = relationship_recalls(features, labels, {"known": pairs})["known"][0]
    assert paired.interval is not None and alone.interval is not None
    assert paired.interval[1] - paired.interval[0] < alone.interval[1] - alone.interval[0]
    assert compare_recalls(features, labels, nearly, labels, {"known": pairs}, bootstrap=0)["known"][0].interval is None


def test_maps_with_nothing_in_common_are_refused() -> None:
    features, labels = random_map(5)
    with pytest.raises(UsageError, match=r"compare: the maps have 0 labels in common \(g0000, ... and x, ...\)"):
        compare_recalls(features, labels, features[:2], ["x", "y"], {"known": [("g0000", "g0001")]})
    with pytest.raises(UsageError, match="known: no known pair has both ends"):
        compare_recalls(features, labels, features, labels, {"known": [("x", "y")]})


def test_the_arm_is_that_of_the_genes_end_against_the_middle_of_the_centromere() -> None:
    centromeres = {"chr1": (100, 200), "X": (50, 51)}
    genes = [
        ("a", "1", 149),
        ("b", "chr1", 150),
        ("c", "X", 51),
        ("d", "chrX", 50),
        ("e", "MT", 3),
        ("f", "1", 9),
        ("f", "X", 9),
    ]
    assert arms_by_position(genes, centromeres) == {"a": "1p", "b": "1q", "c": "Xq", "d": "Xp"}
    with pytest.raises(UsageError, match="no gene is on a chromosome with a centromere"):
        arms_by_position([("a", "MT", 5)], centromeres)


@pytest.mark.shared
@pytest.mark.parametrize("num", [300, 1000, 5000])
def test_published_annotations_on_random_maps_equal_the_definition(shared_data: Path, num: int) -> None:
    folder = shared_data / "annotations"
    annotations = {name: naive.read_pairs(folder / f"{name}.txt") for name in ("HuMAP", "Reactome", "StringDB")}
    with (folder / "gene_chromosome_map.tsv").open(newline="") as lines:
        arms = arms_of((row["Approved_symbol"], row["Locus"]) for row in csv.DictReader(lines, delimiter="\t"))
    seen: dict[str, None] = {}
    for pairs in zip(*annotations.values(), strict=False):
        for pair in pairs:
            seen.update(dict.fromkeys(pair))
    labels = sorted(list(seen)[:num])
    features = np.random.default_rng(num).normal(size=(num, 32))
    cosines = cosine_map(features)
    null = naive.null_of(cosines)
    recalls = relationship_recalls(features, labels, annotations, THRESHOLDS)
    by_arm = recalls_by_arm(features, labels, annotations, arms, THRESHOLDS)
    for name, pairs in annotations.items():
        known = naive.pairs_in_map(labels, pairs)
        arm_of = [arms.get(label) for label in labels]
        within = [(i, j) for i, j in known if arm_of[i] is not None and arm_of[i] == arm_of[j]]
        assert len(known) > 40 and within
        for number, (lo, hi) in enumerate(THRESHOLDS):
            assert abs(recalls[name][number].recall - naive.recall(cosines, known, lo, hi, null)) < 1e-12
            assert recalls[name][number].num_pairs == len(known)
            assert abs(by_arm[name].within[number].recall - naive.recall(cosines, within, lo, hi, null)) < 1e-12
