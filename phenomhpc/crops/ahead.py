"""Steps read ahead of the training by worker processes.

One thread deals steps out in small shares, takes in what the workers say, and hands over a step when all of its shares are
read.  A share that is not read is read again by another worker: its pixels are a function of its numbers, so that the step
comes out the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.batches import StepBatch
from phenomhpc.crops.corpus import CropsOf
from phenomhpc.crops.dealing import Dealer, Dealt
from phenomhpc.crops.mending import Mending, draws_of, refuse_too_much
from phenomhpc.crops.messages import Done, Failed, Found, Job, Share
from phenomhpc.crops.prefetch import next_depth
from phenomhpc.crops.shared import SharedBuffers
from phenomhpc.crops.workers import Died, Event, Workers
from phenomhpc.errors import WorkError
from phenomhpc.store.shardfiles import Traffic

# Crops in a share: some hundredths of a second, so that a slow worker holds up no step, nor a question per crop the others.
MOST_CROPS = 16


def share_size(num_crops: int, workers: int) -> int:
    """Crops in a share of a step of `num_crops`: every worker has two at least, where there are so many."""
    return min(MOST_CROPS, max(1, num_crops // (2 * workers)))


@dataclass(kw_only=True)
class _Filling:
    """A step that is being read."""

    dealt: Dealt
    buffers: list[NDArray[np.generic]]
    num_left: int
    traffic: Traffic = field(default_factory=Traffic)


class ReadAhead:
    """Steps from `start_step` on, at most `prefetch_steps` ahead of the one that was asked for last."""

    def __init__(
        self,
        source: CropsOf,
        dealer: Dealer,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        start_step: int,
        workers: int,
        prefetch_steps: int,
        hold_steps: int,
        mending: Mending,
        say: Callable[[str], None],
    ) -> None:
        """shape: (B, C, h, w) of a micro-batch.  The rest as for Loader."""
        self._dealer, self._hold, self._mending, self._say = dealer, hold_steps, mending, say
        self._num_workers, self._most = workers, prefetch_steps
        num_sets = prefetch_steps + hold_steps
        self._shared = SharedBuffers(num_sets, dealer.num_micro, shape, dtype)
        self._job = Job(
            parent=os.getpid(), source=source, memory_bytes=self._shared.size, shape=shape[1:], dtype=str(dtype)
        )
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        # The caller's side and the thread's side meet here, under the lock of `_changed`.
        self._changed = threading.Condition()
        self._asked, self._depth, self._closing = start_step - 1, min(1, prefetch_steps), False
        self._read: dict[int, StepBatch] = {}
        self._errors: dict[int, BaseException] = {}
        self._fatal: BaseException | None = None
        self._notices: list[Callable[[], None]] = []
        self._idle_s = 0.0

        # The thread's own.
        self._next_step, self._next_share = start_step, 0
        self._sets: dict[int, int] = {}
        self._free = list(range(num_sets))
        self._filling: dict[int, _Filling] = {}
        self._shares: dict[int, Share] = {}
        self._waiting: deque[Share] = deque()
        self._known: set[int] = set()
        # Damaged fields that a worker found in the share it is reading.
        self._found: dict[int, int] = {}
        self._reason = ""
        self._num_read = self._num_replaced = 0
        self._thread = threading.Thread(target=self._run, name="crop-dealer", daemon=True)
        self._thread.start()

    def step(self, step: int) -> StepBatch:
        """The step, which follows the last one asked for.  Raises what reading it raised."""
        began = time.perf_counter()
        with self._changed:
            self._asked = step
        os.eventfd_write(self._alarm, 1)
        while True:
            with self._changed:
                notices, self._notices = self._notices, []
                found = self._read.pop(step, None)
                error = self._errors.get(step) or (None if found else self._fatal)
                if not (notices or found or error):
                    self._changed.wait()
                    continue
            for tell in notices:
                tell()
            if error is not None:
                raise error
            if found is not None:
                break
        with self._changed:
            wait_s, idle_s, self._idle_s = time.perf_counter() - began, self._idle_s, 0.0
            self._depth = next_depth(self._depth, self._most, wait_s=wait_s, idle_s=idle_s)
        return found

    def close(self) -> None:
        """End the workers, and the thread."""
        with self._changed:
            self._closing = True
        os.eventfd_write(self._alarm, 1)
        self._thread.join()
        os.close(self._alarm)
        self._shared.close()
        self._read.clear()
        self._filling.clear()

    def _run(self) -> None:
        try:
            draws = draws_of(self._dealer.sampler)
            with Workers(self._job, self._shared.descriptor, self._num_workers, draws, self._alarm) as workers:
                while not self._closing:
                    self._start_steps()
                    while self._waiting and workers.give(self._waiting[0]):
                        self._waiting.popleft()
                    idle, began = workers.num_idle, time.perf_counter()
                    events = workers.wait()
                    with self._changed:
                        self._idle_s += idle * (time.perf_counter() - began)
                    for event in events:
                        self._take(event)
        except BaseException as error:
            with self._changed:
                self._fatal = error
                self._changed.notify()

    def _start_steps(self) -> None:
        """Deal out the steps that may be read now: none behind an error."""
        with self._changed:
            asked, last = self._asked, self._asked + self._depth
            if self._errors:
                return
        for step in [step for step in self._sets if step <= asked - self._hold]:
            self._free.append(self._sets.pop(step))
        while self._next_step <= last:
            self._start(self._next_step)
            self._next_step += 1

    def _start(self, step: int) -> None:
        # The least free one, so that a set which is not needed is never touched.
        number = self._sets[step] = min(self._free)
        self._free.remove(number)
        dealt, buffers = self._dealer.deal(step), self._shared.arrays(number)
        self._dealer.clear_padding(dealt, buffers)
        num = len(dealt.index)
        size = share_size(num, self._num_workers)
        starts = range(0, num, size)
        self._filling[step] = _Filling(dealt=dealt, buffers=buffers, num_left=len(starts))
        for start in starts:
            part = slice(start, min(start + size, num))
            share = Share(
                number=self._next_share,
                step=step,
                field_no=dealt.field_no[part].tolist(),
                y=dealt.y[part].tolist(),
                x=dealt.x[part].tolist(),
                flip=dealt.flip[part].tolist(),
                place=self._shared.places(number, part.start, part.stop),
            )
            self._shares[share.number] = share
            self._waiting.append(share)
            self._next_share += 1
        if not starts:
            self._hand_over(step)

    def _take(self, event: Event) -> None:
        if isinstance(event, Died):
            self._notify(partial(self._say, event.text))
            for share in event.shares:
                self._found.pop(share.number, None)
            self._waiting.extendleft(reversed(event.shares))
        elif isinstance(event, Failed):
            assert event.share is not None
            self._fail(self._shares[event.share].step, event.error())
        elif isinstance(event, Found):
            self._found[event.share] = self._found.get(event.share, 0) + 1
            self._reason = event.replaced.reason
            if event.replaced.field_no not in self._known:
                self._known.add(event.replaced.field_no)
                self._notify(partial(self._mending.tell, event.replaced))
            self._judge(event.share)
        else:
            self._done(event)

    def _done(self, event: Done) -> None:
        share = self._shares[event.share]
        self._found.pop(event.share, None)
        self._num_read += event.traffic.crops
        self._num_replaced += event.num_replaced
        if event.num_replaced:
            self._judge(event.share)
        del self._shares[event.share]
        filling = self._filling[share.step]
        filling.traffic += event.traffic
        filling.num_left -= 1
        if not filling.num_left:
            self._hand_over(share.step)

    def _judge(self, share: int) -> None:
        """Is too much damaged, of what all workers have read and are reading?"""
        reading = sum(self._found.values())
        try:
            refuse_too_much(
                self._num_replaced + reading, self._num_read + reading, self._mending.max_damaged, self._reason
            )
        except WorkError as error:
            self._fail(self._shares[share].step, error)

    def _hand_over(self, step: int) -> None:
        filling = self._filling.pop(step)
        batch = self._dealer.batch(filling.dealt, filling.buffers, filling.traffic)
        with self._changed:
            self._read[step] = batch
            self._changed.notify()

    def _fail(self, step: int, error: BaseException) -> None:
        with self._changed:
            self._errors.setdefault(step, error)
            self._changed.notify()

    def _notify(self, tell: Callable[[], None]) -> None:
        """Say something in the caller's thread."""
        with self._changed:
            self._notices.append(tell)
            self._changed.notify()
