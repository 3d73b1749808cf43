"""A process that reads crops into memory it shares with a loader: `python -m phenomhpc.crops.worker SOCKET MEMORY`.

Its arguments are descriptors that it inherits.  It ends when the loader's process is gone, or the thread there that started it:
the kernel kills it then, and the socket's end ends it besides.  It imports neither torch nor the loader's __main__.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import traceback
from collections import deque
from collections.abc import Sequence

import numpy as np

from phenomhpc.crops.mending import Candidate, MendingReader, Replaced
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
from phenomhpc.crops.sampler import flip_target
from phenomhpc.parent import die_with_parent
from phenomhpc.store.litreader import Reader


class _Parting(Exception):
    """The loader is gone, or has closed the socket."""


class _Link:
    """The loader, as its worker sees it.  Shares wait here while the answer to a question is looked for."""

    def __init__(self, loader: socket.socket) -> None:
        self._loader, self._waiting = loader, deque[Share]()
        self._current = -1

    def receive(self) -> Message:
        packet = self._loader.recv(MAX_BYTES)
        if not packet:
            raise _Parting
        return receive(packet)

    def send(self, message: Message) -> None:
        try:
            send(self._loader, message)
        except OSError as error:
            raise _Parting from error

    def next_share(self) -> Share:
        share = self._waiting.popleft() if self._waiting else self.receive()
        assert isinstance(share, Share)
        self._current = share.number
        return share

    def draws(self, field_no: int) -> Sequence[Candidate]:
        self.send(AskDraws(field_no=field_no))
        while not isinstance(answer := self.receive(), Draws):
            assert isinstance(answer, Share)
            self._waiting.append(answer)
        return answer.candidates

    def tell(self, replaced: Replaced) -> None:
        self.send(Found(share=self._current, replaced=replaced))


def work(link: _Link, memory: int) -> None:
    """Read shares until the loader parts.  What opening or reading raises is told; after the former it ends."""
    job = link.receive()
    assert isinstance(job, Job)
    if os.getppid() != job.parent:  # gone before the kernel was asked to watch it
        return
    mapped = mmap.mmap(memory, job.memory_bytes)
    os.close(memory)
    try:
        with job.source.open() as reader:
            link.send(Ready())
            mending = MendingReader(reader, link.draws, max_damaged=1.0, tell=link.tell)
            while True:
                share = link.next_share()
                link.send(_read(share, job, reader, mending, mapped))
    except _Parting:
        return
    except Exception as error:
        link.send(Failed.of(None, error, traceback.format_exc()))


def _read(share: Share, job: Job, reader: Reader, mending: MendingReader, mapped: mmap.mmap) -> Done | Failed:
    """Fill a share's crops; the damaged ones are counted here and judged by the loader, which knows what all workers found."""
    before, replaced = reader.traffic, mending.num_replaced
    try:
        for field_no, y, x, flip, place in zip(share.field_no, share.y, share.x, share.flip, share.place, strict=True):
            crop = np.ndarray(job.shape, job.dtype, mapped, place)
            mending.read(field_no, y, x, flip_target(crop, flip))
    except _Parting:
        raise
    except Exception as error:
        return Failed.of(share.number, error, traceback.format_exc())
    return Done(share=share.number, traffic=reader.traffic - before, num_replaced=mending.num_replaced - replaced)


def main() -> None:
    """Arguments: the descriptors of a socket to the loader and of the shared memory."""
    die_with_parent()
    connection, memory = map(int, sys.argv[1:])
    with socket.socket(fileno=connection) as loader:
        work(_Link(loader), memory)


if __name__ == "__main__":
    main()
