"""What training reads: one store bound to a snapshot, its crops in the sampler's order; what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from phenomhpc.config.models import PretrainConfig
from phenomhpc.crops import Loader, Sampler
from phenomhpc.crops.where import eligible_rows
from phenomhpc.errors import UsageError
from phenomhpc.models.checkpoint import SCHEMA, CheckpointMeta
from phenomhpc.runs import digest_of
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.litreader import open_pixels
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState

RANDOM_SCHEME = "philox4x64-10"


@dataclass(frozen=True, kw_only=True)
class CropSource:
    """A snapshot and the order in which its crops come.  Opening it reads no pixel."""

    config: PretrainConfig
    snapshot: Snapshot
    sampler: Sampler

    @classmethod
    def open(cls, config: PretrainConfig) -> CropSource:
        """Raises UsageError for a store or snapshot that is not there, a filter that fits nothing, fields too small."""
        if len(config.store) != 1:
            given = ", ".join(config.store) or "none"
            raise UsageError(f"store={given}: pretraining reads exactly one store; convert all plates into one")
        store = open_store(config.store[0])
        snapshot = Snapshot.open(store, config.snapshot)
        where = config.data.where
        sampler = Sampler(
            snapshot.table,
            seed=config.seed,
            crop_px=config.model.crop_px,
            crops_per_visit=config.data.crops_per_visit,
            flips=config.data.flips,
            eligible=None if where is None else eligible_rows(snapshot.fields(), where, snapshot.channels),
        )
        return cls(config=config, snapshot=snapshot, sampler=sampler)

    @property
    def num_channels(self) -> int:
        return len(self.snapshot.channels)

    def scale(self, device: torch.device) -> torch.Tensor:
        """Grey levels that become 1, f32[C]."""
        return torch.from_numpy(self.snapshot.scale.copy()).to(device)

    @contextmanager
    def loader(self, ranks: Ranks, start_step: int, num_patches: int) -> Iterator[Loader]:
        """This rank's batches from `start_step` on."""
        optim, data, snapshot = self.config.optim, self.config.data, self.snapshot
        with (
            open_pixels(snapshot, data.illumination) as reader,
            Loader(
                reader,
                self.sampler,
                num_channels=self.num_channels,
                dtype=snapshot.dtype,
                num_patches=num_patches,
                global_batch=optim.global_batch,
                micro_batch=optim.micro_batch,
                rank=ranks.rank,
                world=ranks.world,
                start_step=start_step,
                workers=data.workers,
                prefetch_steps=data.prefetch_steps,
            ) as loader,
        ):
            yield loader

    def describe(self, state: TrainState, weights: str, world_size: int) -> CheckpointMeta:
        """The meta of a checkpoint of `state`, whose weights have the digest `weights`."""
        config, snapshot = self.config, self.snapshot
        return CheckpointMeta(
            schema=SCHEMA,
            step=state.step,
            next_index=state.step * config.optim.global_batch,
            global_batch=config.optim.global_batch,
            world_size=world_size,
            seed=config.seed,
            model=config.model.model_dump(),
            optimiser=config.optim.name,
            channels=tuple(snapshot.channels),
            dtype=snapshot.dtype,
            scale=tuple(map(float, snapshot.scale)),
            illumination=config.data.illumination,
            snapshot=snapshot.digest,
            config=digest_of(config.kind, config.model_dump(mode="json"), []),
            skip_ledger=(),
            random_scheme=RANDOM_SCHEME,
            torch=torch.__version__,
            weights=weights,
        )
