"""The part of the report that sets the blocks of an encoder beside each other."""

from __future__ import annotations

from phenomhpc.jobs.evaluation.beside import recall_measured, with_interval
from phenomhpc.jobs.evaluation.blocks import best_block
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.report import Measured, Section, Series, Table, themed, way_figure


def blocks_sections(evaluation: Evaluation) -> list[Section]:
    """Which block embeds best; nothing where one alone was looked at."""
    found = evaluation.blocks
    if not found:
        return []
    best = best_block(found)
    stages = [str(score.block) for score in found]
    panels: list[tuple[str, str, float | None, list[Series]]] = []
    if all(score.probe is not None for score in found):
        probes = [score.probe for score in found if score.probe is not None]
        values = tuple(
            Measured(name=str(number), value=probe.accuracy, ci_low=probe.ci_low, ci_high=probe.ci_high)
            for number, probe in enumerate(probes)
        )
        chance = probes[0].chance
        panels.append(("Linear probe", "share of wells named right", chance, [Series(name="probe", values=values)]))
    first = next(iter(found[0].recalls.values()))[0]
    lines = [
        Series(
            name=name,
            values=tuple(
                recall_measured(name, score.recalls[name][0]) if name in score.recalls else None for score in found
            ),
        )
        for name in found[0].recalls
    ]
    panels.append(("Known relationships found", f"recall at {first.lo:g}, {first.hi:g}", first.chance, lines))
    judged = "a linear probe of the wells" if best.probe else f"the mean recall ({found[0].reason or 'no probe'})"
    picture = themed(
        way_figure,
        stages,
        panels,
        name="blocks",
        alt=f"Probe accuracy and recall over {len(found)} blocks; the best is block {best.block}.",
        caption="By encoder block, the first one left. Bars are 95 % intervals; dashed: chance.",
    )
    rows = tuple(
        (
            f"block {score.block}",
            with_interval(score.probe.accuracy, score.probe.ci_low, score.probe.ci_high) if score.probe else None,
            *(
                with_interval(recalls[0].recall, recalls[0].ci_low, recalls[0].ci_high)
                for recalls in score.recalls.values()
            ),
        )
        for score in found
    )
    table = Table(
        caption=f"Every block; recall at {first.lo:g} and {first.hi:g}",
        columns=("", "probe accuracy", *found[0].recalls),
        rows=rows,
    )
    text = f"Block {best.block} embeds best, by {judged}. Embeddings of it are made with block={best.block}."
    details: tuple[str, ...] = ()
    if best.probe:
        details = (
            f"A ridge classifier learns {best.probe.num_classes} perturbations from {best.probe.num_train:,} wells "
            "and is asked about "
            f"{best.probe.num_test:,} others, of other batches where there are enough of them. All blocks are aligned "
            "in the same way.",
        )
    return [
        Section(title="Which block embeds best", text=(text,), pictures=(picture,), tables=(table,), details=details)
    ]
