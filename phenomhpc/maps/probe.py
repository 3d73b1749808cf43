"""Linear probe: can a linear classifier tell perturbations of wells it has not seen by their features?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.bootstrap import bootstrap_interval, check_draws

# Ridge penalties tried; the one with the least leave-one-out error on the training wells counts.
PENALTIES = np.logspace(-2, 5, 15)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """accuracy: share of the num_test wells whose class is found; ci_low, ci_high: 95 % bootstrap interval over those wells."""

    accuracy: float
    ci_low: float | None
    ci_high: float | None
    num_classes: int
    num_train: int
    num_test: int

    @property
    def chance(self) -> float:
        """What guessing gets, all classes being equally frequent."""
        return 1 / self.num_classes


def linear_probe(
    train: NDArray[np.floating],
    train_labels: Sequence[str],
    test: NDArray[np.floating],
    test_labels: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Probe:
    """Ridge regression onto the classes' indicators, in closed form, on features scaled by the training wells.

    train f[n, d], test f[m, d]; a feature that does not vary over the training wells is left out.  Raises UsageError for
    fewer than two classes, and for a class of the test that the training lacks.
    """
    from sklearn.linear_model import RidgeClassifierCV

    check_draws(draws, seed)
    classes = sorted(set(train_labels))
    if len(classes) < 2:
        raise UsageError(
            f"probe: {len(classes)} class{'' if len(classes) == 1 else 'es'} to tell apart; give wells of at least 2"
        )
    strange = sorted(set(test_labels) - set(classes))
    if strange:
        raise UsageError(f"probe: no training well has the class {strange[0]}; leave its wells out of the test")
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    varies = std > 1e-9 * np.maximum(np.abs(mean), 1e-9)
    model = RidgeClassifierCV(alphas=PENALTIES)
    model.fit((train[:, varies] - mean[varies]) / std[varies], np.asarray(train_labels))
    hits = int((model.predict((test[:, varies] - mean[varies]) / std[varies]) == np.asarray(test_labels)).sum())
    low, high = bootstrap_interval(hits, len(test_labels), draws, seed)
    return Probe(
        accuracy=hits / len(test_labels),
        ci_low=low,
        ci_high=high,
        num_classes=len(classes),
        num_train=len(train_labels),
        num_test=len(test_labels),
    )
