"""A run's figures at an MLflow server, from a thread of rank 0: training never waits for it, and never ends for it.

    steps, validations, probes --> a queue (bounded: the oldest are dropped and counted) --> the thread --> the server

The MLflow run is the same whatever the attempt: its id is in RUN/mlflow.json, and where that was not written any more it is found
by the tag of the run's folder.  A step is told once: what the server has is left as it is, and what it lacks of earlier attempts
is told from the run's own metrics when an attempt begins.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from phenomhpc.config import load_run_config
from phenomhpc.config.overrides import flatten
from phenomhpc.config.training import PretrainConfig
from phenomhpc.runs import TaskContext, commit, read_provenance
from phenomhpc.train.metrics import NO_FIGURES, read_metrics
from phenomhpc.train.mlflow_server import MAX_METRICS, Point, Server, UnreachableServerError, parameter_key

# Steps, validations and probes that wait for a server at most.
CAPACITY = 10_000
# Of one request, so that the largest row fits many times.
_ROWS = 25
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# What the end of a training waits for the last figures.
CLOSE_S = 10.0
STEPS = "train"
"""The group of the figures of steps; others are validation, probe/encoder, ..."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures at so many steps done, under `group`/NAME."""

    group: str
    step: int
    time_ms: int
    values: Mapping[str, float]

    def points(self) -> list[Point]:
        return [
            Point(key=f"{self.group}/{name}", value=value, step=self.step, time_ms=self.time_ms)
            for name, value in self.values.items()
        ]


@dataclass(kw_only=True)
class MlflowRun:
    """The MLflow run of one of our runs, and the steps that it has of each group.  Blocking; raises what Server raises."""

    config: PretrainConfig
    ctx: TaskContext
    server: Server
    id: str = ""
    _told: dict[str, set[int]] = field(default_factory=dict)

    def join(self) -> None:
        """Find the run or make it, and note its id; it is running now."""
        paths = self.ctx.paths
        experiment = self.server.experiment(self.config.tracking.mlflow_experiment)
        self.id = self._noted() or self.server.find_run(experiment, "phenomhpc.folder", str(paths.root)) or ""
        if not self.id:
            self.id = self.server.create_run(experiment, paths.id, _now_ms(), self._tags())
        with contextlib.suppress(OSError):  # it is found by its tag, too
            text = json.dumps({"server": self.server.url, "experiment_id": experiment, "run_id": self.id})
            commit(paths.mlflow, text, token=self.ctx.token)
        self.server.update(self.id, "RUNNING")
        there = self.server.params(self.id) or {}
        settings = flatten(load_run_config(paths.run_yaml).model_dump(mode="json"))
        self.server.log_params(self.id, {k: v for k, v in settings.items() if parameter_key(k) not in there})
        self.server.log_tags(self.id, {"phenomhpc.attempt": str(self.ctx.attempt)})

    def _noted(self) -> str | None:
        try:
            noted = json.loads(self.ctx.paths.mlflow.read_bytes())
        except (OSError, ValueError):
            return None
        if noted.get("server") != self.server.url or self.server.params(noted["run_id"]) is None:
            return None
        return str(noted["run_id"])

    def _tags(self) -> dict[str, str]:
        provenance, paths = read_provenance(self.ctx.paths), self.ctx.paths
        told = {
            "phenomhpc.run": paths.id,
            "phenomhpc.folder": str(paths.root),
            "mlflow.user": provenance.get("user"),
            "mlflow.source.name": " ".join(provenance.get("command", ())),
            "mlflow.source.git.commit": provenance.get("commit"),
        }
        return {key: str(value) for key, value in told.items() if value}

    def fill_in(self, step: int) -> None:
        """Tell what it lacks of the first `step` steps, from the run's metrics."""
        rows = read_metrics(self.ctx.paths.metrics).to_pylist() if step else []
        entries = [of_step(row) for row in rows if row["step"] < step]
        for first in range(0, len(entries), _ROWS):
            self.log(entries[first : first + _ROWS])

    def log(self, entries: Iterable[Figures]) -> None:
        """Tell these, but for steps that it has."""
        new: dict[tuple[str, int], Figures] = {}
        for entry in entries:
            if entry.values and entry.step not in self._steps(entry):
                new.setdefault((entry.group, entry.step), entry)
        points = [point for entry in new.values() for point in entry.points()]
        for first in range(0, len(points), MAX_METRICS):
            self.server.log_points(self.id, points[first : first + MAX_METRICS])
        for group, step in new:
            self._told[group].add(step)

    def _steps(self, entry: Figures) -> set[int]:
        if entry.group not in self._told:
            key = f"{entry.group}/{next(iter(entry.values))}"
            self._told[entry.group] = set(self.server.steps(self.id, key))
        return self._told[entry.group]


class MlflowSink:
    """Takes figures at any time, and returns at once."""

    def __init__(self, run: MlflowRun, step: int, say: Callable[[str], None], capacity: int = CAPACITY) -> None:
        """step: steps done before this attempt; say: told once when the server does not answer, and what it lacks in the end."""
        self._run, self._step, self._say = run, step, say
        self._waiting: deque[Figures] = deque(maxlen=capacity)
        self._changed = threading.Condition()
        self._status: str | None = None
        self._closing = threading.Event()
        self._complained = self._given_up = False
        self.num_dropped = 0
        # A daemon: a process that leaves must not be held by a server that does not answer.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def tell(self, entries: Iterable[Figures]) -> None:
        with self._changed:
            for entry in entries:
                self.num_dropped += self._given_up or len(self._waiting) == self._waiting.maxlen
                if not self._given_up:
                    self._waiting.append(entry)
            self._changed.notify()
        if not self._thread.ident:
            self._thread.start()

    def close(self, status: str) -> None:
        """Tell what waits, within CLOSE_S, and that the run is now `status` (MLflow's word; empty: leave it)."""
        with self._changed:
            self._status = status
            self._closing.set()
            self._changed.notify()
        if self._thread.ident:
            self._thread.join(CLOSE_S)
        with self._changed:
            lacking = self.num_dropped + len(self._waiting)
            self._given_up = True
        if lacking:
            self._say(
                f"tracking: MLflow lacks the figures of {lacking} step(s), validations or probes; the run's metrics have all"
            )

    def _work(self) -> None:
        try:
            self._until_closed()
        except Exception as error:  # whatever it is, it is no reason to end a training
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            with self._changed:
                self._given_up = True
                self.num_dropped += len(self._waiting)
                self._waiting.clear()
            self._say(f"tracking: MLflow at {self._run.server.url} is left out from now on ({first})")

    def _until_closed(self) -> None:
        joined = last_try = False
        pause = FIRST_PAUSE_S
        while True:
            try:
                if not joined:
                    self._run.join()
                    self._run.fill_in(self._step)
                    joined = True
                some = self._next()
                if not some:
                    self._end()
                    return
                self._run.log(some)
                self._forget(some)
                pause = FIRST_PAUSE_S
            except UnreachableServerError as error:
                self._complain(error)
                if last_try:
                    return
                last_try = self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _next(self) -> list[Figures]:
        """The oldest that wait, when there are any; none when there will not be any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
            return [self._waiting[place] for place in range(min(_ROWS, len(self._waiting)))]

    def _forget(self, some: list[Figures]) -> None:
        """They were told.  Some may have been dropped meanwhile, and were told all the same."""
        told = set(map(id, some))
        with self._changed:
            num = len(self._waiting)
            while self._waiting and id(self._waiting[0]) in told:
                self._waiting.popleft()
            self.num_dropped -= len(some) - (num - len(self._waiting))

    def _complain(self, error: UnreachableServerError) -> None:
        if not self._complained:
            self._say(
                f"tracking: MLflow at {self._run.server.url} does not answer ({error}); training goes on, "
                f"{self._waiting.maxlen:,} steps wait for it at most"
            )
        self._complained = True

    def _end(self) -> None:
        if self._status:
            self._run.server.update(
                self._run.id, self._status, _now_ms() if self._status in ("FINISHED", "FAILED") else None
            )


def of_step(row: Mapping[str, Any]) -> Figures:
    """A row of the metrics."""
    values = {name: value for name, value in row.items() if name not in NO_FIGURES}
    return figures(STEPS, row["step"] + 1, row["time"].timestamp(), values)


def figures(group: str, step: int, seconds: float, values: Mapping[str, Any]) -> Figures:
    """Of `values` those that are numbers.  seconds: since 1970."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return Figures(group=group, step=step, time_ms=round(1000 * seconds), values=numbers)


def _now_ms() -> int:
    return round(1000 * time.time())
