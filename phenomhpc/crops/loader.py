"""Batches of crops on the CPU, in the sampler's order, read in this thread or ahead of it by worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

import numpy as np

from phenomhpc.crops.ahead import ReadAhead
from phenomhpc.crops.batches import StepBatch
from phenomhpc.crops.corpus import CropsOf
from phenomhpc.crops.dealing import Dealer
from phenomhpc.crops.mending import Mending, MendingReader, draws_of
from phenomhpc.crops.sampler import Sampler, flip_target
from phenomhpc.store.litreader import Reader


def _nothing(what: object) -> None:
    pass


# Nothing may be damaged, unless somebody says how much.
NO_DAMAGE = Mending(max_damaged=0.0, tell=_nothing)


class Loader:
    """Iterates a rank's StepBatches from `start_step` on, for ever.  Use as a context manager.

    Step s takes visits [s*B/K, (s+1)*B/K); rank r those with v mod world = r.  Every rank has the same number of
    micro-steps of the same shape.  workers: processes that read; 0 reads inside __next__.
    Memory: the pixels of `hold_steps` steps and, with workers, of up to `prefetch_steps` more: one at first, then so many as
    waiting has shown to help.

    What reading raises comes out of __next__, for the step it concerns, and ends the loader; rerun from that step.  A worker
    that dies is said, by number and pid, and replaced; the pixels and their order are what they would have been.  Should this
    process be killed, the workers are gone with it.
    """

    def __init__(
        self,
        source: CropsOf | Reader,
        sampler: Sampler,
        *,
        num_channels: int,
        dtype: str,
        num_patches: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        workers: int = 0,
        prefetch_steps: int = 2,
        hold_steps: int = 1,
        digest: bool = True,
        defer_flips: bool = False,
        mending: Mending = NO_DAMAGE,
        say: Callable[[str], None] = _nothing,
    ) -> None:
        """source: what to read, for workers to open; or, without them, a reader.  A reader is used as it is: nothing is mended.
        digest: compute each step's index_digest, for which the crops of all ranks are dealt; else it is "" and only this
        rank's are: 0.1 ms a crop less at 128 ranks and a global batch of 16,384.
        hold_steps: how many steps' pixels are valid at a time: this one's, and those before it.
        defer_flips: hand out pixels as they lie in the field, and in Batch.flip what is to be done to them.
        mending: what becomes of damaged fields.  say: called, from __next__, with one line about a worker that died."""
        self._dealer = Dealer(
            sampler,
            num_patches=num_patches,
            global_batch=global_batch,
            micro_batch=micro_batch,
            rank=rank,
            world=world,
            digest=digest,
            defer_flips=defer_flips,
        )
        shape = (self._dealer.micro_size, num_channels, sampler.crop_px, sampler.crop_px)
        self._step, self._closed = start_step, False
        self._steps: ReadAhead | _ReadHere
        if not workers:
            self._steps = _ReadHere(source, self._dealer, shape, np.dtype(dtype), hold_steps, mending)
        elif isinstance(source, CropsOf):
            self._steps = ReadAhead(
                source,
                self._dealer,
                shape=shape,
                dtype=np.dtype(dtype),
                start_step=start_step,
                workers=workers,
                prefetch_steps=prefetch_steps,
                hold_steps=hold_steps,
                mending=mending,
                say=say,
            )
        else:
            raise TypeError("workers open what they read themselves: give a CropsOf")

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._closed:
            raise RuntimeError("the loader is closed")
        began = time.perf_counter()
        try:
            batch = self._steps.step(self._step)
        except BaseException:
            # What was read ahead belongs to later steps: going on would leave a step out.
            self.close()
            raise
        self._step += 1
        return replace(batch, data_wait_s=time.perf_counter() - began)

    def close(self) -> None:
        """End the workers; what was read ahead is dropped."""
        if not self._closed:
            self._closed = True
            self._steps.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ReadHere:
    """Steps read in the caller's thread."""

    def __init__(
        self,
        source: CropsOf | Reader,
        dealer: Dealer,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        hold_steps: int,
        mending: Mending,
    ) -> None:
        self._dealer = dealer
        self._buffers = [[np.zeros(shape, dtype) for _ in range(dealer.num_micro)] for _ in range(hold_steps)]
        self._stack = ExitStack()
        self._reader: Reader
        if isinstance(source, CropsOf):
            self._counted: Reader = self._stack.enter_context(source.open())
            self._reader = MendingReader(
                self._counted, draws_of(dealer.sampler), max_damaged=mending.max_damaged, tell=mending.tell
            )
        else:
            self._reader = self._counted = source

    def step(self, step: int) -> StepBatch:
        dealt, size = self._dealer.deal(step), self._dealer.micro_size
        buffers = self._buffers[step % len(self._buffers)]
        before = self._counted.traffic
        self._dealer.clear_padding(dealt, buffers)
        crops = zip(dealt.field_no.tolist(), dealt.y.tolist(), dealt.x.tolist(), dealt.flip.tolist(), strict=True)
        for slot, (field_no, y, x, flip) in enumerate(crops):
            self._reader.read(field_no, y, x, flip_target(buffers[slot // size][slot % size], flip))
        return self._dealer.batch(dealt, buffers, self._counted.traffic - before)

    def close(self) -> None:
        self._stack.close()
