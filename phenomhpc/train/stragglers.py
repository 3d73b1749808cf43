"""Ranks that keep the others waiting, found by their own time: waiting for crops, and computing up to the exchange of gradients.

What a rank waits for the others is in neither, so that the slow one stands out although all ranks' steps take as long.  With the
times of a step on the device's own clock (events on a GPU) nothing is waited for; they are exchanged where figures are anyway.
Measured of computing are the passes up to the last backward one, in which ranks meet.  Where parameters are gathered in the
forward pass (FSDP), ranks meet there too, and only waiting for crops tells them apart.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phenomhpc.config.training import FaultsConfig
from phenomhpc.models.mae import MaeOutput
from phenomhpc.runs import TaskContext
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import Replica

Times = NDArray[np.float64]
DATA, COMPUTE = "waiting for crops", "computing"
PARTS = (DATA, COMPUTE)
# A normal distribution's standard deviation over its median absolute deviation, and how many of them are out of the ordinary.
_SIGMAS_PER_MAD, _DEVIATIONS = 1.4826, 5.0

Moment = float | torch.cuda.Event


@dataclass(frozen=True, kw_only=True)
class OwnTime:
    """A step's three moments on one rank: it begins, its crops are there, all but the last backward pass is computed."""

    began: Moment
    ready: Moment
    computed: Moment

    def seconds(self) -> tuple[float, float]:
        """Of waiting for crops (on a GPU: while it had nothing to do), and of computing.  Waits for the device."""
        return _between(self.began, self.ready), _between(self.ready, self.computed)


def _between(one: Moment, other: Moment) -> float:
    if isinstance(one, float) or isinstance(other, float):
        assert isinstance(one, float) and isinstance(other, float)
        return other - one
    other.synchronize()
    return float(one.elapsed_time(other)) / 1000


class OwnClock:
    """Takes the moments of each step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._began = self._ready = self._computed = self._now()

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def begin(self) -> None:
        self._began = self._now()

    def ready(self) -> None:
        self._ready = self._computed = self._now()

    def watch(self, replica: Replica) -> Replica:
        """The same replica; its forward passes are seen."""

        def forward(pixels: Tensor, mask_noise: Tensor, drop_key: Tensor, weight: Tensor) -> MaeOutput:
            output = replica.forward(pixels, mask_noise, drop_key, weight)
            self._computed = self._now()
            return output

        return replace(replica, forward=forward)

    def take(self) -> OwnTime:
        return OwnTime(began=self._began, ready=self._ready, computed=self._computed)


def lost(own: Sequence[float], step_s: float) -> tuple[float | None, int | None]:
    """Of a step's own seconds, one for each rank: the share of the step that the slowest takes beyond the usual one, and which
    rank that is.  None for a rank alone."""
    if len(own) < 2:
        return None, None
    slowest = max(range(len(own)), key=own.__getitem__)
    return (own[slowest] - statistics.median_low(own)) / step_s, slowest


@dataclass(frozen=True, kw_only=True)
class Slow:
    """A rank that is slower than usual: by so many seconds a step, by such a share of the usual own time, most of it in `part`."""

    rank: int
    seconds: float
    share: float
    part: str


def slow_ranks(own: Times, share: float) -> list[Slow]:
    """Of f64[world, 2], seconds a step of waiting for crops and of computing: the ranks whose sum lies above the median by more
    than `share` of it and by more than 5 deviations (1.4826 times the median absolute one).

    Medians are the lower ones: of two ranks, or where half of them are slow, the fast ones are the usual.
    """
    totals = own.sum(axis=1).tolist()
    if len(totals) < 2:
        return []
    usual = statistics.median_low(totals)
    deviation = _SIGMAS_PER_MAD * statistics.median_low([abs(value - usual) for value in totals])
    usual_parts = [statistics.median_low(column) for column in own.T.tolist()]
    found = []
    for rank, total in enumerate(totals):
        more = total - usual
        if usual > 0 and more > share * usual and more > _DEVIATIONS * deviation:
            part = PARTS[int(np.argmax(own[rank] - usual_parts))]
            found.append(Slow(rank=rank, seconds=more, share=more / usual, part=part))
    return found


@dataclass(kw_only=True)
class Stragglers:
    """Watches the ranks' own times; says who is slow in so many intervals in a row, and who is not any more.  Rank 0 alone."""

    config: FaultsConfig
    interval: int
    """Steps that are looked at together."""
    nodes: Sequence[str]
    """By rank."""
    ctx: TaskContext
    _times: list[Times] = field(default_factory=list)
    _slow: dict[int, int] = field(default_factory=dict)
    _fine: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of_run(cls, config: FaultsConfig, interval: int, ctx: TaskContext, ranks: Ranks) -> Stragglers:
        """Called by all ranks together."""
        node = socket.gethostname() if ctx.job_id is None else ctx.hosts[ctx.node_rank]
        return cls(config=config, interval=interval, nodes=ranks.gather(node), ctx=ctx)

    def look(self, own: Times, step: int) -> None:
        """own: f64[world, n, 2] of the steps since the last look, the last of them `step`."""
        if self.config.straggler_share is None or len(own) < 2:
            return
        self._times.append(own)
        whole = np.concatenate(self._times, axis=1)
        if whole.shape[1] < self.interval:
            return
        self._times.clear()
        for kind, slow in self.judge(slow_ranks(whole.mean(axis=1), self.config.straggler_share)):
            self._tell(kind, slow, step)

    def judge(self, slow: Sequence[Slow]) -> list[tuple[str, Slow]]:
        """Of one interval's slow ranks: (`straggler`, which) of those who are so often enough in a row now, and
        (`straggler_over`, which) of those who were, and are not any more."""
        now, needed, found = {entry.rank: entry for entry in slow}, self.config.straggler_intervals, []
        for rank in sorted({*now, *self._slow}):
            if rank in now:
                self._fine.pop(rank, None)
                self._slow[rank] = self._slow.get(rank, 0) + 1
                if self._slow[rank] == needed:
                    found.append(("straggler", now[rank]))
            elif self._slow[rank] < needed:
                del self._slow[rank]
            else:
                self._fine[rank] = self._fine.get(rank, 0) + 1
                if self._fine[rank] == needed:
                    found.append(("straggler_over", Slow(rank=rank, seconds=0.0, share=0.0, part="")))
                    del self._slow[rank], self._fine[rank]
        return found

    def _tell(self, kind: str, slow: Slow, step: int) -> None:
        told: dict[str, Any] = {"rank": slow.rank, "node": self.nodes[slow.rank], "step": step}
        words = f"rank {slow.rank} on {told['node']} keeps up with the others again"
        if kind == "straggler":
            told |= {"share": slow.share, "seconds": slow.seconds, "part": slow.part}
            words = (
                f"straggler: rank {slow.rank} on {told['node']} is slower than the others by {slow.share:.0%} "
                f"({slow.seconds:.3g} s a step, most of it {slow.part}); all of them wait for it"
            )
        self.ctx.progress.say(words)
        self.ctx.events.emit(kind, **told)
