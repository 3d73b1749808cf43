"""The worker processes of a loader: started, fed, watched, replaced when they die, ended.

One thread of the loader's process does all of that, and starts them itself: they end with that thread (see worker.py).
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from phenomhpc.crops.mending import Draws as DrawsOf
from phenomhpc.crops.messages import (
    MAX_BYTES,
    AskDraws,
    Done,
    Draws,
    Failed,
    Found,
    Job,
    Message,
    Ready,
    Share,
    receive,
    send,
)
from phenomhpc.errors import WorkError

# Without a sign of life for so long over one share (or its start), a worker hangs: a share takes well under a second, and
# looking again at a damaged field two.
SILENCE_LIMIT_S = 120.0
# Each reads one share, and has the next at hand.
SHARES_AT_HAND = 2
# So many deaths without a share read between them, over the same share, or within a minute: it is not chance.
MOST_IN_A_ROW = MOST_OF_A_SHARE = 3
MOST_A_MINUTE = 6
# Ended children are looked for so often; their sockets' end mostly tells it at once.
_LOOK_S = 1.0
# What a terminal or Slurm sends to everybody: the loader's process decides what it means, and ends its workers.
_LEFT_TO_THE_LOADER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A killed process ends in milliseconds, unless the kernel cannot let go of it.
_END_LIMIT_S = 5.0
_HELD: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker is gone; shares: what it had not read, in order.  text: for a person."""

    text: str
    shares: list[Share]


Event = Done | Failed | Found | Died


@dataclass(kw_only=True)
class Deaths:
    """Of all workers.  Judges whether going on makes sense."""

    times: deque[float] = field(default_factory=deque)
    in_a_row: int = 0
    by_share: Counter[int] = field(default_factory=Counter)

    def share_read(self, number: int) -> None:
        self.in_a_row = 0
        del self.by_share[number]

    def are_too_many(self, now: float, share: int | None) -> bool:
        """One more, at `now` (seconds, any origin), over this share (None: over none)."""
        self.in_a_row += 1
        self.times.append(now)
        while now - self.times[0] > 60:
            self.times.popleft()
        if share is not None:
            self.by_share[share] += 1
        return (
            self.in_a_row >= MOST_IN_A_ROW
            or len(self.times) >= MOST_A_MINUTE
            or (share is not None and self.by_share[share] >= MOST_OF_A_SHARE)
        )


@dataclass(kw_only=True)
class _Worker:
    """seen: when it last gave a sign of life, or got work while it had none.  hung: it was killed for its silence."""

    number: int
    process: subprocess.Popen[bytes]
    link: socket.socket
    seen: float
    ready: bool = False
    hung: bool = False
    shares: dict[int, Share] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"


class Workers:
    """Use as a context manager, in the thread that enters it.  Leaving kills the workers: they hold nothing of worth."""

    def __init__(self, job: Job, memory: int, count: int, draws: DrawsOf, alarm: int) -> None:
        """memory: descriptor of the shared memory.  draws: what may stand in for a field.  alarm: an eventfd that ends wait()."""
        self._job, self._memory, self._count, self._draws, self._alarm = job, memory, count, draws, alarm
        self._deaths = Deaths()
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(alarm, selectors.EVENT_READ)
        self._looked = 0.0

    def __enter__(self) -> Workers:
        # Processes are started with the mask of the thread that starts them, so that none is ever without it.
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_LOADER)
        try:
            for number in range(self._count):
                self._workers.append(self._start(number))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End them all."""
        for worker in self._workers:
            worker.process.kill()
            worker.link.close()
        until = time.monotonic() + _END_LIMIT_S
        for worker in self._workers:
            _reap(worker.process, until - time.monotonic())
        self._workers.clear()
        self._selector.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = [sys.executable, "-P", "-X", "faulthandler", "-m", "phenomhpc.crops.worker"]
        with theirs:
            descriptors = theirs.fileno(), self._memory
            try:
                process = subprocess.Popen(
                    [*program, *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=descriptors,
                )
            except OSError as error:
                ours.close()
                raise WorkError(
                    f"data: worker {number} of data.workers={self._count} cannot be started ({error.strerror}); take fewer"
                ) from error
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ)
        worker = _Worker(number=number, process=process, link=ours, seen=time.monotonic())
        self._send(worker, self._job)
        return worker

    def _send(self, worker: _Worker, message: Message) -> None:
        # What a worker that has just died does not take, it is found not to have read.
        with suppress(BrokenPipeError, ConnectionResetError):
            send(worker.link, message)

    @property
    def num_idle(self) -> int:
        """Workers that have nothing to do."""
        return sum(worker.ready and not worker.shares for worker in self._workers)

    def give(self, share: Share) -> bool:
        """Hand a share to the worker that has least to do; False where all have enough."""
        able = [worker for worker in self._workers if worker.ready and len(worker.shares) < SHARES_AT_HAND]
        if not able:
            return False
        worker = min(able, key=lambda worker: len(worker.shares))
        if not worker.shares:
            worker.seen = time.monotonic()
        worker.shares[share.number] = share
        self._send(worker, share)
        return True

    def wait(self) -> list[Event]:
        """What has happened, as soon as something has, or the alarm was raised.

        Raises what opening the stores raised in a worker, and WorkError when the workers keep dying.
        """
        ready = {key.fileobj for key, _ in self._selector.select(_LOOK_S)}
        if self._alarm in ready:
            os.eventfd_read(self._alarm)
        events: list[Event] = []
        look = time.monotonic() - self._looked > _LOOK_S
        for worker in list(self._workers):
            alive = worker.link not in ready or self._listen(worker, events)
            if alive and look and worker.process.poll() is not None:
                self._listen(worker, events)
                alive = False  # its end of the socket lives on in somebody else's fork
            if not alive or (look and self._is_silent(worker)):
                events.append(self._replace(worker))
        if look:
            self._looked = time.monotonic()
        return events

    def _listen(self, worker: _Worker, events: list[Event]) -> bool:
        """Take what a worker says; False when that was its last."""
        while True:
            try:
                packet = worker.link.recv(MAX_BYTES)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                continue  # it left something unread; what it said before still comes
            if not packet:
                return False
            worker.seen = time.monotonic()
            message = receive(packet)
            if isinstance(message, Ready):
                worker.ready = True
            elif isinstance(message, AskDraws):
                self._send(worker, Draws(candidates=list(self._draws(message.field_no))))
            elif isinstance(message, Failed) and message.share is None:
                raise message.error()
            elif isinstance(message, Done | Failed):
                assert message.share is not None
                del worker.shares[message.share]
                self._deaths.share_read(message.share)
                events.append(message)
            else:
                assert isinstance(message, Found)
                events.append(message)

    def _is_silent(self, worker: _Worker) -> bool:
        busy = bool(worker.shares) or not worker.ready
        worker.hung = busy and time.monotonic() - worker.seen > SILENCE_LIMIT_S
        return worker.hung

    def _replace(self, worker: _Worker) -> Died:
        """Start another one in place of a worker that is gone, or hangs."""
        self._selector.unregister(worker.link)
        worker.link.close()
        how = self._end(worker)
        shares = list(worker.shares.values())
        crops = sum(len(share.place) for share in shares)
        if self._deaths.are_too_many(time.monotonic(), shares[0].number if shares else None):
            raise WorkError(
                f"data: workers that read crops keep dying; the last, {worker.name}, {how}. Want of memory is what kills most: "
                f"give data.workers={self._count} more of it or take fewer; data.workers=0 reads without them"
            )
        self._workers[self._workers.index(worker)] = self._start(worker.number)
        return Died(text=f"data: {worker.name} {how}; another one reads its {crops} crop(s)", shares=shares)

    def _end(self, worker: _Worker) -> str:
        """Make sure that it writes no pixel any more; how it ended."""
        if not worker.hung:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(_END_LIMIT_S)
        worker.process.kill()
        code = _reap(worker.process, _END_LIMIT_S)
        if worker.hung:
            return f"gave no sign of life for {SILENCE_LIMIT_S:g} s and was killed"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"


def _reap(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """The exit code of a process that was killed.

    One that a file server holds in the kernel ends when it is let go, and touches no pixel any more: it is not waited for.
    """
    try:
        return process.wait(max(0.0, limit_s))
    except subprocess.TimeoutExpired:
        _HELD[:] = [held for held in _HELD if held.poll() is None]
        _HELD.append(process)
        return -signal.SIGKILL


def _environment() -> dict[str, str]:
    """A worker finds every module where this process does, and computes in one thread."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
