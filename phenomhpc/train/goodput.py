"""What a run makes of its GPUs and of its time: TFLOP/s, MFU and goodput of every step.

Goodput: time in steps that count, over the time since the run's first start, attempts, queues and requeues between them
included.  A step does not count when it was computed again after a resume, or skipped.  Waiting for data is in a step's time;
checkpoints, validations and starts are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

import torch

from phenomhpc.config.training import PretrainConfig
from phenomhpc.models.costs import model_cost
from phenomhpc.runs import RunPaths, read_events
from phenomhpc.train.gpus import peak_tflops
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.ranks import Ranks

TERA = 1e12


class StepRates(TypedDict):
    """Columns of a StepRow."""

    tflops: float
    mfu: float | None
    goodput: float


@dataclass(kw_only=True)
class Meter:
    """Counts on from what earlier attempts left.  useful_s: of the steps that count, so far."""

    training_flop: float
    world: int
    peak_tflops: float | None
    began: datetime
    useful_s: float

    @classmethod
    def of_run(cls, config: PretrainConfig, paths: RunPaths, ranks: Ranks, *, num_channels: int, step: int) -> Meter:
        """Before step `step`; what earlier attempts left is read by rank 0 alone, which is the one that writes metrics."""
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
        now = datetime.now(UTC)
        past = read_metrics(paths.metrics).to_pylist() if ranks.is_first and step else []
        starts = first_start(read_events(paths)) if ranks.is_first else None
        return cls(
            training_flop=model_cost(config.model.model_dump(), num_channels).training_flop,
            world=ranks.world,
            peak_tflops=peak_tflops(name, config.precision),
            began=starts or now,
            useful_s=useful_seconds(past, config.optim.global_batch, before=step),
        )

    def rates(self, *, crops: int, seconds: float, ended: datetime, skipped: bool = False) -> StepRates:
        """Of one step of so many crops over all ranks.  tflops: of one rank's device, padding not counted; mfu: its share of
        the published peak, None where that is not known."""
        self.useful_s += 0.0 if skipped else seconds
        tflops = crops * self.training_flop / seconds / self.world / TERA
        wall_s = (ended - self.began).total_seconds()
        return {
            "tflops": tflops,
            "mfu": None if self.peak_tflops is None else tflops / self.peak_tflops,
            "goodput": min(1.0, self.useful_s / wall_s) if wall_s > 0 else 1.0,
        }


def useful_seconds(rows: Iterable[dict[str, Any]], global_batch: int, *, before: int) -> float:
    """Time of the steps that count.  rows: of StepRow, one for each step; those from step `before` on will be computed again."""
    seconds = (global_batch / row["crops_per_s"] for row in rows if row["step"] < before and not row["skipped"])
    return float(sum(seconds))


def first_start(events: Iterable[dict[str, Any]]) -> datetime | None:
    """When the run first started; None where no task has said so."""
    return min((datetime.fromisoformat(event["time"]) for event in events if event["event"] == "started"), default=None)
