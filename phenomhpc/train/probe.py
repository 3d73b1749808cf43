"""Linear probe while training: perturbations of held-out wells from the encoder's features, beside two baselines.

Like a validation it moves nothing of the training, and measures the average of the weights where there is one.  A well's
features are the mean over a few fixed crops; the wells are shared among the ranks, so that all of them are embedded in a moment.
Baselines, once: the encoder before it learned anything, and the statistics of the pixels.

PROBE/ATTEMPT-STEP.parquet, a row for each source of features.  STEP counts the steps done.
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

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops import Sampler
from phenomhpc.crops.choice import Holdout
from phenomhpc.crops.mending import MendingReader, draws_of
from phenomhpc.crops.probing import ProbeWells, probe_wells
from phenomhpc.errors import UsageError
from phenomhpc.maps.probe import linear_probe
from phenomhpc.models.intensity import IntensityStatistics
from phenomhpc.models.mae import MaskedAutoencoder, build_mae
from phenomhpc.models.standardise import standardise
from phenomhpc.runs import TaskContext, committing
from phenomhpc.runs.heartbeat import STEP, beat
from phenomhpc.train.data import CropSource
from phenomhpc.train.ema import measured
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.retention import PROBE_ACCURACY, note_scores
from phenomhpc.train.state import TrainState
from phenomhpc.train.tracking import Tracker

PHASE = "probe"
ENCODER, UNTRAINED, INTENSITY = "encoder", "untrained encoder", "pixel statistics"
Encode = Callable[[NDArray[np.generic]], NDArray[np.floating[Any]]]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One probe.  step: steps done before it; source: of the features; seconds: what it took the training."""

    step: int
    time: datetime  # UTC, at its end
    source: str
    accuracy: float
    ci_low: float
    ci_high: float
    num_classes: int
    num_train: int
    num_test: int
    seconds: float
    weights: str | None = None  # of the encoder: model, or ema: their average; null of baselines and in older versions


_INTEGERS = ("step", "num_classes", "num_train", "num_test")
_TYPES = {name: pa.int64() for name in _INTEGERS} | {
    "time": pa.timestamp("us", tz="UTC"),
    "source": pa.string(),
    "weights": pa.string(),
}
SCHEMA = pa.schema([(column.name, _TYPES.get(column.name, pa.float64())) for column in fields(ProbeRow)])


def read_probes(folder: Path) -> pa.Table:
    """All probes of a run by step; of a repeated one the latest attempt's."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        for row in pq.read_table(path).to_pylist():
            rows[row["step"], row["source"]] = row
    return pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=SCHEMA)


def wells_of(config: PretrainConfig, source: CropSource) -> ProbeWells | None:
    """The wells that a run's probes look at; None where there are no probes.  Raises UsageError as probe_wells does."""
    every, data = config.eval.probe_every_steps, config.data
    if every is None:
        return None
    held = Holdout(plates=data.holdout.plates, wells=data.holdout.wells, share=data.holdout.share, by=data.holdout.by)
    try:
        return probe_wells(
            source.corpus,
            held,
            where=data.where,
            wells=config.eval.probe_wells,
            crops=config.eval.probe_crops,
            crop_px=config.model.crop_px,
        )
    except UsageError as error:
        raise UsageError(f"eval.probe_every_steps={every}: {error}") from error


@dataclass(kw_only=True)
class LinearProbe:
    """One rank's part of every probe of a run; the crops are read anew each time."""

    config: PretrainConfig
    ctx: TaskContext
    ranks: Ranks
    source: CropSource
    wells: ProbeWells | None
    tracker: Tracker = field(default_factory=Tracker)
    last_accuracy: float | None = None

    def due(self, step: int) -> bool:
        """Is there a probe after so many steps?  At the beginning of the baselines, at the end always."""
        every = self.config.eval.probe_every_steps
        return every is not None and (step % every == 0 or step == self.config.optim.steps)

    def missing(self, step: int) -> bool:
        """Is there one, which no attempt has left?  The same on every rank."""
        if not self.due(step):
            return False
        left = f"*-{self.ctx.paths.probe_file(0, step).name.partition('-')[2]}"
        return self.ranks.on_first(lambda: not any(self.ctx.paths.probe.glob(left)))

    def run(self, state: TrainState) -> None:
        """Probe, and commit what was found: the baselines before the first step, else the encoder.  Raises FencedError before
        writing."""
        beat(PHASE, state.step)
        rows = self._baselines(state) if state.step == 0 else [self._trained(state)]
        self.ranks.on_first(lambda: self._publish(rows))
        beat(STEP, state.step)

    def _baselines(self, state: TrainState) -> list[ProbeRow]:
        untrained = build_mae(self.source.num_channels, seed=self.config.seed, **self.config.model.model_dump())
        encode = self._encoder(untrained.to(self.ranks.device).eval())
        statistics = IntensityStatistics(self.source.corpus.scale.tolist())
        return [self._row(0, UNTRAINED, encode), self._row(0, INTENSITY, statistics.encode)]

    def _trained(self, state: TrainState) -> ProbeRow:
        mode = state.model.training
        state.model.eval()
        try:
            with measured(state.ema) as weights:
                row = self._row(state.step, ENCODER, self._encoder(state.model), weights)
        finally:
            state.model.train(mode)
        self.last_accuracy = row.accuracy
        return row

    def _encoder(self, model: MaskedAutoencoder) -> Encode:
        scale_C, device = self.source.scale(self.ranks.device), self.ranks.device

        @torch.no_grad()
        def encode(pixels: NDArray[np.generic]) -> NDArray[np.floating[Any]]:
            crops = standardise(torch.from_numpy(pixels).to(device), scale_C)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                return model.encode(crops).float().cpu().numpy()

        return encode

    def _row(self, step: int, source: str, encode: Encode, weights: str | None = None) -> ProbeRow:
        began = time.perf_counter()
        wells = self.wells
        assert wells is not None
        features = self._features(wells, encode)
        test = wells.is_test
        found = linear_probe(features[~test], wells.label[~test].tolist(), features[test], wells.label[test].tolist())
        return ProbeRow(
            step=step,
            time=datetime.now(UTC),
            source=source,
            **asdict(found),
            seconds=time.perf_counter() - began,
            weights=weights,
        )

    def _features(self, wells: ProbeWells, encode: Encode) -> NDArray[np.float64]:
        """f64[n, d] on every rank: each embeds its share of the wells, all of them as many, and their sum is exact, since of
        every value all but one are 0."""
        world, rank, size = self.ranks.world, self.ranks.rank, self.config.optim.micro_batch
        mine = np.arange(-(-len(wells) // world)) * world + rank
        own = mine[mine < len(wells)]
        crops = [(well, crop) for well in np.minimum(mine, len(wells) - 1) for crop in range(wells.y.shape[1])]
        sums: NDArray[np.float64] | None = None
        data, edge = self.config.data, self.config.model.crop_px
        sampler = Sampler(self.source.corpus.tables, seed=self.config.seed, crop_px=edge)
        with self.source.corpus.reader(data.illumination, through=data.reader) as reader:
            mended = MendingReader(reader, draws_of(sampler), max_damaged=data.max_damaged)
            for first in range(0, len(crops), size):
                part = crops[first : first + size]
                pixels = np.zeros((len(part), self.source.num_channels, edge, edge), self.source.corpus.dtype)
                for row, place in enumerate(part):
                    mended.read(int(wells.field_no[place]), int(wells.y[place]), int(wells.x[place]), pixels[row])
                vectors = encode(pixels)
                if sums is None:
                    sums = np.zeros((len(wells), vectors.shape[1]))
                np.add.at(sums, [well for well, _ in part], vectors)
        assert sums is not None
        whole = np.zeros_like(sums)
        whole[own] = sums[own] / wells.y.shape[1]
        return self.ranks.sum(torch.from_numpy(whole).to(self.ranks.device)).cpu().numpy()

    def _publish(self, rows: list[ProbeRow]) -> None:
        self.ctx.check_fence()
        for row in rows:
            if row.source == ENCODER:
                note_scores(self.ctx.paths.checkpoints, row.step, {PROBE_ACCURACY: row.accuracy}, token=self.ctx.token)
        with committing(self.ctx.paths.probe_file(self.ctx.attempt, rows[0].step), token=self.ctx.token) as file:
            pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), file)
        for row in rows:
            self.tracker.watched(f"probe/{row.source.replace(' ', '_')}", row)
