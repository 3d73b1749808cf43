"""The part of the report that sets the blocks of an encoder beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from phenomhpc.jobs.evaluation.beside import LinePanel, recall_panel, with_interval
from phenomhpc.jobs.evaluation.blocks import BlockScore, best_block
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.maps.probe import Probe
from phenomhpc.report import Measured, Section, Series, Table, themed, way_figure


def blocks_sections(evaluation: Evaluation) -> list[Section]:
    """Which block embeds best; nothing where one alone was looked at."""
    found = evaluation.blocks
    if not found:
        return []
    best = best_block(found)
    judged = "a linear probe of the wells" if best.probe else f"the mean recall ({found[0].reason or 'no probe'})"
    picture = themed(
        way_figure,
        [str(score.block) for score in found],
        [*_probe_panels(found), recall_panel([score.recalls for score in found])],
        name="blocks",
        alt=f"Probe accuracy and recall over {len(found)} blocks; the best is block {best.block}.",
        caption="By encoder block, the first one left. Bars are 95 % intervals; dashed: chance.",
    )
    text = f"Block {best.block} embeds best, by {judged}. Embeddings of it are made with block={best.block}."
    return [
        Section(
            title="Which block embeds best",
            text=(text,),
            pictures=(picture,),
            tables=(_block_table(found),),
            details=() if best.probe is None else (_probe_words(best.probe),),
        )
    ]


def _probe_panels(found: Sequence[BlockScore]) -> list[LinePanel]:
    """The probe's accuracy by block; nothing where a block could not be probed."""
    probes = [score.probe for score in found if score.probe is not None]
    if len(probes) < len(found):
        return []
    values = tuple(
        Measured(name=str(number), value=probe.accuracy, ci_low=probe.ci_low, ci_high=probe.ci_high)
        for number, probe in enumerate(probes)
    )
    return [("Linear probe", "share of wells named right", probes[0].chance, [Series(name="probe", values=values)])]


def _block_table(found: Sequence[BlockScore]) -> Table:
    first = next(iter(found[0].recalls.values()))[0]
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
    return Table(
        caption=f"Every block; recall at {first.lo:g} and {first.hi:g}",
        columns=("", "probe accuracy", *found[0].recalls),
        rows=rows,
    )


def _probe_words(probe: Probe) -> str:
    return (
        f"A ridge classifier learns {probe.num_classes} perturbations from {probe.num_train:,} wells and is asked about "
        f"{probe.num_test:,} others, of other batches where there are enough of them. All blocks are aligned in the same way."
    )
