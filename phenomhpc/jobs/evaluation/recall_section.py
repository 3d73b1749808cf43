"""The part of the report on known relationships: recall beside baselines."""

from __future__ import annotations

from phenomhpc.config import EvaluateConfig
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.jobs.evaluation.words import source_name
from phenomhpc.maps import Recall
from phenomhpc.report import Cell, RecallPoint, Section, Table, recall_figure, themed


def recall_section(config: EvaluateConfig, evaluation: Evaluation) -> Section:
    points = [
        RecallPoint(
            source=source_name(scored.source), annotation=name, lo=recall.lo, hi=recall.hi, recall=recall.recall,
            ci_low=recall.ci_low, ci_high=recall.ci_high, chance=recall.chance,
        )
        for scored in evaluation.maps
        for name, recalls in scored.recalls.items()
        for recall in recalls
    ]  # fmt: skip
    words = "; ".join(
        f"{point.annotation} at {point.lo:g} and {point.hi:g}: {point.source} {point.recall:.2f}" for point in points
    )
    interval = (
        f"bars are 95 % bootstrap intervals over the pairs ({config.bootstrap} draws)" if config.bootstrap else ""
    )
    picture = themed(
        recall_figure,
        points,
        name="recall",
        alt=f"Recall of known relationships, encoder and baselines beside chance. {words}.",
        caption=f"Further right is better; the dashed line is a map that knows nothing{'; ' + interval if interval else ''}.",
    )
    return Section(
        title="Known relationships found again",
        text=(
            "Some pairs are known to work together, from databases of complexes and pathways. A good map puts them among its "
            "most alike, or most opposite, pairs. The same is asked of baselines: the network before training, plain "
            "brightness statistics of the images, and random numbers.",
        ),
        pictures=(picture,),
        tables=tuple(_recall_table(evaluation, index) for index in range(len(config.thresholds))),
        details=(
            "The null is the cosine similarity of all pairs in the map. A known pair with cosine q counts as found when the share "
            "of the null at or below q is at most the low threshold, or the share below q is at least the high one. "
            "Recall is the share of known pairs found; pairs are undirected, unique, without self pairs, and both ends are in the "
            "map. Chance is low + 1 - high.",
            "Every source is aligned and averaged in the same way. Random features are standard normal, one row per well, keyed by "
            f"the seed ({config.seed}). Intervals take pairs as independent, which makes them somewhat narrow: pairs share genes.",
        ),
    )  # fmt: skip


def _recall_table(evaluation: Evaluation, index: int) -> Table:
    sample = next(iter(evaluation.encoder.recalls.values()))[index]
    rows = []
    for name, recalls in evaluation.encoder.recalls.items():
        cells = [
            _recall_cell(scored.recalls[name][index]) if name in scored.recalls else None for scored in evaluation.maps
        ]
        rows.append((name, recalls[index].num_pairs, f"{sample.chance:.2f}", *cells))
    interval = " with its 95 % interval" if sample.ci_low is not None else ""
    return Table(
        caption=f"Recall{interval} at thresholds {sample.lo:g} and {sample.hi:g}, among {sample.num_null:,} pairs of the map",
        columns=(
            "known pairs from",
            "pairs",
            "chance",
            *(source_name(scored.source) for scored in evaluation.maps),
        ),
        rows=tuple(rows),
    )


def _recall_cell(found: Recall) -> Cell:
    if found.ci_low is None or found.ci_high is None:
        return found.recall
    return f"{found.recall:.3f}", f"{found.ci_low:.3f} to {found.ci_high:.3f}"
