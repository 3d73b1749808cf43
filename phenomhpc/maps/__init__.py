"""Embeddings to maps of biology: arrays in, arrays out, no files, float64 throughout.

align      batches made comparable by their controls: center_scale, pca_cs, tvn
aggregate  wells to one profile per perturbation
bias       what genes of one chromosome arm share by accident, subtracted
relate     cosines between profiles, known pairs
benchmark  how many known relationships the map finds again
"""

from phenomhpc.maps.aggregate import aggregate
from phenomhpc.maps.align import center_scale, pca_cs, tvn
from phenomhpc.maps.benchmark import (
    Recall,
    bootstrap_interval,
    chance_level,
    check_thresholds,
    random_features,
    relationship_recall,
    relationship_recalls,
)
from phenomhpc.maps.bias import arm_correction, arms_of, correctable_arms
from phenomhpc.maps.relate import (
    connected_groups,
    cosine_map,
    cosine_null,
    mapped_pairs,
    similarity_order,
    unique_pairs,
)

__all__ = [
    "Recall",
    "aggregate",
    "arm_correction",
    "arms_of",
    "bootstrap_interval",
    "center_scale",
    "chance_level",
    "check_thresholds",
    "connected_groups",
    "correctable_arms",
    "cosine_map",
    "cosine_null",
    "mapped_pairs",
    "pca_cs",
    "random_features",
    "relationship_recall",
    "relationship_recalls",
    "similarity_order",
    "tvn",
    "unique_pairs",
]
