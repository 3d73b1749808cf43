"""torch's elastic agent, in this process: it starts this node's ranks, and starts them anew with fewer nodes when one is lost.

a rank ends with an error of its own    the agent ends with it: what comes after is decided outside, from the run directory
a rank ends because it lost another     elastic: the ranks here are killed, and the nodes that are left agree on a new round
another node is not heard of            the same, seconds before any rank would notice
another node asks for a new round       the same
another node has ended with an error    a moment to end by themselves, then the ranks here are killed
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from phenomhpc.config.training import PretrainConfig
from phenomhpc.errors import WorkError, is_lost_peer
from phenomhpc.runs import TaskContext
from phenomhpc.runs.rounds import close_rounds
from phenomhpc.train.rounds import Rounds
from phenomhpc.train.validation import Draw

MONITOR_S: Final = 0.1
# Rounds in a row that came no further than the checkpoint they began with.
MAX_IDLE_ROUNDS: Final = 4
# What a stop that is asked of all nodes takes to reach the last of them.
CLOSED_GRACE_S: Final = 30.0
_CLOSED_LOOK_S: Final = 1.0

RankMain = Callable[[PretrainConfig, TaskContext, bool, Draw | None], Any]


@dataclass(kw_only=True)
class _Memory:
    """What an agent remembers between two looks at its ranks."""

    left_at: float = 0.0
    why: str = ""
    mark: int = -1
    idle_rounds: int = 0
    looked: float = 0.0
    closed_at: float | None = None


class Agent(LocalElasticAgent):
    """One node's agent.  `run()` ends when the ranks have, or with what `Rounds.next_rendezvous` raises."""

    def __init__(
        self,
        main: RankMain,
        config: PretrainConfig,
        ctx: TaskContext,
        shows: bool,
        draw: Draw | None,
        *,
        rounds: Rounds,
        local: int,
        elastic: bool,
    ) -> None:
        spec = WorkerSpec(
            role="pretrain",
            local_world_size=local,
            entrypoint=main,
            args=(config, ctx, shows, draw),
            rdzv_handler=rounds,
            max_restarts=1 if elastic else 0,
            monitor_interval=MONITOR_S,
            local_addr=rounds.peers.address,
        )
        super().__init__(spec, DefaultLogsSpecs(), start_method="forkserver")
        # It logs a rank's exit as a failure, with its own traceback; ours is in the log already, and a stop is no failure.
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
        self.rounds, self.elastic = rounds, elastic
        self._task, self._memory = (config, ctx, shows, draw), _Memory()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        config, ctx, shows, draw = self._task
        now = replace(ctx, round=self.rounds.number)
        self._memory.closed_at = None
        worker_group.spec.args = (config, now, shows, draw)
        if self.rounds.number > 1 and self.rounds.members[0].rank == self.rounds.rank:
            now.events.emit(
                "round", number=self.rounds.number, nodes=[member.host for member in self.rounds.members],
                lost=[self.rounds.hosts[rank] for rank in self.rounds.lost], why=self._memory.why,
                seconds=time.monotonic() - self._memory.left_at,
            )  # fmt: skip
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        # What is committed is safe; a rank that hangs, or waits for a peer that is gone, hears nothing else.
        self._shutdown(signal.SIGKILL)

    def _exit_barrier(self) -> None:
        """Not waited for: the last step is committed when the first of the ranks has ended well."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.SUCCEEDED:
            self._close(0, "the last step is committed")
            return result
        if result.state == WorkerState.HEALTHY:
            if not self.elastic or not (why := self._why_leave()):
                return result
            return self._leave_round(why)
        failures = result.failures.values()
        if (
            self.elastic
            and failures
            and all(entry.exitcode == 1 and is_lost_peer(str(entry.message)) for entry in failures)
        ):
            return self._leave_round(str(next(iter(failures)).message))
        self._remaining_restarts = 0
        self._close(
            max((entry.exitcode for entry in failures), default=1),
            str(next(iter(failures)).message) if failures else "",
        )
        return result

    def _close(self, code: int, words: str) -> None:
        close_rounds(self.rounds.files, host=self.rounds.hosts[self.rounds.rank], code=code, words=words)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if not self._memory.why:
            self._memory.left_at, self._memory.why = time.monotonic(), "another node asked for a new round"
        super()._restart_workers(worker_group)
        self._memory.why = ""

    def _leave_round(self, why: str) -> RunResult:
        """The result that makes the agent begin a new round.  Raises WorkError when rounds come no further."""
        memory, step = self._memory, self._task[1].paths.committed_step()
        memory.idle_rounds = memory.idle_rounds + 1 if step == memory.mark else 1
        memory.mark, memory.left_at, memory.why = step, time.monotonic(), why
        print(f"round {self.rounds.number} ends after step {step} was committed: {why}", flush=True)
        if memory.idle_rounds > MAX_IDLE_ROUNDS:
            raise WorkError(
                f"Rendezvous: {memory.idle_rounds} rounds in a row ended at step {step}; the last one: {why}"
            )
        self._remaining_restarts += 1  # the loop takes one away: nodes that are lost are no fault of the work
        return RunResult(state=WorkerState.UNHEALTHY)

    def _why_leave(self) -> str:
        now, memory = time.monotonic(), self._memory
        if memory.closed_at is None and now - memory.looked > _CLOSED_LOOK_S:
            memory.looked = now
            memory.closed_at = now if self.rounds.is_closed() else None
        if memory.closed_at is not None:
            return "another node has ended" if now - memory.closed_at > CLOSED_GRACE_S else ""
        lost = self.rounds.peers.lost()
        if lost:
            names = ", ".join(self.rounds.hosts[rank] for rank in lost)
            # One that ended well a moment ago is as silent.
            return "" if self.rounds.is_closed() else f"no word from {names} for {self.rounds.peers.lost_after_s:g} s"
        return ""
