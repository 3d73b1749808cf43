"""A z stack of one channel as one plane, one plane in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from phenomhpc.plates.images import Pixels

# Differences over two pixels (Brenner et al., J. Histochem. Cytochem. 24, 1976): noise of single pixels counts less.
_STEP = 2


class Projection:
    """Takes the planes of a stack in order.

    `max`: the brightest value of each pixel.  `focus`: the plane with the highest Brenner gradient over its squared mean;
    each channel has its own, for lenses focus colours at different heights.
    """

    def __init__(self, how: str) -> None:
        self._how, self._best = how, -1.0
        self._plane: Pixels | None = None

    def add(self, plane: Pixels) -> None:
        """Take the next plane (H, W), all of one shape and dtype; it may be kept."""
        if self._plane is None:
            self._plane = plane
            self._best = _sharpness(plane) if self._how == "focus" else 0.0
        elif self._how == "max":
            self._plane = np.maximum(self._plane, plane)
        elif (sharpness := _sharpness(plane)) > self._best:
            self._plane, self._best = plane, sharpness

    def result(self) -> Pixels:
        """The projected plane (H, W).  Raises ValueError when no plane was added."""
        if self._plane is None:
            raise ValueError("a stack of no planes")
        return self._plane


def _sharpness(plane: Pixels) -> float:
    """Brenner's gradient along x over the squared mean, so that a brighter plane is not a sharper one."""
    values = plane.astype(np.float32)
    steps = values[:, _STEP:] - values[:, :-_STEP]
    mean = float(values.mean())
    return float(np.square(steps).mean()) / mean**2 if mean and steps.size else 0.0
