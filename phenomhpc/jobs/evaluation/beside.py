"""The parts of the report that set numbers beside each other: stages on the way to the map, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from phenomhpc.config import EvaluateConfig
from phenomhpc.jobs.evaluation.benchmarks import BY_ARM, CONSISTENCY
from phenomhpc.jobs.evaluation.groups import MIN_COMPLEX
from phenomhpc.jobs.evaluation.rows import FINAL, NO_THRESHOLD, RECALL, Score, scores
from phenomhpc.jobs.evaluation.scores import CORRECTED, Evaluation, Stage
from phenomhpc.jobs.evaluation.words import ALIGNMENTS, source_name
from phenomhpc.maps import PerturbationScores, Recall
from phenomhpc.report import (
    Cell,
    Measured,
    Panel,
    Picture,
    Section,
    Series,
    Table,
    panels_figure,
    spread_figure,
    themed,
    way_figure,
)

LinePanel = tuple[str, str, float | None, list[Series]]  # of way_figure: title, axis, chance, lines


def way_section(config: EvaluateConfig, evaluation: Evaluation) -> Section:
    """What alignment and arm correction do: recall and proximity bias at every stage."""
    names = [stage.name for stage in evaluation.stages]
    picture = themed(
        way_figure,
        names,
        [recall_panel([stage.recalls for stage in evaluation.stages]), *_bias_panels(evaluation.stages)],
        name="way",
        alt="; ".join(
            f"{stage.name}: " + ", ".join(f"{name} {recalls[0].recall:.2f}" for name, recalls in stage.recalls.items())
            for stage in evaluation.stages
        ),
        caption="Dashed: what a map without knowledge finds (left), and no bias (right). Bars are 95 % intervals.",
    )
    used = evaluation.stages[-1].name if config.arm_correction or names[-1] != CORRECTED else names[-2]
    return Section(
        title="From wells to the map",
        text=(
            f"The same wells at every stage. Alignment here is {ALIGNMENTS[config.align]}. All other numbers of this "
            "page are of the map "
            f"that is {used}.",
        ),
        pictures=(picture,),
        tables=(_stage_table(evaluation),),
    )  # fmt: skip


def recall_panel(recalls: Sequence[Mapping[str, list[Recall]]]) -> LinePanel:
    """Recall at the first thresholds over stages, or blocks: a line per annotation.  recalls: of each, by annotation."""
    names = dict.fromkeys(name for one in recalls for name in one)
    first = next(one[name][0] for one in recalls for name in one)
    lines = [
        Series(
            name=name,
            values=tuple(recall_measured(name, one[name][0]) if name in one else None for one in recalls),
        )
        for name in names
    ]
    return "Known relationships found", f"recall at {first.lo:g}, {first.hi:g}", first.chance, lines


def _bias_panels(stages: Sequence[Stage]) -> list[LinePanel]:
    """Proximity bias over stages; nothing where no arm could be tested."""
    values = tuple(
        None
        if stage.proximity is None
        else Measured(
            name=stage.name,
            value=stage.proximity.effect,
            ci_low=stage.proximity.ci_low,
            ci_high=stage.proximity.ci_high,
        )
        for stage in stages
    )
    if not any(values):
        return []
    return [("Proximity bias", "P(within arm > between arms)", 0.5, [Series(name="bias", values=values)])]


def recall_measured(name: str, one: Recall) -> Measured:
    """A recall to be drawn."""
    return Measured(name=name, value=one.recall, ci_low=one.ci_low, ci_high=one.ci_high)


def _stage_table(evaluation: Evaluation) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, recalls in evaluation.encoder.recalls.items():
        for index, sample in enumerate(recalls):
            found = [stage.recalls[name][index] if name in stage.recalls else None for stage in evaluation.stages]
            cells = [None if one is None else with_interval(one.recall, one.ci_low, one.ci_high) for one in found]
            rows.append((f"recall, {name}, {sample.lo:g} and {sample.hi:g}", f"{sample.chance:.2f}", *cells))
    if any(stage.proximity is not None for stage in evaluation.stages):
        biases = [stage.proximity for stage in evaluation.stages]
        rows.append(
            (
                "proximity bias",
                "0.50",
                *(None if one is None else with_interval(one.effect, one.ci_low, one.ci_high) for one in biases),
            )
        )
    return Table(
        caption="The encoder's map at every stage, with 95 % intervals",
        columns=("", "chance", *(stage.name for stage in evaluation.stages)),
        rows=tuple(rows),
    )


def with_interval(value: float, low: float | None, high: float | None) -> Cell:
    """A value with its interval below it, in a table."""
    return value if low is None or high is None else (f"{value:.3f}", f"{low:.3f} to {high:.3f}")


def benchmarks_sections(evaluation: Evaluation) -> list[Section]:
    """Every other benchmark, the encoder beside its baselines; then consistency in more detail."""
    found = [score for score in scores(evaluation) if score.stage == FINAL and score.benchmark != RECALL]
    if not found:
        return []
    kinds: dict[tuple[str, str, str, str], list[Score]] = {}
    for score in found:
        kinds.setdefault((score.benchmark, score.annotation, score.subset, score.threshold), []).append(score)
    panels = [_panel(group) for key, group in kinds.items() if key[0] != BY_ARM]
    pictures: list[Picture] = []
    if panels:
        pictures.append(
            themed(
                panels_figure,
                panels,
                name="benchmarks",
                alt="; ".join(
                    f"{panel.title}: " + ", ".join(f"{one.name} {one.value:.2f}" for one in panel.values)
                    for panel in panels
                ),
                caption="Encoder and baselines, with 95 % intervals; dashed: what a map that knows nothing would get.",
            )
        )
    sections = [
        Section(
            title="Other benchmarks",
            text=("Recall looks at pairs of known partners. Here the same map is asked other questions.",),
            pictures=tuple(pictures),
            tables=_benchmark_tables(evaluation, kinds),
            details=_complex_words(evaluation),
        )
    ]
    consistency = evaluation.encoder.benchmarks.consistency
    return sections if consistency is None else [*sections, _consistency(consistency)]


def _panel(group: list[Score]) -> Panel:
    first = group[0]
    return Panel(
        title=first.benchmark.capitalize(),
        note=first.subset if first.threshold == NO_THRESHOLD else f"{first.subset}\nwith {first.threshold}",
        values=tuple(
            Measured(
                name=source_name(score.source),
                value=score.value,
                ci_low=score.ci_low,
                ci_high=score.ci_high,
                chance=score.chance,
            )
            for score in group
        ),
    )


def _benchmark_tables(evaluation: Evaluation, kinds: dict[tuple[str, str, str, str], list[Score]]) -> tuple[Table, ...]:
    sources = [scored.source for scored in evaluation.maps]
    tables = []
    for caption, wanted in (
        ("Benchmarks", False),
        ("Recall of pairs on one arm and on two, against the same null", True),
    ):
        rows: list[tuple[Cell, ...]] = []
        for (benchmark, annotation, subset, threshold), group in kinds.items():
            if (benchmark == BY_ARM) != wanted:
                continue
            by_source = {score.source: score for score in group}
            cells = [
                with_interval(by_source[name].value, by_source[name].ci_low, by_source[name].ci_high)
                if name in by_source
                else None
                for name in sources
            ]
            name = f"{annotation}, {subset}" if wanted else benchmark
            counts = threshold if wanted else _counts(subset, threshold)
            small = f"{counts}; null: {group[0].null}"
            chance = group[0].chance
            rows.append(
                (
                    (name, small),
                    group[0].num,
                    "–" if chance is None else f"{chance:.2g}",
                    *cells,
                )
            )
        if rows:
            columns = ("", "number", "chance", *map(source_name, sources))
            tables.append(Table(caption=f"{caption}, with 95 % intervals", columns=columns, rows=tuple(rows)))
    return tuple(tables)


def _complex_words(evaluation: Evaluation) -> tuple[str, ...]:
    where, found = evaluation.complexes
    return (f"Complexes are {len(found)} from {where}, of {MIN_COMPLEX} genes or more.",) if found else ()


def _counts(subset: str, threshold: str) -> str:
    """What a value is a share or mean of, and what must hold for a thing to count."""
    return subset if threshold == NO_THRESHOLD else f"{subset} with {threshold}"


def _consistency(found: PerturbationScores) -> Section:
    hits = found.values[found.p_values <= found.alpha]
    picture = themed(
        spread_figure,
        found.values,
        found.null_values,
        ("perturbations", "unexpressed genes", "mean cosine of a perturbation's wells"),
        float(hits.min()) if len(hits) else None,
        name="consistency",
        alt=f"Mean cosine among replicates: median {np.median(found.values):.2f}, of unexpressed genes "
        f"{np.median(found.null_values):.2f}.",
        caption="Wells of one perturbation should look alike; those of genes that the cells do not express say how alike any wells "
        "are. Right of the dashed line a perturbation counts as consistent.",
    )
    return Section(
        title="Do wells of one perturbation agree?",
        text=(
            f"{found.hit_rate:.0%} of {len(found.labels):,} perturbations are more consistent than the "
            f"{found.num_null:,} unexpressed "
            f"genes of the null (p\N{NO-BREAK SPACE}≤\N{NO-BREAK SPACE}{found.alpha:g}); by chance it would be {found.chance:.0%}.",
        ),
        pictures=(picture,),
        details=(
            f"{CONSISTENCY.capitalize()} is the mean cosine over all pairs of a perturbation's wells; p = (k + 1) / "
            "(n + 1), with k of "
            "n null perturbations at least as consistent.",
        ),
    )  # fmt: skip
