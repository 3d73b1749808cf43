"""Metrics for trackers that people watch beside our own Parquet files.  Rank 0 alone.

A tracker is a convenience: it is told what the run knows already, and when it fails the run says so once and goes on without.
Everything stands at the number of steps done, so that a run that goes on in the same folder can tell TensorBoard which of its
figures will be computed again (purge_step) and keeps the validation of the checkpoint it resumes from.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

from phenomhpc.config.training import PretrainConfig
from phenomhpc.errors import FencedError, StopRequested, UsageError
from phenomhpc.runs import TaskContext
from phenomhpc.train.metrics import StepRow
from phenomhpc.train.mlflow import Figures, MlflowRun, MlflowSink, figures, of_step
from phenomhpc.train.mlflow_server import Server


def require_tracking(config: PretrainConfig) -> None:
    """Raise UsageError where a tracker is asked for and not installed; what a container has is not seen from here."""
    if (
        config.tracking.tensorboard
        and config.cluster.container is None
        and importlib.util.find_spec("tensorboard") is None
    ):
        raise UsageError(
            "tracking.tensorboard=true: TensorBoard is not installed; pip install 'phenomhpc[tracking]', or leave it out"
        )


class _Sink(Protocol):
    """Where figures go.  Never raises, and keeps nobody waiting."""

    def tell(self, entries: Iterable[Figures]) -> None: ...

    def close(self, status: str) -> None: ...


class Tracker:
    """Figures of a run, by step, to all trackers that were asked for.  Leaving its block tells them of the end.  Never raises."""

    def __init__(self, sinks: Iterable[_Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    @classmethod
    def of_run(cls, config: PretrainConfig, ctx: TaskContext, step: int) -> Tracker:
        """For a run with `step` steps done."""
        say, sinks = ctx.progress.say, list[_Sink]()
        if config.tracking.tensorboard:
            sinks.append(_TensorBoard.of_run(ctx, step))
        if config.tracking.mlflow is not None:
            run = MlflowRun(config=config, ctx=ctx, server=Server(url=config.tracking.mlflow))
            sinks.append(MlflowSink(run, step, say))
        return cls(sinks)

    def steps(self, rows: Iterable[StepRow]) -> None:
        """Every figure of these steps, under train/."""
        self._tell([of_step(vars(row)) for row in rows])

    def watched(self, name: str, row: Any) -> None:
        """A ValidationRow or ProbeRow, under `name`/."""
        values = {key: value for key, value in vars(row).items() if key not in ("step", "time")}
        self._tell([figures(name, row.step, row.time.timestamp(), values)])

    def _tell(self, entries: list[Figures]) -> None:
        for sink in self._sinks:
            sink.tell(entries)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close(_status(error))


def _status(error: BaseException | None) -> str:
    """MLflow's word for how an attempt has ended; none where another one goes on already."""
    if error is None:
        return "FINISHED"
    if isinstance(error, FencedError):
        return ""
    return "SCHEDULED" if isinstance(error, StopRequested) else "FAILED"


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Event files in the run."""

    def __init__(self, make: Callable[[], _Writer], say: Callable[[str], None]) -> None:
        """make: opens what is written to; say: told of the first failure."""
        self._say = say
        self._writer: _Writer | None = None
        self._writer = self._tried(make)

    @classmethod
    def of_run(cls, ctx: TaskContext, step: int) -> _TensorBoard:
        def make() -> _Writer:
            with warnings.catch_warnings():  # of protobuf and the like; no matter of the run's
                warnings.simplefilter("ignore")
                # By name: the same verdict of mypy with and without the extra.
                module = importlib.import_module("torch.utils.tensorboard")
                writer: _Writer = module.SummaryWriter(str(ctx.paths.tensorboard), purge_step=step + 1)
                return writer

        return cls(make, ctx.progress.say)

    def tell(self, entries: Iterable[Figures]) -> None:
        for entry in entries:
            for name, value in entry.values.items():
                self._tried(lambda entry=entry, name=name, value=value: self._add(entry, name, value))  # type: ignore[misc]

    def _add(self, entry: Figures, name: str, value: float) -> None:
        if self._writer is not None:
            self._writer.add_scalar(f"{entry.group}/{name}", value, entry.step, entry.time_ms / 1000)

    def close(self, status: str) -> None:
        if self._writer is not None:
            self._tried(self._writer.close)

    def _tried(self, work: Callable[[], Any]) -> Any:
        """Whatever a tracker raises, a full disk or a bug of its own, is no reason to end a training."""
        try:
            return work()
        except Exception as error:
            self._writer = None
            first = str(error).splitlines()[0] if str(error) else ""
            self._say(f"tracking: TensorBoard failed and is left out from now on ({type(error).__name__}: {first})")
            return None
