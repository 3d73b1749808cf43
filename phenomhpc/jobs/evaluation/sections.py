"""The report of an evaluation: which sections, which words, which pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.config import EvaluateConfig
from phenomhpc.embed.folder import Binding, EmbeddingsPaths, read_binding
from phenomhpc.jobs.evaluation.heatmap import heatmap_section
from phenomhpc.jobs.evaluation.scores import ENCODER, RANDOM, UNTRAINED, Evaluation
from phenomhpc.maps import Recall
from phenomhpc.report import (
    Cell,
    Picture,
    RecallPoint,
    Section,
    Table,
    curves_figure,
    recall_figure,
    reconstruction_figure,
    render_report,
    themed,
)
from phenomhpc.runs import RunPaths, now

ALIGNMENTS = {
    "none": "none",
    "center_scale": "centre and scale per batch",
    "pca_cs": "PCA, centre and scale",
    "tvn": "TVN",
    "tvn_efaar": "TVN as in EFAAR",
}
BASELINES = {
    UNTRAINED: "untrained network",
    "intensity": "intensity statistics",
    RANDOM: "random features",
}


def report(config: EvaluateConfig, evaluation: Evaluation, cosines: NDArray[np.float64], source: Path) -> str:
    """The page.  cosines: f64[g, g] of the encoder's map; source: the embeddings."""
    binding = read_binding(EmbeddingsPaths(source)) if source.is_dir() else None
    sections = [
        _what(config, evaluation, binding, source),
        _recall(config, evaluation),
        heatmap_section(evaluation, cosines),
        *_training(binding),
        *_left_out(evaluation),
    ]
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
        f"{_name(scored.source)} {scored.recalls[name][0].recall:.0%}"
        for scored in evaluation.maps[1:]
        if name in scored.recalls
    ]
    return (
        f"The map finds {first.recall:.0%} of {first.num_pairs:,} known relationships ({name}) among the {first.chance:.0%} of "
        f"pairs that are most alike or most opposite. By chance it would find {first.chance:.0%}; {', '.join(others)}."
    )


def _name(source: str) -> str:
    return "encoder" if source == ENCODER else BASELINES.get(source, source)


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


def _recall(config: EvaluateConfig, evaluation: Evaluation) -> Section:
    points = [
        RecallPoint(
            source=_name(scored.source), annotation=name, lo=recall.lo, hi=recall.hi, recall=recall.recall,
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
            *(_name(scored.source) for scored in evaluation.maps),
        ),
        rows=tuple(rows),
    )


def _recall_cell(found: Recall) -> Cell:
    if found.ci_low is None or found.ci_high is None:
        return found.recall
    return f"{found.recall:.3f}", f"{found.ci_low:.3f} to {found.ci_high:.3f}"


def _training(binding: Binding | None) -> list[Section]:
    """How the encoder was trained, where its run is at hand: reconstructions and curves."""
    if binding is None or Path(binding.checkpoint).parent.name != "checkpoints":
        return []
    training = RunPaths(Path(binding.checkpoint).parent.parent)
    pictures = [*_reconstructions(training), *_curves(training)]
    if not pictures:
        return []
    return [
        Section(
            title="How the encoder learned",
            text=(
                "The encoder was trained without labels. It is shown a part of each crop and, with a small decoder, has to "
                "complete the rest; to do so it must learn what cells look like. The decoder is then thrown away.",
            ),
            pictures=tuple(pictures),
        )
    ]


def _reconstructions(training: RunPaths) -> list[Picture]:
    if not training.reconstructions.is_file():
        return []
    with np.load(training.reconstructions, allow_pickle=False) as arrays:
        crops = [arrays[name] for name in ("original", "masked", "reconstructed")]
    return [
        themed(
            reconstruction_figure,
            *crops,
            alt=f"{min(len(crops[0]), 6)} crops in three rows: the original, the patches the model was shown, and its completion.",
            caption=f"Crops in false colours ({crops[0].shape[1]} channels blended): above the original, in the middle what "
            "the model was shown, below that with the hidden patches as it completed them.",
        )
    ]


def _curves(training: RunPaths) -> list[Picture]:
    from phenomhpc.train.metrics import read_metrics

    table = read_metrics(training.metrics)
    if table.num_rows < 2:
        return []
    metrics = {name: table[name].to_numpy(zero_copy_only=False) for name in ("step", "loss", "crops_per_s")}
    return [
        themed(
            curves_figure,
            metrics,
            alt=f"Two curves over {table.num_rows} steps: the loss goes from {metrics['loss'][0]:.3f} to "
            f"{metrics['loss'][-1]:.3f}; the median throughput is {np.nanmedian(metrics['crops_per_s']):.0f} crops per second.",
            caption=f"Training over {table.num_rows:,} steps: loss (left) and crops per second over all ranks (right), each "
            "with its running mean.",
        )
    ]


def _left_out(evaluation: Evaluation) -> list[Section]:
    if not evaluation.set_aside:
        return []
    table = Table(caption="Set aside", columns=("what", "why"), rows=evaluation.set_aside, numeric=False)
    return [Section(title="What was left out", text=("Some of the input could not be used:",), tables=(table,))]
