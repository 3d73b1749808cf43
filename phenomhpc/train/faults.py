"""Steps that go wrong: those without a finite gradient, and losses that leap.  Decided from figures that all ranks share."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phenomhpc.config.training import FaultsConfig
from phenomhpc.crops.ledger import Ledger, merged
from phenomhpc.errors import WorkError
from phenomhpc.runs import commit
from phenomhpc.train.metrics import read_metrics

LEDGER = "ledger.json"
# A normal distribution's standard deviation over its median absolute deviation.
_SIGMAS_PER_MAD = 1.4826
# Losses before "usual" means anything.
_NEEDED = 20


def leaps(loss: float, usual: Sequence[float], mads: float) -> bool:
    """Does a loss lie further above the median of `usual` than `mads` deviations (1.4826 times the median absolute one)?

    Never with fewer than 20 usual ones, or when those are all alike.
    """
    if len(usual) < _NEEDED:
        return False
    median = statistics.median(usual)
    deviation = _SIGMAS_PER_MAD * statistics.median(abs(value - median) for value in usual)
    return deviation > 0 and loss > median + mads * deviation


@dataclass(kw_only=True)
class Spikes:
    """Watches the losses of steps; those that leap do not become usual."""

    config: FaultsConfig
    num_rollbacks: int = 0
    _usual: deque[tuple[int, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._usual = deque(maxlen=self.config.spike_window)

    def look(self, steps: Iterable[tuple[int, float]]) -> list[int]:
        """Of (step, loss), in order, the steps that leap."""
        if self.config.spike_mads is None:
            return []
        found = []
        for step, loss in steps:
            if not math.isfinite(loss):
                continue  # its update was left out
            if leaps(loss, [value for _, value in self._usual], self.config.spike_mads):
                found.append(step)
            else:
                self._usual.append((step, loss))
        return found


def usual_before(step: int, config: FaultsConfig, metrics: Path) -> Spikes:
    """The watch as it stood before `step`, from what the run has written down: after a kill or a rollback it decides as ever."""
    spikes = Spikes(config=config)
    if config.spike_mads is not None and step:
        rows = read_metrics(metrics)
        spikes.look(
            (at, loss) for at, loss in zip(rows["step"].to_pylist(), rows["loss"].to_pylist(), strict=True) if at < step
        )
    return spikes


@dataclass(kw_only=True)
class Skips:
    """Counts the steps whose gradient was not finite, since this process began and in a row."""

    config: FaultsConfig
    total: int = 0
    in_a_row: int = 0

    def count(self, steps: Iterable[tuple[int, bool]]) -> list[int]:
        """Of (step, was it left out), in order, those left out.  Raises WorkError when it is too many in a row."""
        found = []
        for step, skipped in steps:
            self.in_a_row = self.in_a_row + 1 if skipped else 0
            self.total += skipped
            if skipped:
                found.append(step)
            if self.in_a_row >= self.config.max_skipped:
                raise WorkError(
                    f"pretrain: the gradient was not finite in {self.in_a_row} steps in a row, up to step {step}; lower "
                    "optim.peak_lr, or set optim.clip_grad_norm, and begin anew (faults.max_skipped allows fewer than "
                    f"{self.config.max_skipped})"
                )
        return found


def read_ledger(checkpoints: Path) -> Ledger:
    """What rollbacks of this run have left out so far; a checkpoint from before one does not know of it."""
    path = checkpoints / LEDGER
    return merged((first, last) for first, last in json.loads(path.read_bytes())) if path.is_file() else ()


def note_ledger(checkpoints: Path, ledger: Ledger, *, token: str) -> None:
    """Commit the ledger beside the checkpoints.  Every range must lie behind what any of them has seen."""
    commit(checkpoints / LEDGER, json.dumps([list(entry) for entry in ledger]), token=token)
