"""The part of the report that shows a map: which perturbations, in which order, in which words."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from phenomhpc.jobs.evaluation.groups import pathways
from phenomhpc.jobs.evaluation.scores import Evaluation
from phenomhpc.maps import cosine_map, mapped_pairs, similarity_order
from phenomhpc.report import Section, heatmap_figure, themed

MAX_HEATMAP = 400  # perturbations on a heatmap: those with the most known relationships


def heatmap_section(evaluation: Evaluation) -> Section:
    labels = evaluation.encoder.labels
    chosen, annotation, groups = _heatmap_rows(evaluation, labels)
    cosines = cosine_map(evaluation.encoder.profiles[chosen])
    order = similarity_order(cosines)
    if annotation:
        order = _by_group(order, groups)
    names = [labels[row] for row in chosen[order]]
    strips = [f"{groups[place]}" if groups[place] >= 0 else "" for place in order] if annotation else []
    shown = (
        "all" if len(names) == len(labels) else f"the {len(names):,} with most known relationships of {len(labels):,}"
    )
    text = [
        f"Cosine similarity of every two profiles ({shown}): red pairs change cells in the same way, blue pairs in opposite ways."
    ]
    if annotation:
        text.append(
            f"Neighbours are ordered by the groups that {annotation} connects, framed along the diagonal, and by similarity within "
            f"them. {_group_words(cosines, groups)}"
        )
    else:
        text.append(
            "Neighbours are ordered by average-linkage clustering, so groups of alike profiles stand out as red blocks."
        )
    picture = themed(
        heatmap_figure,
        cosines[np.ix_(order, order)],
        names,
        strips,
        name="cluster_map",
        alt=f"Heatmap of the cosine similarities of {len(names)} perturbations. {text[-1]}",
    )
    return Section(title="Which perturbations look alike", text=tuple(text), pictures=(picture,))


def _heatmap_rows(evaluation: Evaluation, labels: list[str]) -> tuple[NDArray[np.intp], str, list[int]]:
    """Rows of the map to draw, the annotation that groups them ("" for none), and the group of each of those rows."""
    relations = evaluation.annotations.relationships
    partners: Counter[int] = Counter()
    for name in evaluation.encoder.recalls:
        partners.update(mapped_pairs(labels, relations[name]).ravel().tolist())
    best, best_groups = pathways(labels, evaluation.annotations, evaluation.encoder.recalls)
    if len(labels) <= MAX_HEATMAP:
        chosen = np.arange(len(labels))
    else:
        ranked = sorted(partners, key=lambda row: (-partners[row], labels[row]))
        chosen = np.sort(np.array(ranked[:MAX_HEATMAP], dtype=np.intp))
    return chosen, best, [best_groups[row] for row in chosen]


def _by_group(order: NDArray[np.intp], groups: list[int]) -> NDArray[np.intp]:
    """`order` with groups together, where their members are on average; those of no group last."""
    place = np.empty(len(order))
    place[order] = np.arange(len(order))
    member = np.array(groups)
    centre = {group: place[member == group].mean() if group >= 0 else np.inf for group in set(groups)}
    return np.array(
        sorted(range(len(order)), key=lambda row: (centre[groups[row]], groups[row], place[row])), dtype=np.intp
    )


def _signed(value: float) -> str:
    """Two digits, and no minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _group_words(cosines: NDArray[np.float64], groups: list[int]) -> str:
    member = np.array(groups)
    known = member >= 0
    here = cosines[np.ix_(known, known)]
    same = member[known][:, None] == member[known][None, :]
    upper = np.triu(np.ones_like(same), 1)
    within, between = here[same & upper], here[~same & upper]
    if not within.size or not between.size:
        return ""
    text = (
        f"On average the similarity is {within.mean():.2f} within a group and {_signed(between.mean())} between groups."
    )
    return text.replace("-", "\N{MINUS SIGN}")
