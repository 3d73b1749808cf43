"""Raw plates whose pixels differ more by plate than by gene go the whole way: the map finds what was planted, not the plates.

A plate holds a third of the genes, drawn anew for each, so that before alignment those look alike that were on the same plates.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.jobs.evaluation.scores import ALIGNED, CORRECTED, RAW
from phenomhpc.maps import aggregate, align, relationship_recall
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.plates.synthetic import CHANNELS, LATENTS, SyntheticSpec, genes_of, write_plates
from phenomhpc.plates.synthetic.biology import plate_effect, wells_of
from phenomhpc.plates.synthetic.painting import FULL_SCALE, paint_field
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths
from tests.unit.embed_store import MODEL, Screen, pretrain, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CHANCE = 0.1  # of a recall at (0.05, 0.95)
SPEC = SyntheticSpec(
    seed=1, experiments=3, plates_per_experiment=2, plate_rows=8, plate_columns=12, control_share=1 / 3, field_px=96,
    cells_per_megapixel=700.0, dtype="uint16", num_genes=192, num_unexpressed=84, num_arms=3, genes_per_pathway=4,
    pathway_effect=5.0, gene_effect=0.5, arm_effect=2.0, plate_effect=0.5, batch_effect=0.5, camera_effect=3.0,
)  # fmt: skip
CROP_PX = int(MODEL["crop_px"])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The map of the pixels' statistics, which see gain and background as they are."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("plates")
    write_plates(root / "raw", SPEC, silent(), workers=1)
    runs = str(root / "runs")
    run("convert", plates=[str(root / "raw")], store=str(root / "store"), runs=runs, workers=1)
    screen = Screen(root=root, store=root / "store", checkpoint=pretrain(root / "store", root / "runs"))
    screen.embed(out=str(root / "emb"), baselines=["intensity"], batch=64)
    source = str(EmbeddingsPaths(root / "emb").baseline("intensity").root)
    settings = {"arm_correction": True, "bootstrap": 200, "runs": runs}
    return run("evaluate", embeddings=source, annotations=str(root / "raw" / "annotations"), **settings)[0]


def values(paths: RunPaths, benchmark: str) -> dict[str, dict[str, Any]]:
    """The scores of the map at each stage (of the first thresholds)."""
    table = pl.read_parquet(paths.scores).filter(pl.col("source") == "encoder", pl.col("benchmark") == benchmark)
    return {stage: table.filter(pl.col("stage") == stage).row(0, named=True) for stage in (RAW, ALIGNED, CORRECTED)}


def planted_recall() -> float:
    """Recall of the same wells of the same genes on plates that do not differ, aligned in the same way."""
    calm = replace(SPEC, plate_effect=0.0, batch_effect=0.0, camera_effect=0.0)
    genes, encoder = genes_of(calm), IntensityStatistics((FULL_SCALE[calm.dtype],) * len(CHANNELS))
    edge = calm.field_px // CROP_PX
    features, labels = [], []
    for plate in range(calm.num_plates):
        for content in wells_of(calm, plate):
            phenotype = np.zeros(len(LATENTS)) if content < 0 else genes[content].phenotype
            pixels = paint_field(calm, phenotype, plate_effect(calm, 0, plate), len(features))
            crops = pixels.reshape(len(CHANNELS), edge, CROP_PX, edge, CROP_PX).transpose(1, 3, 0, 2, 4)
            features.append(encoder.encode(crops.reshape(edge**2, len(CHANNELS), CROP_PX, CROP_PX)).mean(axis=0))
            labels.append("" if content < 0 else genes[content].name)
    is_control = np.array([not label for label in labels])
    batches = np.repeat(np.arange(calm.num_plates), calm.num_wells)
    aligned = align("tvn", np.array(features), batches, is_control)
    profiles, names = aggregate(aligned[~is_control], [label for label in labels if label])
    pairs = [
        (one.name, other.name)
        for one, other in combinations(genes, 2)
        if one.pathway is not None and one.pathway == other.pathway
    ]
    return relationship_recall(profiles, names, pairs, bootstrap=0)[0].recall


def test_gain_and_background_differ_severalfold_between_plates() -> None:
    effects = [plate_effect(SPEC, e, p) for e in range(SPEC.experiments) for p in range(SPEC.plates_per_experiment)]
    for quantity in ([effect.gain for effect in effects], [effect.background for effect in effects]):
        ratios = [max(of_channel) / min(of_channel) for of_channel in zip(*quantity, strict=True)]
        assert min(ratios) > 1.5 and np.median(ratios) > 2


def test_recall_rises_from_near_chance_to_what_was_planted_and_the_bias_of_arms_goes(scored: RunPaths) -> None:
    recall, bias = values(scored, "relationship recall"), values(scored, "proximity bias")
    planted = planted_recall()
    assert planted > 0.7
    assert recall[RAW]["value"] < CHANCE + 0.1
    assert abs(recall[ALIGNED]["value"] - planted) < 0.1 and recall[ALIGNED]["ci_low"] > recall[RAW]["ci_high"]
    assert bias[ALIGNED]["ci_low"] > 0.55
    assert abs(bias[CORRECTED]["value"] - 0.5) < 0.06
    assert recall[CORRECTED]["value"] >= recall[ALIGNED]["value"]


def test_both_are_shown_in_the_report(scored: RunPaths) -> None:
    words = " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"base64,[^\"]*", "", scored.report.read_text())).split())
    for benchmark, name in (
        ("relationship recall", "recall, PATHWAYS, 0.05 and 0.95 0.10"),
        ("proximity bias", "proximity bias 0.50"),
    ):
        rows = values(scored, benchmark).values()
        cells = " ".join(f"{row['value']:.3f} {row['ci_low']:.3f} to {row['ci_high']:.3f}" for row in rows)
        assert f"{name} {cells}" in words
