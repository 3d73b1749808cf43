"""The nearest and the most opposite neighbours of every label, as a page carries them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THOUSANDTHS = 1000  # a cosine is carried as a whole number of them


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What is looked up in the page.

    labels: g names; noun: what they are; near, far: i64[g, k], the places of the most alike (best first) and of the most opposite
    near_cosine, far_cosine: f64[g, k]; near_known, far_known: i64[g, k], bit a is set where annotation a knows the pair
    annotations: their names; first: the label that is shown before anything is asked for
    """

    labels: tuple[str, ...]
    noun: str
    near: NDArray[np.int64]
    far: NDArray[np.int64]
    near_cosine: NDArray[np.float64]
    far_cosine: NDArray[np.float64]
    near_known: NDArray[np.int64]
    far_known: NDArray[np.int64]
    annotations: tuple[str, ...]
    first: str

    def value(self) -> dict[str, Any]:
        """For JSON: rows as flat lists of whole numbers, cosines in thousandths; what is known only where anything is."""
        return {
            "noun": self.noun,
            "labels": list(self.labels),
            "annotations": list(self.annotations),
            "first": self.first,
            "sides": [
                {
                    "at": at.tolist(),
                    "cosine": np.rint(cosine * THOUSANDTHS).astype(int).tolist(),
                    "known": {str(row): known[row].tolist() for row in np.flatnonzero(known.any(axis=1)).tolist()},
                }
                for at, cosine, known in (
                    (self.near, self.near_cosine, self.near_known),
                    (self.far, self.far_cosine, self.far_known),
                )
            ],
        }
