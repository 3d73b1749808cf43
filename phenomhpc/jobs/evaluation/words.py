"""What things are called in the report."""

from __future__ import annotations

from phenomhpc.jobs.evaluation.scores import ENCODER, RANDOM, UNTRAINED

ALIGNMENTS = {
    "none": "none",
    "center_scale": "centre and scale per batch",
    "pca_cs": "PCA, centre and scale",
    "tvn": "TVN",
    "tvn_efaar": "TVN as in EFAAR",
    "coral": "CORAL",
}
BASELINES = {
    UNTRAINED: "untrained network",
    "intensity": "intensity statistics",
    RANDOM: "random features",
}


def source_name(source: str) -> str:
    """A source in words."""
    return "encoder" if source == ENCODER else BASELINES.get(source, source)
