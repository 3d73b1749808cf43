"""The report of an evaluation: which sections, which words."""

from __future__ import annotations

from pathlib import Path

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import Binding, EmbeddingsPaths, read_binding
from phenomhpc.jobs.evaluation.batches import batches_section
from phenomhpc.jobs.evaluation.beside import benchmarks_sections, way_section
from phenomhpc.jobs.evaluation.blocks_section import blocks_sections
from phenomhpc.jobs.evaluation.genome import genome_section
from phenomhpc.jobs.evaluation.groups import pathways
from phenomhpc.jobs.evaluation.heatmap import heatmap_section
from phenomhpc.jobs.evaluation.learning import learning_sections
from phenomhpc.jobs.evaluation.lookup import neighbours_section
from phenomhpc.jobs.evaluation.recall_section import recall_section
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.jobs.evaluation.words import ALIGNMENTS, source_name
from phenomhpc.report import Neighbours, Section, Table, render_report
from phenomhpc.runs import now


def report_sections(
    config: EvaluateConfig, evaluation: Evaluation, source: Path, found: Neighbours | None
) -> list[Section]:
    """All sections.  source: the embeddings; found: what can be looked up, None for a map of one perturbation."""
    binding = read_binding(EmbeddingsPaths(source)) if source.is_dir() else None
    labels = evaluation.encoder.labels
    annotation, groups = pathways(labels, evaluation.annotations, evaluation.encoder.recalls)
    return [
        _what(config, evaluation, binding, source),
        recall_section(config, evaluation),
        way_section(config, evaluation),
        batches_section(evaluation.wells, evaluation.seen, labels, annotation, groups),
        *([neighbours_section(found)] if found is not None else []),
        heatmap_section(evaluation),
        *genome_section(evaluation),
        *benchmarks_sections(evaluation),
        *blocks_sections(evaluation),
        *learning_sections(binding),
        *_left_out(evaluation),
    ]


def report_page(evaluation: Evaluation, sections: list[Section]) -> str:
    """The page."""
    noun = evaluation.wells.noun
    return render_report(
        f"A map of {len(evaluation.encoder.labels):,} {noun}s from {len(evaluation.wells.label):,} wells",
        sections,
        lead=headline(evaluation),
        made=f"Made {now()[:16].replace('T', ' ')} UTC",
    )


def headline(evaluation: Evaluation) -> str:
    """Two sentences: the encoder's recall on the first annotation, and what chance and the baselines find."""
    name, recalls = next(iter(evaluation.encoder.recalls.items()))
    first = recalls[0]
    others = [
        f"{source_name(scored.source)} {scored.recalls[name][0].recall:.0%}"
        for scored in evaluation.maps[1:]
        if name in scored.recalls
    ]
    return (
        f"The map finds {first.recall:.0%} of {first.num_pairs:,} known relationships ({name}) among the {first.chance:.0%} of "
        f"pairs that are most alike or most opposite. By chance it would find {first.chance:.0%}; {', '.join(others)}."
    )


def _what(config: EvaluateConfig, evaluation: Evaluation, binding: Binding | None, source: Path) -> Section:
    wells, noun = evaluation.wells, evaluation.wells.noun
    unlabelled = sum(not label for label in wells.label) - int(wells.is_control.sum())
    facts = [
        ("wells", f"{len(wells.label):,}"),
        ("of them controls", f"{int(wells.is_control.sum()):,}"),
        (f"{noun}s in the map", f"{len(evaluation.encoder.labels):,}"),
        ("features per well", f"{wells.features.shape[1]:,}"),
        ("alignment", ALIGNMENTS[config.align]),
        *([] if config.align == "none" else [("batches", f"{len(set(wells.batch)):,} (by {config.batch})")]),
        ("arm correction", _arm_words(config, evaluation)),
        *_encoder_facts(binding, source),
    ]
    text = [
        "Every well of cells was photographed and turned into a list of numbers, its embedding. Wells of one perturbation are "
        f"averaged into a profile, and profiles are compared with each other: {noun}s whose loss changes cells in the same "
        "way should have similar profiles. The map is the table of all those similarities.",
    ]
    if config.align != "none":
        text.append(
            "Plates differ for technical reasons too: stain, focus, day. Before averaging, those differences are learned from "
            "the untreated control wells of each batch and taken out."
        )
    if unlabelled:
        text.append(f"{unlabelled:,} wells name no {noun} and are not in the map.")
    if wells.num_dropped:
        text.append(f"{wells.num_dropped:,} features are no finite number in some well and were left out.")
    return Section(title="What was evaluated", text=tuple(text), facts=tuple(facts))


def _arm_words(config: EvaluateConfig, evaluation: Evaluation) -> str:
    if not config.arm_correction:
        return "off"
    arms = evaluation.corrected_arms
    return ", ".join(arms) if arms else "asked for, but no arm has more than 20 unexpressed genes"


def _encoder_facts(binding: Binding | None, source: Path) -> list[tuple[str, str]]:
    if binding is None:
        return [("embeddings", source.name)]
    step = Path(binding.checkpoint)
    return [
        (
            "checkpoint",
            f"{step.name}" + (f" of {step.parent.parent.name}" if step.parent.name == "checkpoints" else ""),
        ),
        ("encoder block", f"{binding.block}, {binding.pooling} pooling"),
        ("snapshot of the images", binding.snapshot_digest[:12]),
    ]


def _left_out(evaluation: Evaluation) -> list[Section]:
    missing = evaluation.encoder.benchmarks.left_out
    tables = []
    if evaluation.set_aside:
        tables.append(Table(caption="Set aside", columns=("what", "why"), rows=evaluation.set_aside, numeric=False))
    if missing:
        tables.append(Table(caption="Not measured", columns=("benchmark", "why"), rows=missing, numeric=False))
    if not tables:
        return []
    return [
        Section(title="What was left out", text=("Not everything could be used or measured:",), tables=tuple(tables))
    ]
