"""The figures of steps: kept on the device while it computes, then rows of the metrics, a person's line and a tracker's events."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops import StepBatch
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.train.goodput import Meter
from phenomhpc.train.metrics import MEGABYTE, MetricsLog, StepRow, rates_of
from phenomhpc.train.ranks import Ranks, in_order
from phenomhpc.train.step import NUM_LOSSES, StepSums
from phenomhpc.train.stragglers import OwnClock, OwnTime, Stragglers, lost
from phenomhpc.train.tracking import Tracker


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step whose figures are still on the device; it does not hold on to the step's pixels."""

    step: int
    first_index: int
    index_digest: str
    data_wait: float
    traffic: Traffic
    sums: StepSums
    lr: float
    time: datetime
    seconds: float
    own: OwnTime


@dataclass(kw_only=True)
class StepLog:
    """The figures of steps, first on the device, then as rows."""

    config: PretrainConfig
    ranks: Ranks
    metrics: MetricsLog
    meter: Meter
    crop_bytes: int
    tracker: Tracker
    stragglers: Stragglers
    clock: OwnClock
    last_loss: float | None = None
    _pending: list[_Pending] = field(default_factory=list)
    _crops_per_s: float = 0.0
    _data_wait: float = 0.0
    _cache_hits: float = 0.0
    _lr: float = 0.0
    _since: float = 0.0
    _last: StepRow | None = None

    def start(self) -> None:
        """A step begins now; what lies between two steps (a checkpoint, say) is in no step's time."""
        self._since = time.perf_counter()
        self.clock.begin()

    def add(self, batch: StepBatch, sums: StepSums, lr: float) -> None:
        self._pending.append(
            _Pending(
                step=batch.step,
                first_index=batch.first_index,
                index_digest=batch.index_digest,
                data_wait=batch.data_wait_s,
                traffic=batch.traffic,
                sums=sums,
                lr=lr,
                time=datetime.now(UTC),
                seconds=time.perf_counter() - self._since,
                own=self.clock.take(),
            )
        )

    def settle(self, *, flush: bool) -> list[StepRow]:
        """Turn what is pending into rows: the one place where the host waits for the device."""
        rows: list[StepRow] = []
        if self._pending:
            losses = torch.stack([entry.sums.losses for entry in self._pending])
            counts = torch.tensor([list(vars(entry.traffic).values()) for entry in self._pending])
            times = torch.tensor([entry.own.seconds() for entry in self._pending])
            # Together, so that the ranks wait for each other once.
            parts = self.ranks.each(torch.cat([losses, counts.to(losses), times.to(losses)], dim=1))
            sums = in_order(parts).tolist()
            own = torch.stack([part[:, -times.shape[1] :] for part in parts]).cpu().numpy()
            norms = torch.stack([entry.sums.grad_norm for entry in self._pending]).tolist()
            own_totals = own.sum(axis=2).T.tolist()
            rows = [self._row(*row) for row in zip(self._pending, sums, norms, own_totals, strict=True)]
            self.last_loss, self._lr, self._last = rows[-1].loss, rows[-1].lr, rows[-1]
            seconds = sum(entry.seconds for entry in self._pending)
            self._crops_per_s = self.config.optim.global_batch * len(rows) / seconds
            self._data_wait = sum(entry.data_wait for entry in self._pending) / seconds
            self._cache_hits = rows[-1].cache_hit_share or 0.0
            self._pending.clear()
            if self.ranks.is_first:
                self.metrics.add(rows)
                self.stragglers.look(own, rows[-1].step)
            self.tracker.steps(rows)
        if flush:
            self.ranks.on_first(self.metrics.flush)
        return rows

    def figures(self) -> dict[str, float]:
        """For a person; data_wait: the share of the time that rank 0 waited for crops; mb_per_s: of their pixels."""
        figures = {
            "loss": self.last_loss or 0.0,
            "lr": self._lr,
            "crops_per_s": self._crops_per_s,
            "mb_per_s": self._crops_per_s * self.crop_bytes / MEGABYTE,
            "data_wait": self._data_wait,
        }
        if self._last is not None:
            rates = {"tflops": self._last.tflops, "mfu": self._last.mfu, "goodput": self._last.goodput}
            figures |= {name: value for name, value in rates.items() if value is not None}
        return figures | ({"cache_hits": self._cache_hits} if self.config.data.cache else {})

    def _row(self, entry: _Pending, sums: list[float], grad_norm: float, own: list[float]) -> StepRow:
        """sums: over the ranks, the losses and then the traffic; own: seconds of each rank."""
        losses, names = sums[:NUM_LOSSES], vars(entry.traffic)
        traffic = Traffic(**dict(zip(names, map(int, sums[NUM_LOSSES : NUM_LOSSES + len(names)]), strict=True)))
        straggler_share, slowest_rank = lost(own, entry.seconds)
        skipped = not math.isfinite(grad_norm)
        return StepRow(
            step=entry.step,
            time=entry.time,
            first_index=entry.first_index,
            index_digest=entry.index_digest,
            loss=losses[0],
            loss_mse=losses[1],
            loss_fourier=losses[2],
            lr=entry.lr,
            grad_norm=grad_norm,
            crops_per_s=self.config.optim.global_batch / entry.seconds,
            data_wait=entry.data_wait,
            **rates_of(traffic, self.crop_bytes, entry.seconds),
            **self.meter.rates(
                crops=self.config.optim.global_batch, seconds=entry.seconds, ended=entry.time, skipped=skipped
            ),
            mem_bytes=_peak_memory(self.ranks),
            straggler_share=straggler_share,
            slowest_rank=slowest_rank,
            skipped=skipped,
        )


def _peak_memory(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
