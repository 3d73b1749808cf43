"""Wells with a known truth in them: pathways, batch effects, chromosome arm bias, each as strong as asked for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

CONTROL = "EMPTY_control"


@dataclass(frozen=True, kw_only=True)
class PlantedWells:
    """features f64[n, d]; per well: label (CONTROL for controls), batch, is_control bool[n].

    pairs: all pairs within pathways; real_pairs: those of pathways that have a phenotype
    arms: gene -> arm; unexpressed: genes whose knockout does nothing but harm to their arm
    """

    features: NDArray[np.float64]
    label: list[str]
    batch: list[str]
    is_control: NDArray[np.bool_]
    genes: list[str]
    pairs: list[tuple[str, str]]
    real_pairs: list[tuple[str, str]]
    arms: dict[str, str]
    unexpressed: frozenset[str]

    def planted_recall(self, chance: float) -> float:
        """Of a map that finds every real pair, and the others by chance."""
        share = len(self.real_pairs) / len(self.pairs)
        return share + (1.0 - share) * chance


def planted_wells(
    *,
    batch_effect: float = 0.0,
    arm_bias: float = 0.0,
    strength: float = 2.0,
    real_share: float = 0.6,
    num_pathways: int = 60,
    genes_per_pathway: int = 5,
    num_arms: int = 12,
    unexpressed_per_arm: int = 24,
    replicates: int = 3,
    num_batches: int = 8,
    controls_per_batch: int = 60,
    dim: int = 48,
    seed: int = 0,
) -> PlantedWells:
    """All replicates of a gene are in one batch drawn at random, so batches decide who is alike until they are aligned.

    strength: length of a real pathway's phenotype in standard deviations of a well's noise, per feature; batch_effect: of a
    batch's offset, and, a tenth of it, of the logarithm of its scales; arm_bias: of what all genes of an arm share.
    """
    generator = np.random.default_rng(seed)
    num_pathway_genes = num_pathways * genes_per_pathway
    num_genes = num_pathway_genes + num_arms * unexpressed_per_arm
    genes = [f"GENE{number:04d}" for number in range(num_genes)]
    members = [genes[start : start + genes_per_pathway] for start in range(0, num_pathway_genes, genes_per_pathway)]
    num_real = round(real_share * num_pathways)
    phenotype = np.zeros((num_genes, dim))
    for number in range(num_real):
        rows = slice(number * genes_per_pathway, (number + 1) * genes_per_pathway)
        phenotype[rows] = strength * generator.normal(size=dim)
    arm = np.concatenate(
        [generator.integers(0, num_arms, num_pathway_genes), np.repeat(np.arange(num_arms), unexpressed_per_arm)]
    )
    phenotype += arm_bias * generator.normal(size=(num_arms, dim))[arm]
    offset = batch_effect * generator.normal(size=(num_batches, dim))
    scale = np.exp(0.1 * batch_effect * generator.normal(size=(num_batches, dim)))
    batch_of_gene = generator.integers(0, num_batches, num_genes)
    gene = np.concatenate([np.repeat(np.arange(num_genes), replicates), np.full(num_batches * controls_per_batch, -1)])
    batch = np.concatenate(
        [np.repeat(batch_of_gene, replicates), np.repeat(np.arange(num_batches), controls_per_batch)]
    )
    signal = np.where((gene >= 0)[:, None], phenotype[gene], 0.0)
    features = (signal + generator.normal(size=(len(gene), dim))) * scale[batch] + offset[batch]
    return PlantedWells(
        features=features,
        label=[genes[number] if number >= 0 else CONTROL for number in gene],
        batch=[f"batch{number}" for number in batch],
        is_control=gene < 0,
        genes=genes,
        pairs=[pair for names in members for pair in combinations(names, 2)],
        real_pairs=[pair for names in members[:num_real] for pair in combinations(names, 2)],
        arms={name: f"{number // 2 + 1}{'pq'[number % 2]}" for name, number in zip(genes, arm.tolist(), strict=True)},
        unexpressed=frozenset(genes[num_pathway_genes:]),
    )
