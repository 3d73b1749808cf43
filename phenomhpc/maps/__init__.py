"""Embeddings to maps of biology: arrays in, arrays out, no files, float64 throughout.

align       batches made comparable by their controls: center_scale, pca_cs, tvn, coral; in blocks where memory is short
aggregate   wells to one profile per perturbation
bias        what genes of one chromosome arm share by accident, subtracted
relate      cosines between profiles, known pairs
benchmark   how many known relationships the map finds again, within and between arms, and how much more another map finds
replicates  do perturbations do anything: consistency and magnitude
complexes   are the genes of a complex alike
proximity   how much genes of one chromosome arm look alike
retrieval   do replicates find each other, and compounds their targets
scaling     how scores grow with compute

Every score says its chance level and its bootstrap interval; results.py holds what they return.
"""

from phenomhpc.maps.aggregate import aggregate, aggregate_blocks
from phenomhpc.maps.align import METHODS, Alignment, align, center_scale, coral, fit_alignment, pca_cs, tvn
from phenomhpc.maps.benchmark import (
    check_thresholds,
    compare_recalls,
    random_features,
    recalls_by_arm,
    relationship_recall,
    relationship_recalls,
)
from phenomhpc.maps.bias import arm_correction, arms_by_position, arms_of, correctable_arms
from phenomhpc.maps.bootstrap import bootstrap_interval
from phenomhpc.maps.complexes import complex_coherence
from phenomhpc.maps.proximity import proximity_bias
from phenomhpc.maps.relate import (
    connected_groups,
    cosine_map,
    cosine_null,
    mapped_pairs,
    similarity_order,
    unique_pairs,
)
from phenomhpc.maps.replicates import perturbation_consistency, perturbation_magnitude
from phenomhpc.maps.results import (
    ArmRecalls,
    ComplexScores,
    CompoundRetrieval,
    PerturbationScores,
    ProximityBias,
    Recall,
    RecallAt,
    RecallDifference,
    ReplicateRetrieval,
    chance_level,
)
from phenomhpc.maps.retrieval import compound_gene_retrieval, replicate_retrieval
from phenomhpc.maps.scaling import LogLinear, fit_log_linear

__all__ = [
    "METHODS",
    "Alignment",
    "ArmRecalls",
    "ComplexScores",
    "CompoundRetrieval",
    "LogLinear",
    "PerturbationScores",
    "ProximityBias",
    "Recall",
    "RecallAt",
    "RecallDifference",
    "ReplicateRetrieval",
    "aggregate",
    "aggregate_blocks",
    "align",
    "arm_correction",
    "arms_by_position",
    "arms_of",
    "bootstrap_interval",
    "center_scale",
    "chance_level",
    "check_thresholds",
    "compare_recalls",
    "complex_coherence",
    "compound_gene_retrieval",
    "connected_groups",
    "coral",
    "correctable_arms",
    "cosine_map",
    "cosine_null",
    "fit_alignment",
    "fit_log_linear",
    "mapped_pairs",
    "pca_cs",
    "perturbation_consistency",
    "perturbation_magnitude",
    "proximity_bias",
    "random_features",
    "recalls_by_arm",
    "relationship_recall",
    "relationship_recalls",
    "replicate_retrieval",
    "similarity_order",
    "tvn",
    "unique_pairs",
]
