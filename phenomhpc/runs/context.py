"""What one task of one attempt is given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from phenomhpc.errors import FencedError
from phenomhpc.progress import Progress
from phenomhpc.runs.events import EventWriter
from phenomhpc.runs.fence import check_fence
from phenomhpc.runs.paths import RunPaths
from phenomhpc.runs.units import Unit


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """One task: its run, its units, its place among the nodes, its token.

    A gang has one task per node (task = node_rank); an array task has num_nodes 1.
    """

    paths: RunPaths
    attempt: int
    task: int
    token: str
    units: tuple[Unit, ...]
    progress: Progress
    node_rank: int = 0
    num_nodes: int = 1
    hosts: tuple[str, ...] = ("127.0.0.1",)
    job_id: str | None = None
    # Which start of the attempt (Slurm's restart count), and of a gang which round of it; 0: the first has not begun.
    start: int = 0
    round: int = 0

    @cached_property
    def events(self) -> EventWriter:
        return EventWriter(self.paths, self.attempt, self.task, self.token, self.job_id, self.check_fence)

    def stop_requested(self) -> bool:
        """Has Slurm's signal, or a person, asked this task to commit and leave?"""
        return self.paths.attempt(self.attempt).stop_file(self.task).exists()

    def tell_unit(self, unit: Unit, seconds: float, set_aside: int = 0, num_bytes: int | None = None) -> None:
        """Write down that a unit was committed, how long it took, of how much input it was made without, and how much was read
        for it (None: nobody counted)."""
        read = {} if num_bytes is None else {"bytes": num_bytes}
        self.events.emit(
            "unit", unit_id=unit.unit_id, count=unit.count, seconds=seconds, cost_s=unit.cost_s, set_aside=set_aside, **read
        )  # fmt: skip

    def set_aside(self, unit: Unit, reason: str) -> tuple[str, str]:
        """Write down that a whole unit's input is bad and its work is not to be done; (thing, reason) for the outcome."""
        self.events.emit("set_aside", unit_id=unit.unit_id, reason=reason)
        return unit.unit_id, reason

    def check_fence(self) -> None:
        """Raise FencedError when a newer round, start or attempt has replaced this one; call before every commit."""
        check_fence(self.paths, self.attempt, self.task, self.token)
        if self.round and self.paths.attempt(self.attempt).rounds(self.start).members(self.round + 1).exists():
            raise FencedError(
                f"run {self.paths.id}: round {self.round + 1} has begun without this one; pid {os.getpid()} leaves"
            )
