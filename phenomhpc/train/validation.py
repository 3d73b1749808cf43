"""Validation while training: the loss over fixed held-out crops, and what the model makes of a few of them.

It measures the average of the weights where the run keeps one (optim.ema).

Nothing of the training moves: no gradient, no stochastic depth, no random number, and the crops have a reader of their own.
Crops and masks are functions of the snapshot alone, so that losses of different runs, and of one run on different numbers of
ranks, compare (to rounding).  Every rank takes as many forward passes, padded with weight 0.

VALIDATION/ATTEMPT-STEP.parquet, one row; step-STEP.npz and .png, the crops.  STEP counts the steps done, as in a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops import Sampler
from phenomhpc.crops.mending import MendingReader, draws_of
from phenomhpc.errors import UsageError
from phenomhpc.models.mae import Reconstruction
from phenomhpc.models.standardise import standardise
from phenomhpc.runs import RunPaths, TaskContext, commit, committing
from phenomhpc.runs.heartbeat import STEP, beat
from phenomhpc.train.data import CropSource
from phenomhpc.train.ema import measured
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.retention import PROBE_ACCURACY, note_scores
from phenomhpc.train.state import TrainState
from phenomhpc.train.step import NUM_LOSSES
from phenomhpc.train.tracking import Tracker

# original, masked, reconstructed f32[n, C, h, w] to PNG bytes; given from outside, since training draws nothing itself.
Draw = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], bytes]
PHASE = "validation"


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """One validation.  step: steps done before it, 0 for the untrained model; seconds: what it took the training."""

    step: int
    time: datetime  # UTC, at its end
    crops: int
    val_loss: float
    val_mse: float
    val_fourier: float
    seconds: float
    weights: str | None = None  # model, or ema: their average; null in those of older versions


_TYPES = {"step": pa.int64(), "time": pa.timestamp("us", tz="UTC"), "crops": pa.int64(), "weights": pa.string()}
SCHEMA = pa.schema([(column.name, _TYPES.get(column.name, pa.float64())) for column in fields(ValidationRow)])


def read_validations(folder: Path) -> pa.Table:
    """All validations of a run by step; of a repeated one the latest attempt's."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        for row in pq.read_table(path).to_pylist():
            rows[row["step"]] = row
    return pa.Table.from_pylist([rows[step] for step in sorted(rows)], schema=SCHEMA)


def require_validation(config: PretrainConfig, source: CropSource) -> None:
    """Raise UsageError where a validation is asked for and nothing is held out."""
    if config.eval.every_steps is not None and source.validation is None:
        raise UsageError(
            f"eval.every_steps={config.eval.every_steps}: nothing is held out to validate on; "
            "give data.holdout.plates, wells or share"
        )
    best, schedule = config.checkpoint.keep_best, config.eval
    needed = "eval.probe_every_steps" if best == PROBE_ACCURACY else "eval.every_steps"
    if best is not None and (schedule.probe_every_steps if best == PROBE_ACCURACY else schedule.every_steps) is None:
        raise UsageError(f"checkpoint.keep_best={best}: nothing measures it; give {needed}")


@dataclass(frozen=True, kw_only=True)
class _Crops:
    """Crops of one rank: pixels as stored [n, C, h, w], their mask noise f32[n, L], and weights f32[n], 0 for padding."""

    pixels: NDArray[np.generic]
    noise: NDArray[np.float32]
    weight: NDArray[np.float32]


@dataclass(kw_only=True)
class Validation:
    """One rank's part of every validation of a run.  Its crops are read once, at the first, and kept as they are stored."""

    config: PretrainConfig
    ctx: TaskContext
    ranks: Ranks
    source: CropSource
    draw: Draw | None = None
    tracker: Tracker = field(default_factory=Tracker)
    last_loss: float | None = None
    _kept: tuple[_Crops, _Crops] | None = field(default=None, repr=False)

    def due(self, step: int) -> bool:
        """Is there a validation after so many steps?  Of the untrained and of the final model always."""
        every = self.config.eval.every_steps
        return every is not None and (step % every == 0 or step == self.config.optim.steps)

    def missing(self, step: int) -> bool:
        """Is there one, which no attempt has left?  The same on every rank."""
        if not self.due(step):
            return False
        left = f"*-{self.ctx.paths.validation_file(0, step).name.partition('-')[2]}"
        return self.ranks.on_first(lambda: not any(self.ctx.paths.validation.glob(left)))

    def run(self, state: TrainState) -> None:
        """Validate, and commit what was found.  Raises FencedError before writing."""
        began = time.perf_counter()
        beat(PHASE, state.step)
        if self._kept is None:
            self._kept = self._read_crops(state.model.num_patches)
        crops, shown = self._kept
        mode = state.model.training
        state.model.eval()
        try:
            with torch.no_grad(), measured(state.ema) as weights:
                sums = self.ranks.sum_in_order(self._losses(state, crops)[None])[0].tolist()
                original = self._standardised(shown.pixels)
                with self._autocast():
                    images = state.model.reconstruct(original, self._here(shown.noise))
        finally:
            state.model.train(mode)
        loss, mse, fourier = sums
        row = ValidationRow(
            step=state.step,
            time=datetime.now(UTC),
            crops=self.config.eval.crops,
            val_loss=loss,
            val_mse=mse,
            val_fourier=fourier,
            seconds=time.perf_counter() - began,
            weights=weights,
        )
        self.last_loss = loss
        self.ranks.on_first(lambda: self._publish(row, original, images))
        beat(STEP, state.step)

    def _losses(self, state: TrainState, crops: _Crops) -> Tensor:
        """This rank's share of the means of loss, mse and fourier over all crops, f64[3]."""
        total = torch.zeros(NUM_LOSSES, dtype=torch.float64, device=self.ranks.device)
        size = self.config.optim.micro_batch
        for first in range(0, len(crops.weight), size):
            part = slice(first, first + size)
            weight = self._here(crops.weight[part])
            pixels = self._standardised(crops.pixels[part])
            keys = torch.zeros(len(weight), dtype=torch.int64, device=self.ranks.device)
            with self._autocast():
                output = state.model(pixels, self._here(crops.noise[part]), keys, weight)
            means = torch.stack([output.loss, output.loss_mse, output.loss_fourier]).double()
            total += means * (weight.sum() / self.config.eval.crops)
        return total

    def _read_crops(self, num_patches: int) -> tuple[_Crops, _Crops]:
        """This rank's share, padded to as many as every other rank has, and the crops that are shown."""
        sampler, count = self.source.validation, self.config.eval.crops
        assert sampler is not None
        share = -(-count // self.ranks.world)
        mine = np.arange(share, dtype=np.int64) * self.ranks.world + self.ranks.rank
        weight = (mine < count).astype(np.float32)
        crops = self._read(sampler, np.where(mine < count, mine, 0), num_patches, weight)
        shown = np.arange(min(self.config.eval.shown, count), dtype=np.int64)
        return crops, self._read(sampler, shown, num_patches, np.ones(len(shown), np.float32))

    def _read(
        self, sampler: Sampler, visit: NDArray[np.int64], num_patches: int, weight: NDArray[np.float32]
    ) -> _Crops:
        source, edge = self.source, sampler.crop_px
        pixels = np.zeros((len(visit), source.num_channels, edge, edge), source.corpus.dtype)
        visits = sampler.visits(visit)
        data = self.config.data
        with source.corpus.reader(data.illumination, through=data.reader) as reader:
            mended = MendingReader(reader, draws_of(sampler), max_damaged=data.max_damaged)
            for row, field_no in enumerate(visits.field_no):
                mended.read(int(field_no), int(visits.y[row, 0]), int(visits.x[row, 0]), pixels[row])
        return _Crops(pixels=pixels, noise=sampler.mask_noise(visits.index[:, 0], num_patches), weight=weight)

    def _publish(self, row: ValidationRow, original: Tensor, images: Reconstruction) -> None:
        self.ctx.check_fence()
        paths, token = self.ctx.paths, self.ctx.token
        arrays = [kind.float().cpu().numpy() for kind in (original, images.masked, images.reconstructed)]
        if len(original):
            with committing(paths.validation_crops(row.step), token=token) as file:
                np.savez(file, original=arrays[0], masked=arrays[1], reconstructed=arrays[2])
            if self.draw is not None:
                commit(paths.validation_crops(row.step).with_suffix(".png"), self.draw(*arrays), token=token)
        scores = {"val_loss": row.val_loss, "val_mse": row.val_mse, "val_fourier": row.val_fourier}
        note_scores(paths.checkpoints, row.step, scores, token=token)
        # Last, since it says that this validation is done.
        with committing(paths.validation_file(self.ctx.attempt, row.step), token=token) as file:
            pq.write_table(pa.Table.from_pylist([asdict(row)], schema=SCHEMA), file)
        self.tracker.watched("validation", row)

    def _standardised(self, pixels: NDArray[np.generic]) -> Tensor:
        return standardise(self._here(pixels), self.source.scale(self.ranks.device))

    def _here(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.ranks.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def shown_series(paths: RunPaths) -> list[tuple[int, Path]]:
    """Steps, ascending, of which shown crops lie in a run, with their npz."""
    steps = read_validations(paths.validation)["step"].to_pylist()
    return [(step, paths.validation_crops(step)) for step in steps if paths.validation_crops(step).is_file()]
