"""What training reads: stores bound to snapshots, their crops in the sampler's order; what a checkpoint says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops import Loader, Sampler, StepBatch
from phenomhpc.crops.caching import CacheFiller
from phenomhpc.crops.choice import Holdout, choose
from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.dali import DaliLoader
from phenomhpc.crops.ledger import Ledger
from phenomhpc.crops.mending import Mending, Replaced
from phenomhpc.models.checkpoint import SCHEMA, CheckpointMeta
from phenomhpc.runs import digest_of
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState

RANDOM_SCHEME = "philox4x64-10"
# Whatever the seed of the run, so that validation losses of different seeds compare.
VALIDATION_SEED = 0


@dataclass(frozen=True, kw_only=True)
class CropSource:
    """The fields of a run's stores and the order in which their crops come.  Opening it reads no pixel.

    validation: crops of what is held out, without flips, the same in every run; None where nothing is.
    """

    config: PretrainConfig
    corpus: Corpus
    sampler: Sampler
    validation: Sampler | None

    @classmethod
    def open(cls, config: PretrainConfig) -> CropSource:
        """Raises UsageError for a store or snapshot that is not there, a filter that fits nothing, fields too small."""
        data = config.data
        corpus = Corpus.open(config.store, config.snapshot)
        holdout = Holdout(
            plates=data.holdout.plates, wells=data.holdout.wells, share=data.holdout.share, by=data.holdout.by
        )
        chosen = choose(
            corpus,
            where=data.where,
            holdout=holdout,
            subset=data.subset,
            store_weights=data.store_weights,
            weights=data.weights,
        )
        sampler = Sampler(
            corpus.tables,
            seed=config.seed,
            crop_px=config.model.crop_px,
            crops_per_visit=data.crops_per_visit,
            flips=data.flips,
            eligible=chosen.rows,
            groups=chosen.groups,
            subset=chosen.subset,
        )
        return cls(config=config, corpus=corpus, sampler=sampler, validation=_validation(config, corpus, holdout))

    @property
    def num_channels(self) -> int:
        return len(self.corpus.channels)

    @property
    def crop_bytes(self) -> int:
        """Of one crop's pixels."""
        return self.num_channels * self.sampler.crop_px**2 * np.dtype(self.corpus.dtype).itemsize

    def first_index(self, step: int, skip: Ledger) -> int:
        """The first sample index of a step, when these samples are left out."""
        return self.sampler.skipping(skip).first_index(
            step * self.config.optim.global_batch // self.sampler.crops_per_visit
        )

    def scale(self, device: torch.device) -> torch.Tensor:
        """Grey levels that become 1, f32[C]."""
        return torch.from_numpy(self.corpus.scale.copy()).to(device)

    @contextmanager
    def loader(
        self,
        ranks: Ranks,
        start_step: int,
        num_patches: int,
        *,
        hold_steps: int,
        tell: Callable[[Replaced], None],
        say: Callable[[str], None],
        skip: Ledger = (),
    ) -> Iterator[Iterator[StepBatch]]:
        """This rank's batches from `start_step` on; with data.backend=dali, ready for the model.

        hold_steps: how many steps' pixels are valid at a time; tell: called once for each field that cannot be read; say: what the
        node's cache holds, and which worker has died; skip: samples left out.
        """
        optim, data = self.config.optim, self.config.data
        cache = None if data.cache is None else Path(data.cache)
        with (
            CacheFiller(self.corpus, cache, data.cache_gb, say) if cache and ranks.local_rank == 0 else nullcontext(),
            Loader(
                self.corpus.crops_of(data.illumination, cache, data.reader),
                self.sampler.skipping(skip),
                num_channels=self.num_channels,
                dtype=self.corpus.dtype,
                num_patches=num_patches,
                global_batch=optim.global_batch,
                micro_batch=optim.micro_batch,
                rank=ranks.rank,
                world=ranks.world,
                start_step=start_step,
                workers=data.workers,
                prefetch_steps=data.prefetch_steps,
                hold_steps=hold_steps,
                digest=ranks.is_first,
                defer_flips=data.backend == "dali",
                mending=Mending(max_damaged=data.max_damaged, tell=tell),
                say=say,
            ) as loader,
        ):
            if data.backend == "plain":
                yield loader
                return
            with DaliLoader(loader, self.corpus.scale, ranks.device, threads=torch.get_num_threads()) as ready:
                yield ready

    def describe(self, state: TrainState, weights: str, world_size: int) -> CheckpointMeta:
        """The meta of a checkpoint of `state`, whose weights have the digest `weights`."""
        config, corpus = self.config, self.corpus
        return CheckpointMeta(
            schema=SCHEMA,
            step=state.step,
            next_index=self.first_index(state.step, state.skip_ledger),
            global_batch=config.optim.global_batch,
            world_size=world_size,
            seed=config.seed,
            model=config.model.model_dump(),
            optimiser=config.optim.name,
            channels=corpus.channels,
            dtype=corpus.dtype,
            scale=tuple(map(float, corpus.scale)),
            illumination=config.data.illumination,
            snapshot=corpus.digest,
            config=digest_of(config.kind, config.model_dump(mode="json"), []),
            skip_ledger=state.skip_ledger,
            random_scheme=RANDOM_SCHEME,
            torch=torch.__version__,
            weights=weights,
            ema=config.optim.ema,
        )


def _validation(config: PretrainConfig, corpus: Corpus, holdout: Holdout) -> Sampler | None:
    if not holdout.anything:
        return None
    held = choose(corpus, where=config.data.where, holdout=holdout, held_out=True)
    return Sampler(corpus.tables, seed=VALIDATION_SEED, crop_px=config.model.crop_px, flips=False, eligible=held.rows)
