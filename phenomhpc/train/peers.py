"""Do the nodes of a gang hear each other?  Small datagrams between their agents, apart from training and from the file system.

A power cut sends no word, and a process group waits for minutes before it gives up: silence has to be noticed by somebody who
expects to hear.  The agents do: they are idle processes, so no long step and no compiler keeps them from answering.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

INTERVAL_S: Final = 0.5
# Before a peer has been heard at all, it may still be starting.
PATIENCE: Final = 10
_HERE, _KNOCK, _ANSWER = b"here", b"knock", b"answer"

Address = tuple[str, int]


@dataclass(kw_only=True)
class Peers:
    """This node's ear and voice.  key: of this start of the run, so that strangers and the dead of earlier starts go unheard."""

    key: str
    rank: int
    address: str
    lost_after_s: float
    _heard: dict[int, float] = field(default_factory=dict)
    _known: dict[int, Address] = field(default_factory=dict)
    _since: dict[int, float] = field(default_factory=dict)
    _answered: set[int] = field(default_factory=set)

    def __enter__(self) -> Peers:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((self.address, 0))
        self._socket.settimeout(INTERVAL_S / 2)
        self._open, self._lock = True, threading.Lock()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._speak)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        for thread in self._threads:
            thread.join(timeout=2 * INTERVAL_S)
        self._socket.close()

    @property
    def port(self) -> int:
        """Where this node listens (UDP)."""
        return int(self._socket.getsockname()[1])

    def watch(self, others: Mapping[int, Address]) -> None:
        """From now on speak to these nodes, by rank, and expect to hear of them; no longer of any other."""
        now = time.monotonic()
        with self._lock:
            self._since = {rank: self._since.get(rank, now) for rank in others}
            self._heard = {rank: when for rank, when in self._heard.items() if rank in others}
            self._known = dict(others)

    def lost(self) -> tuple[int, ...]:
        """Ranks that were not heard of for lost_after_s; for PATIENCE times that where they never were."""
        now = time.monotonic()
        with self._lock:
            return tuple(
                rank
                for rank, since in sorted(self._since.items())
                if now - self._heard.get(rank, since) > self.lost_after_s * (1 if rank in self._heard else PATIENCE)
            )

    def reaches(self, others: Mapping[int, Address], limit_s: float) -> bool:
        """Do all these nodes answer within so many seconds?"""
        with self._lock:
            self._answered.clear()
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with self._lock:
                missing = [address for rank, address in others.items() if rank not in self._answered]
            if not missing:
                return True
            self._send(_KNOCK, missing)
            time.sleep(INTERVAL_S / 2)
        return False

    # -- the two threads ----------------------------------------------------------------------------------------------

    def _speak(self) -> None:
        while self._open:
            with self._lock:
                known = list(self._known.values())
            self._send(_HERE, known)
            time.sleep(INTERVAL_S)

    def _send(self, kind: bytes, addresses: Iterable[Address]) -> None:
        message = b" ".join((self.key.encode(), kind, str(self.rank).encode()))
        for address in addresses:
            try:
                self._socket.sendto(message, address)
            except OSError:  # no route: what the silence will say
                continue

    def _listen(self) -> None:
        while self._open:
            try:
                message, address = self._socket.recvfrom(512)
            except OSError:
                continue
            key, _, rest = message.partition(b" ")
            kind, _, number = rest.partition(b" ")
            if key.decode(errors="replace") != self.key or not number.isdigit():
                continue
            with self._lock:
                self._heard[int(number)] = time.monotonic()
                if kind == _ANSWER:
                    self._answered.add(int(number))
            if kind == _KNOCK:
                self._send(_ANSWER, [address])
