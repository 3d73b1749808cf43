"""What an evaluation leaves in its run beside evaluation.json, which says that it is done; each file committed whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import EmbeddingsPaths, read_binding
from phenomhpc.embed.table import feature_name
from phenomhpc.jobs.evaluation.blocks import BlockScore, best_block
from phenomhpc.jobs.evaluation.lookup import known_pairs, neighbours
from phenomhpc.jobs.evaluation.rows import perturbation_rows, score_rows
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.jobs.evaluation.sections import headline, report_page, report_sections
from phenomhpc.maps import mapped_pairs
from phenomhpc.report import Section
from phenomhpc.runs import TaskContext, commit, committing, make_folder


def write_products(
    config: EvaluateConfig, ctx: TaskContext, evaluation: Evaluation, source: Path, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Tables, the map, pictures and the page; returns what evaluation.json is to say of them.  rows: of recall.parquet."""
    paths = ctx.paths
    for path, frame in (
        (paths.recall, pl.DataFrame(rows)),
        (paths.scores, pl.DataFrame(score_rows(evaluation), infer_schema_length=None)),
        (paths.map, map_table(evaluation)),
        (paths.relations, relation_table(evaluation)),
        (paths.perturbations, pl.DataFrame(perturbation_rows(evaluation))),
        *([(paths.blocks, pl.DataFrame(block_rows(evaluation.blocks)))] if evaluation.blocks else []),
    ):
        with committing(path, token=ctx.token) as file:
            frame.write_parquet(file)
    encoder = evaluation.encoder
    found = neighbours(
        encoder.labels,
        encoder.profiles,
        known_pairs(encoder.labels, evaluation.annotations.relationships),
        evaluation.wells.noun,
        config.neighbours,
    )
    sections = report_sections(config, evaluation, source, found)
    _write_pictures(ctx, sections)
    commit(paths.report, report_page(evaluation, sections), token=ctx.token)
    binding = read_binding(EmbeddingsPaths(source)) if source.is_dir() else None
    return {
        "text": _text(evaluation),
        "noun": evaluation.wells.noun,
        "checkpoint": binding.checkpoint if binding else None,
        "block": binding.block if binding else None,
        "best_block": best_block(evaluation.blocks).block if evaluation.blocks else None,
        "num_wells": len(evaluation.wells.label),
        "num_controls": int(evaluation.wells.is_control.sum()),
        "num_batches": len(set(evaluation.wells.batch)),
        "num_perturbations": len(encoder.labels),
        "num_features": evaluation.wells.features.shape[1],
        "corrected_arms": evaluation.corrected_arms if config.arm_correction else {},
        "scores": score_rows(evaluation),
        "not_measured": [list(entry) for entry in encoder.benchmarks.left_out],
    }


def _text(evaluation: Evaluation) -> str:
    if not evaluation.blocks:
        return headline(evaluation)
    return (
        f"{headline(evaluation)} Block {best_block(evaluation.blocks).block} embeds best of {len(evaluation.blocks)}."
    )


def map_table(evaluation: Evaluation) -> pl.DataFrame:
    """label, num_wells, and the profile of each as features f64."""
    profiles = evaluation.encoder.profiles
    counts = perturbation_rows(evaluation)
    return pl.DataFrame(
        {"label": counts["label"], "num_wells": counts["num_wells"]}
        | {feature_name(index): profiles[:, index] for index in range(profiles.shape[1])}
    )


def relation_table(evaluation: Evaluation) -> pl.DataFrame:
    """annotation, first, second: every known pair with both ends in the map."""
    labels = evaluation.encoder.labels
    rows = [
        (name, labels[first], labels[second])
        for name, pairs in evaluation.annotations.relationships.items()
        for first, second in mapped_pairs(labels, pairs).tolist()
    ]
    return pl.DataFrame(rows, schema={"annotation": pl.String, "first": pl.String, "second": pl.String}, orient="row")


def block_rows(blocks: tuple[BlockScore, ...]) -> list[dict[str, Any]]:
    """One row per block, annotation and thresholds, with the block's probe in each."""
    best = best_block(blocks).block
    return [
        {
            "block": score.block,
            "is_best": score.block == best,
            "probe_accuracy": score.probe.accuracy if score.probe else None,
            "probe_ci_low": score.probe.ci_low if score.probe else None,
            "probe_ci_high": score.probe.ci_high if score.probe else None,
            "annotation": name,
            "lo": recall.lo,
            "hi": recall.hi,
            "recall": recall.recall,
            "ci_low": recall.ci_low,
            "ci_high": recall.ci_high,
        }
        for score in blocks
        for name, recalls in score.recalls.items()
        for recall in recalls
    ]


def _write_pictures(ctx: TaskContext, sections: list[Section]) -> None:
    make_folder(ctx.paths.pictures)
    for section in sections:
        for picture in section.pictures:
            if picture.name and picture.svg is not None:
                commit(ctx.paths.pictures / f"{picture.name}.png", picture.png, token=ctx.token)
                commit(ctx.paths.pictures / f"{picture.name}.svg", picture.svg, token=ctx.token)
