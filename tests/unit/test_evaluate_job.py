"""evaluate as a job: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from phenomhpc.config import EvaluateConfig, resolve
from phenomhpc.errors import SET_ASIDE, UsageError
from phenomhpc.jobs import evaluate
from phenomhpc.jobs.base import Summary
from phenomhpc.jobs.evaluation import rows, scores
from phenomhpc.jobs.evaluation.annotations import read_annotations
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.jobs.here import run_here
from phenomhpc.maps import aggregate, relationship_recall, tvn
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, list_runs
from tests.unit.evaluation_data import GENES, pathway_pairs, wells, write_annotations, write_embeddings, write_training


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_annotations(tmp_path / "annotations")
    write_embeddings(tmp_path / "emb")
    return tmp_path


def _config(folder: Path, **settings: object) -> EvaluateConfig:
    flags = {
        "embeddings": str(folder / "emb"),
        "annotations": str(folder / "annotations"),
        "runs": str(folder / "runs"),
    }
    config = resolve("evaluate", {**flags, **settings}, [], layers=()).config
    assert isinstance(config, EvaluateConfig)
    return config


def _run(config: EvaluateConfig) -> tuple[RunPaths, Summary]:
    return run_here(config, command=["test"], progress=silent())


def test_scores_are_those_of_maps_written_out_step_by_step(inputs: Path) -> None:
    paths, summary = _run(_config(inputs))
    frame = wells(0.9)
    features = frame.select(pl.col("^feature_.*$")).to_numpy().astype(np.float64)
    aligned = tvn(features, frame["plate"].to_list(), frame["is_control"].to_numpy())
    genes = frame["gene"].to_list()
    chosen = [row for row, gene in enumerate(genes) if gene]
    profiles, labels = aggregate(aligned[chosen], [genes[row] for row in chosen])
    expected = relationship_recall(profiles, labels, pathway_pairs(), bootstrap=1000)
    table = pl.read_parquet(paths.recall)
    ours = table.filter(pl.col("source") == "encoder")
    assert ours["recall"].to_list() == [recall.recall for recall in expected]
    assert ours["ci_low"].to_list() == [recall.ci_low for recall in expected]
    assert table["source"].unique(maintain_order=True).to_list() == ["encoder", "untrained", "intensity", "random"]
    found = pl.read_parquet(paths.map)
    assert found["label"].to_list() == sorted(GENES) == labels
    assert found["num_wells"].to_list() == [genes.count(label) for label in labels]
    np.testing.assert_array_equal(found.select("^feature_.*$").to_numpy(), profiles)
    relations = pl.read_parquet(paths.relations)
    assert sorted(relations.select("first", "second").rows()) == sorted(pathway_pairs())
    assert summary.exit_code == 0 and summary.report == str(paths.report)
    assert summary.tables[0].rows[0][:4] == ("PATHWAYS", 36, "0.05, 0.95", "0.10")


def _evaluate(config: EvaluateConfig) -> Evaluation:
    """The scores alone, without pictures."""
    annotations = read_annotations(Path(config.annotations))
    return scores.evaluate(config, Path(config.embeddings), annotations, lambda name: None)


def test_recall_rises_with_alignment_and_stands_beside_baselines_in_order(inputs: Path) -> None:
    def recalls(config: EvaluateConfig) -> dict[str, float]:
        return {scored.source: scored.recalls["PATHWAYS"][0].recall for scored in _evaluate(config).maps}

    aligned, raw = recalls(_config(inputs)), recalls(_config(inputs, align="none"))
    assert aligned["encoder"] > 0.5 > raw["encoder"]
    assert aligned["encoder"] > aligned["untrained"] + 0.2
    assert abs(aligned["random"] - 0.1) < 0.15 and abs(aligned["intensity"] - 0.1) < 0.15


@pytest.mark.parametrize("align", ["none", "center_scale", "pca_cs", "tvn", "tvn_efaar"])
def test_every_alignment_scores_every_source(inputs: Path, align: str) -> None:
    evaluation = _evaluate(_config(inputs, align=align, bootstrap=0))
    assert [scored.source for scored in evaluation.maps] == ["encoder", "untrained", "intensity", "random"]
    assert evaluation.set_aside == ()
    assert all(scored.recalls["PATHWAYS"][0].num_pairs == 36 for scored in evaluation.maps)


def test_the_report_shows_the_training_run_it_finds(inputs: Path) -> None:
    training = RunPaths(inputs / "runs" / "pretrain-1")
    training.root.mkdir(parents=True)
    write_training(training)
    write_embeddings(inputs / "emb2", training)
    with_training = _run(_config(inputs, embeddings=str(inputs / "emb2")))[0].report.read_text()
    without = _run(_config(inputs))[0].report.read_text()
    for words in (
        "How the encoder learned",
        "5 crops in three rows",
        "Two curves over 120 steps",
        "step-00000120 of pretrain-1",
    ):
        assert words in with_training and words not in without
    for words in ("What was evaluated", "Known relationships found again", "Which perturbations look alike"):
        assert words in with_training and words in without


def test_a_finished_evaluation_is_not_repeated_until_its_input_changes(inputs: Path) -> None:
    config = _config(inputs)
    paths, _ = _run(config)
    plan = evaluate.plan(config, paths)
    assert plan.units == () and plan.num_done == 1
    relations = inputs / "annotations" / "PATHWAYS.txt"
    relations.write_text(relations.read_text() + "GENE30,GENE31\n")
    assert [unit.count for unit in evaluate.plan(config, paths).units] == [4]


def test_the_same_inputs_and_seed_give_the_same_numbers(inputs: Path) -> None:
    first, again, other = (rows.score_rows(_evaluate(_config(inputs, seed=seed))) for seed in (0, 0, 1))
    assert first == again != other


def test_arm_correction_is_done_and_said(inputs: Path) -> None:
    (inputs / "annotations" / "unexpressed.txt").write_text("\n".join(GENES) + "\n")
    paths, _ = _run(_config(inputs, arm_correction=True))
    assert json.loads(paths.evaluation.read_bytes())["corrected_arms"] == {"1p": 25, "2q": 25}
    found = pl.read_parquet(paths.map).filter(pl.col("label").str.slice(4).cast(pl.Int64) % 2 == 1)
    np.testing.assert_allclose(found.select("^feature_.*$").to_numpy().mean(axis=0), 0.0, atol=1e-12)
    assert "1p, 2q" in paths.report.read_text()


def test_arm_correction_without_arms_or_unexpressed_genes_is_refused(inputs: Path) -> None:
    (inputs / "annotations" / "unexpressed.txt").unlink()
    with pytest.raises(
        UsageError, match=r"arm_correction=true: .* has no unexpressed.txt \(or give --unexpressed FILE\)"
    ):
        _run(_config(inputs, arm_correction=True))
    assert list_runs(inputs / "runs") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thresholds": ((0.9, 0.1),)}, r"thresholds: \(0.9, 0.1\)"),
        ({"annotations": "nowhere"}, r"annotations=\S*nowhere: no such folder"),
        ({"embeddings": "some/where"}, r"embeddings=\S*some/where: no such folder"),
    ],
)
def test_a_wrong_command_leaves_no_run_behind(inputs: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _run(_config(inputs, **settings))
    assert list_runs(inputs / "runs") == []


def test_what_cannot_be_used_beside_the_encoder_is_set_aside_and_listed(inputs: Path) -> None:
    (inputs / "annotations" / "ELSEWHERE.txt").write_text("FOO,BAR\n")
    (inputs / "annotations" / "README.txt").write_text("Where this is from\n")
    untrained = inputs / "emb" / "baselines" / "untrained" / "exp1__Plate1.parquet"
    frame = pl.read_parquet(untrained)
    frame.with_columns(pl.lit(False).alias("is_control")).write_parquet(untrained)
    paths, summary = _run(_config(inputs))
    assert summary.exit_code == SET_ASIDE
    assert [thing for thing, _ in summary.set_aside] == ["README.txt", "baseline untrained", "ELSEWHERE"]
    assert "batch exp1__Plate1: 0 controls" in dict(summary.set_aside)["baseline untrained"]
    assert "What was left out" in paths.report.read_text()


def test_no_overlap_between_genes_and_pairs_is_one_line_and_writes_nothing(inputs: Path) -> None:
    (inputs / "annotations" / "PATHWAYS.txt").write_text("entity1,entity2\nFOO,BAR\n")
    with pytest.raises(UsageError, match=r"none of its pairs \(PATHWAYS\) has both ends among the 50 genes") as caught:
        _run(_config(inputs))
    assert "\n" not in str(caught.value)
    (paths,) = list_runs(inputs / "runs")
    for product in (paths.evaluation, paths.report, paths.recall, paths.scores, paths.map, paths.pictures):
        assert not product.exists()


def test_a_batch_without_controls_is_named(inputs: Path) -> None:
    table = inputs / "emb" / "exp2__Plate1.parquet"
    pl.read_parquet(table).filter(~pl.col("is_control")).write_parquet(table)
    with pytest.raises(UsageError, match="batch exp2__Plate1: 0 controls"):
        _run(_config(inputs))


def test_a_large_network_is_ordered_by_similarity_and_cut_to_what_can_be_seen(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = "\n".join(f"{a},{b}" for a, b in pairwise(GENES))
    (inputs / "annotations" / "PATHWAYS.txt").write_text(chain + "\n")
    monkeypatch.setattr("phenomhpc.jobs.evaluation.heatmap.MAX_HEATMAP", 30)
    text = _run(_config(inputs))[0].report.read_text()
    assert "the 30 with most known relationships of 50" in text and "average-linkage clustering" in text


def test_compounds_find_their_targets(inputs: Path) -> None:
    """Compounds that do what the loss of a gene does, at two doses, in wells without a gene."""
    frame = wells(1.5)
    genes = [GENES[row] for row in (0, 8, 16)]
    doses = [
        frame.filter(pl.col("gene") == gene).with_columns(
            gene=pl.lit(None, pl.String), perturbation=pl.lit(f"drug{gene}"), treatment=pl.lit(f"drug{gene}"), concentration_um=dose
        )
        for gene in genes
        for dose in (pl.lit(1.0), pl.lit(5.0))
    ]  # fmt: skip
    pl.concat([frame, *doses], how="diagonal").write_parquet(inputs / "wells.parquet")
    lines = ["compound\tgene", *(f"drug{gene}\t{gene}" for gene in genes), "unknown\tGENE01"]
    (inputs / "annotations" / "targets.tsv").write_text("\n".join(lines) + "\n")
    evaluation = _evaluate(_config(inputs, embeddings=str(inputs / "wells.parquet")))
    assert len(evaluation.encoder.labels) == len(GENES)  # compounds are no rows of the map
    found = evaluation.encoder.benchmarks.compounds
    assert found is not None and found.labels == tuple(f"drug{gene}" for gene in genes)
    assert found.mean_ap > 0.9 and found.recall_at[10].recall == 1.0
    other = next(scored for scored in evaluation.maps if scored.source == "random").benchmarks.compounds
    assert other is not None and other.mean_ap < found.mean_ap
    assert {row["subset"] for row in rows.score_rows(evaluation) if row["benchmark"] == "compound-gene retrieval"} == {
        "mean average precision", "share of compounds", "targets found",
    }  # fmt: skip
