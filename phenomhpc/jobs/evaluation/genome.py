"""The whole genome in one square: similarities along the chromosomes, with and without arm correction."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from phenomhpc.jobs.evaluation.scores import ALIGNED, CORRECTED, RAW, Evaluation
from phenomhpc.maps.relate import unit_rows
from phenomhpc.report import Section, genome_figure, themed

MAX_BLOCKS = 600  # rows of the picture; more genes are drawn as means of neighbours on one arm
_ARM = re.compile(r"(\d+|X|Y)([pq])$")
_LAST = {"X": 23, "Y": 24}


def genome_section(evaluation: Evaluation) -> list[Section]:
    """Nothing where no two genes of the map have a chromosome arm."""
    rows, arms = genome_order(evaluation.encoder.labels, evaluation.annotations.arms)
    before = evaluation.stage(ALIGNED) or evaluation.stage(RAW)
    after = evaluation.stage(CORRECTED)
    if len(rows) < 2 or before is None:
        return []
    genes = [evaluation.encoder.labels[row] for row in rows]
    blocks, bounds = arm_blocks(arms)
    uncorrected = block_cosines(before.profiles[rows], blocks, genes)
    corrected = uncorrected if after is None else block_cosines(after.profiles[rows], blocks, genes)
    words = ("without arm correction", "with arm correction" if after else "the same: no arm can be corrected")
    size = int(np.ceil(len(rows) / len(blocks)))
    shown = f"{len(rows):,} genes in {len(blocks):,} blocks of about {size}" if size > 1 else f"{len(rows):,} genes"
    picture = themed(
        genome_figure,
        uncorrected,
        corrected,
        bounds,
        words,
        name="genome",
        alt=f"Heatmap of similarities of {shown}, ordered by chromosome arm; above the diagonal {words[0]}, below it {words[1]}.",
        caption=f"{shown}, ordered by chromosome and arm; frames along the diagonal are arms. Red is alike, blue is opposite.",
    )
    text = [
        "A cut of CRISPR can remove the rest of the chromosome arm, so that genes of one arm look alike without "
        "working together. Red "
        "squares along the diagonal are that bias.",
    ]
    text.append(
        "Correction takes out what the unexpressed genes of an arm have in common; it is possible on "
        f"{len(evaluation.corrected_arms)} "
        f"of {len(bounds)} arms here."
        if after
        else "No arm can be corrected: that takes more than 20 unexpressed genes on it."
    )
    return [Section(title="The genome, arm by arm", text=tuple(text), pictures=(picture,))]


def genome_order(labels: list[str], arms: dict[str, str]) -> tuple[NDArray[np.intp], list[str]]:
    """Rows of the genes that have an arm, by chromosome, arm and name, and the arm of each."""

    def key(row: int) -> tuple[int, str, str]:
        found = _ARM.match(arms[labels[row]])
        assert found is not None  # arms_of lets no other pass
        chromosome = found[1]
        return (_LAST[chromosome] if chromosome in _LAST else int(chromosome), found[2], labels[row])

    rows = sorted((row for row, label in enumerate(labels) if label in arms), key=key)
    return np.array(rows, dtype=np.intp), [arms[labels[row]] for row in rows]


def arm_blocks(arms: list[str]) -> tuple[list[tuple[int, int]], list[tuple[str, int, int]]]:
    """Rows [start, end) of at most about MAX_BLOCKS blocks, none over two arms; and the blocks [start, end) of each arm."""
    size = max(1, int(np.ceil(len(arms) / MAX_BLOCKS)))
    blocks: list[tuple[int, int]] = []
    bounds: list[tuple[str, int, int]] = []
    start = 0
    while start < len(arms):
        end = start
        while end < len(arms) and arms[end] == arms[start]:
            end += 1
        first = len(blocks)
        blocks += [(at, min(at + size, end)) for at in range(start, end, size)]
        bounds.append((arms[start], first, len(blocks)))
        start = end
    return blocks, bounds


def block_cosines(
    profiles: NDArray[np.float64], blocks: list[tuple[int, int]], genes: list[str]
) -> NDArray[np.float64]:
    """Mean cosine of every two blocks, pairs of a row with itself left out: f64[b, b].  Raises UsageError for a profile of zeros.

    The mean over all pairs of two blocks is the product of the blocks' mean directions, so no map is needed.
    """
    unit = unit_rows(profiles, genes)
    sums = np.stack([unit[start:end].sum(axis=0) for start, end in blocks])
    sizes = np.array([end - start for start, end in blocks], dtype=np.float64)
    means: NDArray[np.float64] = (sums @ sums.T) / (sizes[:, None] * sizes[None, :])
    own = np.einsum("ij,ij->i", sums, sums) - sizes
    with np.errstate(invalid="ignore", divide="ignore"):
        np.fill_diagonal(means, np.where(sizes > 1, own / (sizes * (sizes - 1)), 1.0))
    return means
