"""Metrics for trackers that people watch beside our own Parquet files.  Rank 0 alone.

A tracker is a convenience: it is told what the run knows already, and when it fails the run says so once and goes on without.
Everything stands at the number of steps done, so that a run that goes on in the same folder can tell TensorBoard which of its
figures will be computed again (purge_step) and keeps the validation of the checkpoint it resumes from.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from phenomhpc.config.models import PretrainConfig
from phenomhpc.errors import UsageError
from phenomhpc.runs import TaskContext
from phenomhpc.train.metrics import StepRow

# Columns of StepRow that are no figures.
_NO_FIGURES = ("step", "time", "index_digest", "skipped", "first_index")


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


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int, walltime: float) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Figures of a run, by step.  Never raises."""

    def __init__(self, make: Callable[[], _Writer], say: Callable[[str], None]) -> None:
        """make: opens what is written to; say: told of the first failure."""
        self._say = say
        self._writer: _Writer | None = None
        self._writer = self._tried(make)

    @classmethod
    def of_run(cls, config: PretrainConfig, ctx: TaskContext, step: int) -> Tracker | None:
        """For a run with `step` steps done; None where no tracker is asked for."""
        if not config.tracking.tensorboard:
            return None

        def make() -> _Writer:
            with warnings.catch_warnings():  # of protobuf and the like; no matter of the run's
                warnings.simplefilter("ignore")
                # By name: the same verdict of mypy with and without the extra.
                module = importlib.import_module("torch.utils.tensorboard")
                writer: _Writer = module.SummaryWriter(str(ctx.paths.tensorboard), purge_step=step + 1)
                return writer

        return cls(make, ctx.progress.say)

    def steps(self, rows: Iterable[StepRow]) -> None:
        """Every figure of these steps, under train/."""
        for row in rows:
            figures = {name: value for name, value in vars(row).items() if name not in _NO_FIGURES}
            self._tell("train", figures, row.step + 1, row.time.timestamp())

    def watched(self, name: str, row: Any) -> None:
        """A ValidationRow or ProbeRow, under `name`/."""
        figures = {key: value for key, value in vars(row).items() if key not in ("step", "time")}
        self._tell(name, figures, row.step, row.time.timestamp())

    def flush(self) -> None:
        if self._writer is not None:
            self._tried(self._writer.flush)

    def close(self) -> None:
        if self._writer is not None:
            self._tried(self._writer.close)

    def _tell(self, group: str, figures: Mapping[str, Any], step: int, walltime: float) -> None:
        for name, value in figures.items():
            if self._writer is None:
                return
            if isinstance(value, int | float):
                add = self._writer.add_scalar
                self._tried(lambda add=add, name=name, value=value: add(f"{group}/{name}", value, step, walltime))  # type: ignore[misc]

    def _tried(self, work: Callable[[], Any]) -> Any:
        """Whatever a tracker raises, a full disk or a bug of its own, is no reason to end a training."""
        try:
            return work()
        except Exception as error:
            self._writer = None
            first = str(error).splitlines()[0] if str(error) else ""
            self._say(f"tracking: TensorBoard failed and is left out from now on ({type(error).__name__}: {first})")
            return None
