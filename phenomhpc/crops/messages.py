"""What a loader and its workers say to each other, over a socket that only the two of them have: one small message a packet.
Pixels are never in one.

to a worker    the Job, once; then Share, and Draws in answer to an AskDraws
from a worker  Ready, once; then for each share any number of Found and AskDraws, and in the end a Done or a Failed
"""

from __future__ import annotations

import pickle
import socket
from dataclasses import dataclass

from phenomhpc import errors
from phenomhpc.crops.corpus import CropsOf
from phenomhpc.crops.mending import Candidate, Replaced
from phenomhpc.store.shardfiles import Traffic

# Packets of a local socket hold about 200 kB.
MAX_BYTES = 100_000
_MAX_TRACE = 20_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """Read from `source`, into memory of `memory_bytes` shared with `parent` (a pid), crops of `shape` (C, h, w)."""

    parent: int
    source: CropsOf
    memory_bytes: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some crops of a step: which, how flipped, and where in the shared memory each goes (bytes); all lists [n]."""

    number: int
    step: int
    field_no: list[int]
    y: list[int]
    x: list[int]
    flip: list[int]
    place: list[int]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The fields that may stand in for another one, in the order in which they are tried."""

    candidates: list[Candidate]


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The stores are open."""


@dataclass(frozen=True, kw_only=True)
class AskDraws:
    """field_no: a field that cannot be read."""

    field_no: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """A field of a share is damaged, and what stands in for it."""

    share: int
    replaced: Replaced


@dataclass(frozen=True, kw_only=True)
class Done:
    """A share is read; num_replaced: how many of its crops are others'."""

    share: int
    traffic: Traffic
    num_replaced: int


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A share (None: opening the stores) has raised something.  kind: of the error; trace: of what nobody foresaw."""

    share: int | None
    kind: str
    text: str
    trace: str

    @classmethod
    def of(cls, share: int | None, error: Exception, trace: str) -> Failed:
        return cls(share=share, kind=type(error).__name__, text=str(error)[:_MAX_TRACE], trace=trace[-_MAX_TRACE:])

    def error(self) -> Exception:
        """What to raise in the loader's process: the same kind of error with the same line; the unforeseen with its traceback."""
        kind = getattr(errors, self.kind, None)
        if isinstance(kind, type) and issubclass(kind, errors.PhenomError):
            return kind(self.text)
        unforeseen = RuntimeError(f"{self.kind}: {self.text}")
        unforeseen.add_note(f"in a worker that reads crops:\n{self.trace}")
        return unforeseen


Message = Job | Share | Draws | Ready | AskDraws | Found | Done | Failed


def send(to: socket.socket, message: Message) -> None:
    """Raises OSError where nobody listens any more."""
    to.send(pickle.dumps(message))


def receive(packet: bytes) -> Message:
    """The message of a packet from a process that this one has started, or was started by."""
    message: Message = pickle.loads(packet)
    return message
