"""The processes of somebody's script on one node: their start, how they are asked to stop, their end.

What a script is told, and how it is asked to stop, is the contract of docs/how-to/foreign-scripts.md.  No torch in here.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from phenomhpc.errors import TASK_REQUEUE, HungError
from phenomhpc.jobs.processes import children, descendants, dump_stacks, program_of
from phenomhpc.parent import die_with_parent

_RANK_PREFIX = re.compile(r"^\[rank\d+\]:\s?", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last):"
_SHELLS = frozenset({"bash", "dash", "ksh", "sh", "zsh"})
_POLL_S = 0.1
_LOOK_S = 0.5
# How long the last words of processes that ended are waited for.
_LAST_WORDS_S = 2.0
_REMEMBERED_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a script is asked to stop: `wait_s` after the stop file it gets `signal` (0: none), `grace_s` later it is killed.

    peer_wait_s: the same where nobody but another rank, which has left with 75, wants this one to stop: it is about to do the
    same, and may be saving.
    """

    wait_s: float
    signal: int
    grace_s: float
    peer_wait_s: float


def patience(lead_s: int, signal_name: str, wait_s: float, grace_s: float | None) -> Patience:
    """lead_s: how long before the limit Slurm warns.  A preemption may leave far less: nothing is waited for unasked."""
    number = 0 if signal_name == "none" else signal.Signals[signal_name]
    grace = max(1.0, lead_s * 0.9 - wait_s) if grace_s is None else grace_s
    return Patience(wait_s=wait_s, signal=number, grace_s=grace, peer_wait_s=max(wait_s, lead_s / 3))


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the script ended on this node: `done`, `stopped` (to be requeued) or `failed`.

    code: of the first process that ended otherwise than well, negative for a signal; asked: somebody wanted it to stop, else it
    left with 75 by itself.
    """

    state: str
    code: int = 0
    rank: int = 0
    words: str = ""
    asked: bool = False
    tail: str = ""


def last_traceback(text: str) -> tuple[str | None, str]:
    """The last Python traceback in what a process said, None where there is none; and its last line, else the text's."""
    text = _RANK_PREFIX.sub("", text)
    at = text.rfind(_TRACEBACK)
    if at >= 0:
        lines = text[at:].splitlines()
        for number, line in enumerate(lines[1:], 1):
            if line and not line[0].isspace():
                return "\n".join(lines[: number + 1]), line.strip()
    spoken = [line.strip() for line in text.splitlines() if line.strip()]
    return None, spoken[-1] if spoken else ""


@dataclass(kw_only=True)
class _Process:
    """One process: what it says goes to the log; the end of stderr is remembered for the event, and when it last said anything."""

    popen: subprocess.Popen[bytes]
    tail: deque[bytes] = field(default_factory=deque)
    kept: int = 0
    heard: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        ways = [(self.popen.stderr, sys.stderr.buffer, True), (self.popen.stdout, sys.stdout.buffer, False)]
        self.readers = [
            threading.Thread(target=self._pass_on, args=(source, *way), daemon=True)
            for source, *way in ways
            if source is not None
        ]
        for reader in self.readers:
            reader.start()

    def _pass_on(self, source: IO[bytes], log: IO[bytes], remember: bool) -> None:
        """In whole lines, so that those of several ranks do not mix."""
        kept = b""
        with source:
            while chunk := os.read(source.fileno(), 65536):
                self.heard = time.monotonic()
                if remember:
                    self._remember(chunk)
                kept += chunk
                end = max(kept.rfind(b"\n"), kept.rfind(b"\r")) + 1
                _write(log, kept[:end])
                kept = kept[end:]
            _write(log, kept)

    def _remember(self, chunk: bytes) -> None:
        self.tail.append(chunk)
        self.kept += len(chunk)
        while self.kept - len(self.tail[0]) > _REMEMBERED_BYTES:
            self.kept -= len(self.tail.popleft())

    def hear_out(self) -> None:
        """Until what an ended process has said is in the log; something of its own may still hold the pipe."""
        for reader in self.readers:
            reader.join(_LAST_WORDS_S)

    def last_words(self) -> str:
        self.hear_out()
        return b"".join(list(self.tail)).decode(errors="replace")

    def ask(self, number: int) -> None:
        """Send a signal to the program, and not to what it has started: a data loader's workers would die of it, and take the
        program's own way of stopping with them.  Of a shell, to what it runs, for the shell would not pass it on."""
        pending = [self.popen.pid] if self.popen.poll() is None else []
        for pid in pending:
            below = children(pid) if program_of(pid) in _SHELLS else []
            pending += below
            if not below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill(self) -> None:
        """The process and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)


def _write(log: IO[bytes], text: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):
        log.write(text)
        log.flush()


def _start(command: Sequence[str], folder: Path, environment: Mapping[str, str], *, listen: bool) -> _Process:
    """A process group of its own, so that all of it can be ended; it dies with this process.  listen: to stdout too."""
    popen = subprocess.Popen(
        command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE if listen else None, start_new_session=True, preexec_fn=die_with_parent,
    )  # fmt: skip
    return _Process(popen=popen)


def run_script(
    command: Sequence[str],
    folder: Path,
    environments: Sequence[Mapping[str, str]],
    *,
    stop_file: Path,
    patience: Patience,
    look: Callable[[], bool],
    silent_limit_s: float | None = None,
) -> Ending:
    """Run one process per environment to their end.

    look: called about twice a second; True when another node has left to be requeued; what it raises ends the processes and is
    passed on.  silent_limit_s: a process that
    writes nothing for so long ends them too (HungError, the stacks in the log).
    Raises OSError when the command cannot be started.  What holds when this process is killed: the script's die with it.
    """
    processes: list[_Process] = []
    try:
        for environment in environments:
            processes.append(_start(command, folder, environment, listen=silent_limit_s is not None))
        ranks = [int(each.get("RANK", each["NODE_RANK"])) for each in environments]

        def look_all() -> bool:
            if silent_limit_s is not None:
                _listen(processes, ranks, silent_limit_s)
            return look()

        with _noting_sigterm() as terminated:
            return _watch(processes, ranks, stop_file, terminated, patience, look_all)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.popen.wait()
            process.hear_out()


@contextlib.contextmanager
def _noting_sigterm() -> Iterator[threading.Event]:
    """Slurm's own SIGTERM (scancel, a preemption without warning) goes to every process of a task: the ranks have it too, and
    what they end with is no sign that they had come to their end."""
    seen = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: seen.set())
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(
    processes: Sequence[_Process],
    ranks: Sequence[int],
    stop_file: Path,
    terminated: threading.Event,
    patience: Patience,
    look: Callable[[], bool],
) -> Ending:
    asked_at: float | None = None
    asked = left = False  # by somebody else; another node has left to be requeued
    wait_s = patience.wait_s
    signalled = killed = False
    looked = 0.0
    while True:
        now = time.monotonic()
        if now - looked > _LOOK_S:
            looked = now
            left = look()
        codes = [process.popen.poll() for process in processes]
        if asked_at is None and (terminated.is_set() or stop_file.exists()):
            asked_at, asked = now, True
        if asked_at is None and (left or TASK_REQUEUE in codes):
            asked_at, asked, wait_s = now, left, patience.peer_wait_s
            stop_file.touch()  # the other ranks are to do the same
        bad = next((index for index, code in enumerate(codes) if code), None)
        if bad is not None and asked_at is None:
            return _failure(processes[bad], ranks[bad], codes[bad] or 0)
        if all(code is not None for code in codes):
            if not any(codes) and not signalled and not terminated.is_set():
                return Ending(state="done")
            lasted = now - (asked_at or now)
            return _stopped(codes, asked, patience.signal if signalled else 0, lasted if killed else None)
        if asked_at is not None and not signalled and now - asked_at >= wait_s:
            signalled = True
            for process in processes if patience.signal else ():
                process.ask(patience.signal)
        if asked_at is not None and not killed and now - asked_at > wait_s + patience.grace_s:
            killed = True
            for process in processes:
                process.kill()
        time.sleep(_POLL_S)


def _listen(processes: Sequence[_Process], ranks: Sequence[int], limit_s: float) -> None:
    """Raise HungError when a living process has said nothing for too long, after the stacks of all are in the log."""
    now = time.monotonic()
    silent = [
        f"rank {rank} has written nothing for {now - process.heard:.0f} s (allowed: {limit_s:.0f} s)"
        for process, rank in zip(processes, ranks, strict=True)
        if process.popen.poll() is None and now - process.heard > limit_s
    ]
    if silent:
        print(dump_stacks(descendants(os.getpid())), flush=True)
        raise HungError("; ".join(silent))


def _failure(process: _Process, rank: int, code: int) -> Ending:
    tail = process.last_words()
    return Ending(state="failed", code=code, rank=rank, words=last_traceback(tail)[1], tail=tail)


def _stopped(codes: Sequence[int | None], asked: bool, number: int, killed_after_s: float | None) -> Ending:
    """number: of the signal that was sent, 0 for none."""
    code = next((code for code in codes if code), 0)
    if killed_after_s is not None:
        words = f"asked to stop; killed, since it went on for {killed_after_s:.0f} s"
    elif number:
        words = f"asked to stop; ended after {signal.Signals(number).name}"
    else:
        words = "asked to stop; " * asked + f"left with {code}"
    return Ending(state="stopped", code=code, asked=asked, words=words)
