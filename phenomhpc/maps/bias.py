"""Proximity bias: CRISPR cuts can take the rest of a chromosome arm with them, so genes of one arm look alike.

Correction (Lazar et al. 2023, doi:10.1101/2023.04.15.537038): what the unexpressed genes of an arm have in common cannot come
from those genes, so their mean profile is subtracted from every gene of the arm.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features, as_unique_labels

MIN_UNEXPRESSED = 20  # an arm is corrected when strictly more of its unexpressed genes are in the map

# 19q13.43, Xp22.3-p22.2, 3pter-p14, 17q; a second end may be on the other arm, which _arm finds out.
_LOCUS = re.compile(r"(?P<chromosome>\d{1,2}|X|Y)(?P<arm>[pq])(?:ter|[\d.]*)(?:-(?P<other>[pq])(?:ter|[\d.]*))?$")


def arms_of(loci: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    """Chromosome arm ("19q") per gene, from (gene, cytogenetic locus) such as ("A1BG", "19q13.43").

    Genes whose locus names no arm, or more than one, are left out: reserved, mitochondrial and unplaced ones, a bare
    chromosome ("20"), both arms ("16p12-q12"), two places ("Xp22.33 and Yp11.32"); so is a gene listed on several arms.
    """
    found: dict[str, set[str]] = {}
    for gene, locus in loci.items() if isinstance(loci, Mapping) else loci:
        arm = _arm(locus)
        if arm is not None:
            found.setdefault(gene, set()).add(arm)
    return {gene: arms.pop() for gene, arms in found.items() if len(arms) == 1}


def arms_by_position(
    genes: Iterable[tuple[str, str, int]], centromeres: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Chromosome arm per gene, from (gene, chromosome, end in base pairs) and every centromere's (start, end).

    A gene whose end lies before the middle of the centromere is on p, any other on q.  Left out: genes on chromosomes without
    a centromere here (mitochondrial ones), and those listed on several arms.  "chr7" and "7" are one chromosome.
    Raises UsageError for genes none of which is on a chromosome with a centromere.
    """
    middle = {name.removeprefix("chr"): (start + end) / 2 for name, (start, end) in centromeres.items()}
    found: dict[str, set[str]] = {}
    given = None
    for gene, chromosome, end in genes:
        given, name = given or chromosome, chromosome.removeprefix("chr")
        if name in middle:
            found.setdefault(gene, set()).add(f"{name}{'p' if end < middle[name] else 'q'}")
    if not found:
        raise UsageError(
            f"arms: no gene is on a chromosome with a centromere (genes are on {given}, ...; centromeres: "
            f"{', '.join(list(middle)[:3]) or 'none'}, ...)"
        )
    return {gene: arms.pop() for gene, arms in found.items() if len(arms) == 1}


def _arm(locus: str) -> str | None:
    places = [place.split(" ")[0] for place in locus.strip().split(" and ")]
    found = [_LOCUS.match(place) for place in places]
    arms = {
        f"{match['chromosome']}{arm}" if match else None
        for match in found
        for arm in ((match["arm"], match["other"] or match["arm"]) if match else ("",))
    }
    return arms.pop() if len(arms) == 1 else None


def correctable_arms(labels: Collection[str], arms: Mapping[str, str], unexpressed: Collection[str]) -> dict[str, int]:
    """Arms that can be corrected in a map of `labels`, with the number of their unexpressed genes in it (more than 20)."""
    silent = set(unexpressed)
    counts = Counter(arms[label] for label in labels if label in silent and label in arms)
    return {arm: number for arm, number in sorted(counts.items()) if number > MIN_UNEXPRESSED}


def arm_correction(
    features: ArrayLike, labels: Sequence[str], arms: Mapping[str, str], unexpressed: Collection[str]
) -> Features:
    """Per arm with strictly more than 20 unexpressed genes, subtract the mean of their profiles from all genes of the arm.

    features: f64[g, d], one profile per gene; labels: the g genes; arms: gene -> arm, as `arms_of` gives it
    Returns f64[g, d].  Genes of other arms, and of none, are as they were.  Raises UsageError for a duplicate label.
    """
    corrected = np.array(as_features(features))
    genes = as_unique_labels(labels, len(corrected))
    unexpressed = set(unexpressed)
    if not arms:
        raise UsageError("arm correction: no gene has a chromosome arm; give loci such as 19q13.43")
    of_row = np.array([arms.get(gene, "") for gene in genes])
    silent = np.array([gene in unexpressed for gene in genes])
    for arm in correctable_arms(genes, arms, unexpressed):
        on_arm = of_row == arm
        corrected[on_arm] -= corrected[on_arm & silent].mean(axis=0)
    return corrected
