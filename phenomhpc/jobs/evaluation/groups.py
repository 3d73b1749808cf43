"""Pathways and complexes: which perturbations belong together, where the annotations say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from phenomhpc.jobs.evaluation.annotations import Annotations
from phenomhpc.maps import connected_groups

LARGEST_GROUP = 1 / 3  # an annotation whose largest group holds more of the genes is a network, not a list of pathways
MIN_COMPLEX = 10  # genes of a complex that is tested for coherence


def pathways(labels: list[str], annotations: Annotations, names: Iterable[str]) -> tuple[str, list[int]]:
    """The annotation of `names` whose pairs make the most groups, and the group of each label, -1 for none.

    ("", ...) where all of them are networks.
    """
    best, best_groups = "", [-1] * len(labels)
    for name in names:
        groups = connected_groups(labels, annotations.relationships[name])
        sizes = Counter(group for group in groups if group >= 0)
        if not sizes:
            continue
        if max(sizes.values()) <= LARGEST_GROUP * sizes.total() and len(sizes) > len(set(best_groups)) - 1:
            best, best_groups = name, groups
    return best, best_groups


def group_name(members: list[str]) -> str:
    """A group by its first two members."""
    first = ", ".join(members[:2])
    return first if len(members) <= 2 else f"{first} +{len(members) - 2}"


def complexes(labels: list[str], annotations: Annotations) -> tuple[str, dict[str, list[str]]]:
    """Where the complexes are from, and their genes in the map: complexes.tsv, or else the groups that one annotation connects.

    Only those with at least MIN_COMPLEX genes in the map.
    """
    if annotations.complexes:
        here = set(labels)
        found = {name: sorted(genes & here) for name, genes in annotations.complexes.items()}
        return "complexes.tsv", {name: genes for name, genes in found.items() if len(genes) >= MIN_COMPLEX}
    source, groups = pathways(labels, annotations, annotations.relationships)
    members: dict[int, list[str]] = {}
    for label, group in zip(labels, groups, strict=True):
        if group >= 0:
            members.setdefault(group, []).append(label)
    large = [genes for genes in members.values() if len(genes) >= MIN_COMPLEX]
    return f"groups that {source} connects", {group_name(genes): genes for genes in large}
