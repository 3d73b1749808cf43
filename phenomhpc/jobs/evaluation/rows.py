"""Every number as a row of a table: what it measures, at which threshold, against which null, with which interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from phenomhpc.jobs.evaluation.benchmarks import (
    BY_ARM,
    COHERENCE,
    COMPOUNDS,
    CONSISTENCY,
    MAGNITUDE,
    PROXIMITY,
    RETRIEVAL,
    Benchmarks,
)
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.maps import PerturbationScores, ProximityBias, Recall

RECALL = "relationship recall"
FINAL = "map"
NO_THRESHOLD = "none"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number.  num: how many things it is over (pairs, perturbations, arms); chance: of a map that knows nothing, if defined.

    stage: `map`, which is what is published, or a stage of the encoder on the way there
    """

    source: str
    stage: str
    benchmark: str
    annotation: str
    subset: str
    value: float
    ci_low: float | None
    ci_high: float | None
    chance: float | None
    threshold: str
    null: str
    num: int


def recall_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Recall of every source's map: source, annotation, and the fields of Recall with its chance level."""
    return [
        {"source": scored.source, "annotation": name, **asdict(recall), "chance": recall.chance}
        for scored in evaluation.maps
        for name, recalls in scored.recalls.items()
        for recall in recalls
    ]


def score_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """All of them: of every source, and of the encoder's stages."""
    return [asdict(score) for score in scores(evaluation)]


def scores(evaluation: Evaluation) -> Iterator[Score]:
    """As `score_rows`."""
    for scored in evaluation.maps:
        for name, recalls in scored.recalls.items():
            yield from (recall_score(scored.source, FINAL, name, "all", recall) for recall in recalls)
        yield from _others(scored.source, scored.benchmarks)
    for stage in evaluation.stages:
        source = evaluation.encoder.source
        for name, recalls in stage.recalls.items():
            yield from (recall_score(source, stage.name, name, "all", recall) for recall in recalls)
        if stage.proximity is not None:
            yield from _proximity(source, stage.name, stage.proximity)


def recall_score(source: str, stage: str, annotation: str, subset: str, recall: Recall) -> Score:
    """One recall as a row."""
    return Score(
        source=source, stage=stage, benchmark=RECALL if subset == "all" else BY_ARM, annotation=annotation, subset=subset,
        value=recall.recall, ci_low=recall.ci_low, ci_high=recall.ci_high, chance=recall.chance, num=recall.num_pairs,
        threshold=f"rank in the null at most {recall.lo:g} or at least {recall.hi:g}",
        null=f"cosines of all {recall.num_null:,} pairs of the map",
    )  # fmt: skip


def _others(source: str, found: Benchmarks) -> Iterator[Score]:
    for name, split in found.by_arm.items():
        for subset, recalls in (("within arms", split.within), ("between arms", split.between)):
            yield from (recall_score(source, FINAL, name, subset, recall) for recall in recalls)
    if found.proximity is not None:
        yield from _proximity(source, FINAL, found.proximity)
    for benchmark, one in ((CONSISTENCY, found.consistency), (MAGNITUDE, found.magnitude)):
        if one is not None:
            yield _hits(source, benchmark, one)
    if found.coherence is not None:
        sets = found.coherence
        yield _row(
            source, COHERENCE, sets.hit_rate, (sets.ci_low, sets.ci_high), sets.chance, len(sets.names),
            threshold=f"p ≤ {sets.alpha:g}", subset="share of complexes",
            null="cosines between a complex and the rest, two-sample Kolmogorov-Smirnov test",
        )  # fmt: skip
    if found.retrieval is not None:
        hits = found.retrieval
        null = f"{hits.null_size:,} random rankings of {found.num_retrieved:,} wells"
        yield _row(source, RETRIEVAL, hits.mean_ap, (hits.mean_ap_low, hits.mean_ap_high), hits.chance_ap, len(hits.labels),
                   threshold=NO_THRESHOLD, subset="mean average precision", null=null)  # fmt: skip
        yield _row(source, RETRIEVAL, hits.hit_rate, (hits.ci_low, hits.ci_high), None, len(hits.labels),
                   threshold=f"q ≤ {hits.alpha:g}, Benjamini-Hochberg", subset="share of perturbations", null=null)  # fmt: skip
    if found.compounds is not None:
        targets = found.compounds
        null = f"random rankings of {targets.num_genes:,} genes"
        yield _row(source, COMPOUNDS, targets.mean_ap, (targets.ci_low, targets.ci_high), targets.chance_ap, len(targets.labels),
                   threshold=NO_THRESHOLD, subset="mean average precision", null=null)  # fmt: skip
        yield _row(source, COMPOUNDS, targets.hit_rate, (targets.hit_low, targets.hit_high), None, len(targets.labels),
                   threshold=f"q ≤ {targets.alpha:g}, Benjamini-Hochberg", subset="share of compounds", null=null)  # fmt: skip
        for at in targets.recall_at.values():
            yield _row(source, COMPOUNDS, at.recall, (at.ci_low, at.ci_high), at.chance, len(targets.labels),
                       threshold=f"among the {at.k} nearest", subset="targets found", null=null)  # fmt: skip


def _row(
    source: str,
    benchmark: str,
    value: float,
    interval: tuple[float | None, float | None],
    chance: float | None,
    num: int,
    *,
    threshold: str,
    null: str,
    subset: str,
    stage: str = FINAL,
) -> Score:
    return Score(
        source=source, stage=stage, benchmark=benchmark, annotation="", subset=subset, value=value, ci_low=interval[0],
        ci_high=interval[1], chance=chance, threshold=threshold, null=null, num=num,
    )  # fmt: skip


def _hits(source: str, benchmark: str, one: PerturbationScores) -> Score:
    return _row(
        source, benchmark, one.hit_rate, (one.ci_low, one.ci_high), one.chance, len(one.labels),
        threshold=f"p ≤ {one.alpha:g}", null=f"{one.num_null:,} perturbations of unexpressed genes",
        subset="share of perturbations",
    )  # fmt: skip


def _proximity(source: str, stage: str, one: ProximityBias) -> Iterator[Score]:
    yield _row(
        source, PROXIMITY, one.effect, (one.ci_low, one.ci_high), one.chance, len(one.arms), stage=stage,
        threshold=NO_THRESHOLD, subset="P(within arm > between), mean of arms",
        null="cosines of genes of the arm with those of others",
    )  # fmt: skip


def perturbation_rows(evaluation: Evaluation) -> dict[str, list[Any]]:
    """One row per label of the encoder's map: wells, and what each benchmark found for it (null where it did not)."""
    labels = evaluation.encoder.labels
    found = evaluation.encoder.benchmarks
    counts: dict[str, int] = dict.fromkeys(labels, 0)
    for label in evaluation.wells.label:
        if label:
            counts[label] += 1
    table: dict[str, list[Any]] = {"label": labels, "num_wells": [counts[label] for label in labels]}
    for name, one in (("consistency", found.consistency), ("magnitude", found.magnitude)):
        if one is not None:
            values = dict(zip(one.labels, zip(one.values.tolist(), one.p_values.tolist(), strict=True), strict=True))
            table[name] = [values.get(label, (None, None))[0] for label in labels]
            table[f"{name}_p"] = [values.get(label, (None, None))[1] for label in labels]
    if found.retrieval is not None:
        hits = found.retrieval
        pairs = zip(hits.mean_average_precision.tolist(), hits.q_values.tolist(), strict=True)
        by_label = dict(zip(hits.labels, pairs, strict=True))
        table["average_precision"] = [by_label.get(label, (None, None))[0] for label in labels]
        table["average_precision_q"] = [by_label.get(label, (None, None))[1] for label in labels]
    return table
