"""Wells with a planted truth through evaluate: batch effects go, biology stays, the bias of arms goes; maps query and compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread

from phenomhpc.config import resolve
from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.lookup import known_pairs, neighbours
from phenomhpc.jobs.evaluation.scores import ALIGNED, CORRECTED, RAW
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.map_files import compare, open_map, query
from phenomhpc.maps import compare_recalls, cosine_map, mapped_pairs
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from tests.unit.evaluation_data import write_planted
from tests.unit.planted_maps import planted_wells

CHANCE = 0.1  # of a recall at (0.05, 0.95)
PLANTED = planted_wells(batch_effect=6.0, arm_bias=0.6, replicates=5, num_pathways=30, genes_per_pathway=10, num_arms=6)
PICTURES = {"recall", "way", "wells", "cluster_map", "genome", "benchmarks", "consistency"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluations: `corrected`, of the planted wells, and `raw`, of the same without alignment."""
    folder = tmp_path_factory.mktemp("planted")
    source, annotations = write_planted(folder / "in", PLANTED)
    flags = {"embeddings": str(source), "annotations": str(annotations), "runs": str(folder / "runs")}
    for name, settings in (
        ("corrected", {"arm_correction": True}),
        ("raw", {"align": "none", "bootstrap": 0, "neighbours": 1}),
    ):
        config = resolve("evaluate", {**flags, **settings}, [], layers=()).config
        run_here(config, command=["test"], progress=silent(), name=name)
    return folder / "runs"


def score(runs: Path, benchmark: str, stage: str, **wanted: str) -> dict[str, Any]:
    """The one row of the encoder's scores (of the first thresholds)."""
    table = pl.read_parquet(RunPaths(runs / "corrected").scores)
    keys = {"source": "encoder", "benchmark": benchmark, "stage": stage, **wanted}
    return table.filter(*(pl.col(key) == value for key, value in keys.items())).row(0, named=True)


def test_recall_rises_from_chance_to_what_was_planted_and_stays_when_arms_are_corrected(runs: Path) -> None:
    raw, aligned, corrected = (score(runs, "relationship recall", stage) for stage in (RAW, ALIGNED, CORRECTED))
    planted = PLANTED.planted_recall(CHANCE)
    assert planted > 0.6
    assert abs(raw["value"] - CHANCE) < 0.06
    assert abs(aligned["value"] - planted) < 0.05
    # Before correction pairs that share nothing but an arm count as found; what is left is what was planted.
    assert abs(corrected["value"] - planted) < 0.03
    assert raw["chance"] == pytest.approx(CHANCE)
    assert raw["ci_high"] < aligned["ci_low"]


def test_the_bias_of_arms_goes_with_correction(runs: Path) -> None:
    aligned, corrected = (score(runs, "proximity bias", stage) for stage in (ALIGNED, CORRECTED))
    assert aligned["value"] > 0.8 and aligned["ci_low"] > 0.7
    assert abs(corrected["value"] - 0.5) < 0.06
    split = [
        score(runs, "recall within and between arms", "map", subset=f"{one} arms") for one in ("within", "between")
    ]
    assert split[0]["num"] + split[1]["num"] == len(PLANTED.pairs)
    assert all(abs(one["value"] - PLANTED.planted_recall(CHANCE)) < 0.12 for one in split)


def test_every_benchmark_says_threshold_null_and_interval_beside_a_baseline(runs: Path) -> None:
    table = pl.read_parquet(RunPaths(runs / "corrected").scores).filter(pl.col("stage") == "map")
    for source, is_encoder in (("encoder", True), ("random", False)):
        ours = {row["benchmark"]: row for row in table.filter(pl.col("source") == source).to_dicts()}
        for name in ("perturbation consistency", "perturbation magnitude", "complex coherence", "replicate retrieval"):
            row = ours[name]
            assert row["threshold"] and row["null"] and row["ci_low"] <= row["value"] <= row["ci_high"]
            assert row["value"] > 0.5 if is_encoder else row["value"] < 0.2
    own = pl.read_parquet(RunPaths(runs / "corrected").perturbations)
    real = {gene for pair in PLANTED.real_pairs for gene in pair}
    is_real = pl.col("label").is_in(sorted(real))
    assert own["num_wells"].to_list() == [5] * len(PLANTED.genes)
    assert own.filter(is_real)["consistency_p"].median() < 0.01 < own.filter(~is_real)["consistency_p"].median()
    value = json.loads(RunPaths(runs / "corrected").evaluation.read_bytes())
    assert [row["benchmark"] for row in value["scores"]] == pl.read_parquet(RunPaths(runs / "corrected").scores)[
        "benchmark"
    ].to_list()
    assert [name for name, _ in value["not_measured"]] == ["compound-gene retrieval"]


def test_both_are_shown_in_the_report_and_every_picture_is_a_file_too(runs: Path) -> None:
    paths = RunPaths(runs / "corrected")
    text = re.sub(r"<[^>]*>", " ", re.sub(r"base64,[^\"]*", "", paths.report.read_text()))
    words = " ".join(text.split())
    rows = [score(runs, "relationship recall", stage) for stage in (RAW, ALIGNED, CORRECTED)]
    bias = [score(runs, "proximity bias", stage) for stage in (RAW, ALIGNED, CORRECTED)]
    for name, found in (("recall, PATHWAYS, 0.05 and 0.95 0.10", rows), ("proximity bias 0.50", bias)):
        cells = " ".join(f"{row['value']:.3f} {row['ci_low']:.3f} to {row['ci_high']:.3f}" for row in found)
        assert f"{name} {cells}" in words
    assert "without arm correction" in paths.report.read_text()  # in words for those who cannot see the picture
    files = {path.name for path in paths.pictures.iterdir()}
    assert files == {f"{name}.{form}" for name in PICTURES for form in ("png", "svg")}
    for name in PICTURES:
        assert np.asarray(imread(paths.pictures / f"{name}.png")).shape[1] > 800
        assert "<svg" in (paths.pictures / f"{name}.svg").read_text()[:2000]


def test_neighbours_are_those_of_the_whole_map_with_known_pairs_marked() -> None:
    labels = PLANTED.genes[:40]
    profiles = np.random.default_rng(0).normal(size=(40, 6))
    found = neighbours(
        labels, profiles, known_pairs(labels, {"A": PLANTED.pairs, "B": [(labels[0], labels[39])]}), "gene", 5
    )
    assert found is not None
    cosines = cosine_map(profiles)
    np.fill_diagonal(cosines, np.nan)
    for row in range(40):
        order = np.argsort(-cosines[row][~np.isnan(cosines[row])])
        others = np.delete(np.arange(40), row)
        assert found.near[row].tolist() == others[order[:5]].tolist()
        assert found.far[row].tolist() == others[order[::-1][:5]].tolist()
        np.testing.assert_allclose(found.near_cosine[row], cosines[row, found.near[row]], atol=1e-12)
    pairs = {tuple(pair) for pair in mapped_pairs(labels, PLANTED.pairs).tolist()}
    for row in range(40):
        for side, known in ((found.near, found.near_known), (found.far, found.far_known)):
            for place, bits in zip(side[row].tolist(), known[row].tolist(), strict=True):
                pair = (min(row, place), max(row, place))
                assert bits == (1 if pair in pairs else 0) + (2 if pair == (0, 39) else 0)


def test_query_gives_neighbours_and_marks_known_ones(runs: Path) -> None:
    found = open_map("corrected", runs)
    near, far = query(found, "GENE0000", 9)
    assert {one.label for one in near} == set(PLANTED.genes[1:10])  # its pathway
    assert all(one.known == ("PATHWAYS",) for one in near) and not any(one.known for one in far)
    cosines = cosine_map(found.profiles)[found.labels.index("GENE0000")]
    assert far[0].cosine == pytest.approx(cosines.min()) and near[0].cosine == pytest.approx(np.sort(cosines)[-2])
    by_folder = open_map(str(runs / "corrected"), Path("nowhere"))
    assert query(by_folder, "GENE0000", 9) == (near, far)
    with pytest.raises(UsageError, match=r"gene gene0000: not in the map corrected; did you mean GENE0000"):
        query(found, "gene0000", 5)
    with pytest.raises(UsageError, match=r"gene GEN0012: not in the map corrected; did you mean GENE0012"):
        query(found, "GEN0012", 5)
    with pytest.raises(UsageError, match=r"evaluate run 'nothing': not found"):
        open_map("nothing", runs)


def test_compare_sets_recalls_beside_each_other_with_a_paired_interval(runs: Path) -> None:
    first, second = open_map("raw", runs), open_map("corrected", runs)
    found = compare(first, second, bootstrap=500, seed=3)
    expected = compare_recalls(
        first.profiles, first.labels, second.profiles, second.labels, {"PATHWAYS": PLANTED.pairs}, bootstrap=500, seed=3
    )["PATHWAYS"]
    assert [row["difference"] for row in found.rows] == [one.difference for one in expected]
    assert [row["ci_low"] for row in found.rows] == [one.ci_low for one in expected]
    assert found.rows[0]["difference"] == pytest.approx(found.rows[0]["second"] - found.rows[0]["first"])
    assert found.rows[0]["ci_low"] > 0.4
    same = compare(second, second, bootstrap=100, seed=0)
    assert [(row["difference"], row["ci_low"], row["ci_high"]) for row in same.rows] == [(0.0, 0.0, 0.0)] * 2


def test_maps_with_other_pairs_are_not_compared(runs: Path, tmp_path: Path) -> None:
    other = RunPaths(tmp_path / "other")
    other.root.mkdir()
    (other.root / "map.parquet").write_bytes(RunPaths(runs / "raw").map.read_bytes())
    pl.read_parquet(RunPaths(runs / "raw").relations).head(100).write_parquet(other.relations)
    with pytest.raises(UsageError, match=r"PATHWAYS has other pairs in corrected than in other \(1350 and 100 "):
        compare(open_map("corrected", runs), open_map(str(other.root), runs), bootstrap=0, seed=0)
    other.relations.unlink()
    with pytest.raises(UsageError, match="corrected knows PATHWAYS, other none; evaluate both"):
        compare(open_map("corrected", runs), open_map(str(other.root), runs), bootstrap=0, seed=0)


def test_maps_are_compared_by_the_thresholds_that_both_were_evaluated_by(runs: Path, tmp_path: Path) -> None:
    other = RunPaths(tmp_path / "other")
    other.root.mkdir()
    for path in (RunPaths(runs / "raw").map, RunPaths(runs / "raw").relations):
        (other.root / path.name).write_bytes(path.read_bytes())

    def thresholds(*evaluated: tuple[float, float]) -> list[tuple[float, float]]:
        value = {"noun": "gene", "recalls": [{"lo": lo, "hi": hi} for lo, hi in evaluated] * 2}
        other.evaluation.write_text(json.dumps(value))
        found = compare(open_map(str(other.root), runs), open_map("corrected", runs), bootstrap=0, seed=0)
        return [(row["lo"], row["hi"]) for row in found.rows]

    assert thresholds((0.01, 0.99), (0.1, 0.9)) == [(0.1, 0.9)]
    assert thresholds() == [(0.05, 0.95), (0.1, 0.9)]
    with pytest.raises(
        UsageError, match=r"other by 0\.2, 0\.8, corrected by 0\.05, 0\.95 and 0\.1, 0\.9: no thresholds in common; ev"
    ):
        thresholds((0.2, 0.8))
    other.evaluation.write_text("{")
    with pytest.raises(UsageError, match=r"evaluation\.json: is no JSON .*; run evaluate again, or remove it"):
        open_map(str(other.root), runs)
