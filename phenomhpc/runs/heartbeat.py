"""Signs of life: a process that does work says so, a watcher outside decides from its silence that it hangs.

The watcher names a node-local folder in PHENOMHPC_HEARTBEAT; each process keeps one small file there, named by its pid:

    RANK PHASE STEP COUNT        fixed width, one write each, no fsync

Ages are taken by the watcher's own monotonic clock from the moment it saw a file change, so that no clocks are compared.
"""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ENVIRONMENT = "PHENOMHPC_HEARTBEAT"
# Phases whose length says nothing about the next: reading a checkpoint, compiling, writing one.
STEP = "step"
START = "start"
_WIDTH = 80
# A step may take so many times its usual length.
PATIENCE_STEPS = 20
_REMEMBERED = 32
# Beats before "usual" means anything: start-up, and first steps that compile and warm up.
_NEEDED = 4


class _Writer:
    """This process's file; made anew after a fork."""

    pid = 0
    descriptor = -1
    count = 0


def beat(phase: str, step: int | None = None) -> None:
    """Say that this process is alive, in `phase` ("step" for the regular ones) and at `step`.

    Does nothing where nobody watches (PHENOMHPC_HEARTBEAT is not set), and never raises: a full disk must not end the work.
    """
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        return
    try:
        if _Writer.pid != os.getpid():
            _Writer.pid, _Writer.count = os.getpid(), 0
            _Writer.descriptor = os.open(Path(folder) / str(_Writer.pid), os.O_WRONLY | os.O_CREAT, 0o640)
        _Writer.count += 1
        line = f"{os.environ.get('RANK', '0')} {phase} {-1 if step is None else step} {_Writer.count}"
        os.pwrite(_Writer.descriptor, line.ljust(_WIDTH).encode() + b"\n", 0)
    except OSError:
        return


def rest() -> None:
    """This process has handed its work to others and is no longer to be watched."""
    folder = os.environ.get(ENVIRONMENT)
    if folder:
        (Path(folder) / str(os.getpid())).unlink(missing_ok=True)
        _Writer.pid = 0


@dataclass(frozen=True, kw_only=True)
class Beat:
    """The last sign of life of one process; step None where it has none."""

    pid: int
    rank: int
    phase: str
    step: int | None
    count: int


def read_beats(folder: Path) -> list[Beat]:
    """The last beat of every process in the folder, by pid; files that cannot be read (a foreign script's) count as touched."""
    beats = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.isdigit():
            continue
        try:
            words, touched = path.read_text().split(), path.stat().st_mtime_ns
        except (OSError, UnicodeDecodeError):
            continue
        try:
            rank, phase, step, count = int(words[0]), words[1], int(words[2]), int(words[3])
        except (IndexError, ValueError):
            rank, phase, step, count = 0, STEP, -1, touched
        beats.append(Beat(pid=int(path.name), rank=rank, phase=phase, step=None if step < 0 else step, count=count))
    return sorted(beats, key=lambda beat: beat.pid)


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A process that has been silent for longer than it may; seconds."""

    beat: Beat
    silent_s: float
    limit_s: float

    def __str__(self) -> str:
        at = "" if self.beat.step is None else f" at step {self.beat.step}"
        return (
            f"rank {self.beat.rank} (pid {self.beat.pid}) stands still in {self.beat.phase}{at} "
            f"for {self.silent_s:.0f} s (allowed: {self.limit_s:.0f} s)"
        )


@dataclass(kw_only=True)
class _Pulse:
    beat: Beat
    changed: float
    intervals: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


@dataclass(kw_only=True)
class Watch:
    """Compares beats with those seen before.

    min_s: silence that is always allowed; in steps also PATIENCE_STEPS times the median interval.  slow_s: what start-up,
    checkpoints and other phases may take.
    """

    min_s: float
    slow_s: float
    is_alive: Callable[[int], bool]
    _pulses: dict[int, _Pulse] = field(default_factory=dict)

    def look(self, beats: Iterable[Beat], now: float) -> list[Silence]:
        """Processes that are silent for too long at the moment `now` (seconds, monotonic), longest first."""
        silent = []
        for beat in beats:
            if not self.is_alive(beat.pid):
                self._pulses.pop(beat.pid, None)
                continue
            pulse = self._pulses.setdefault(beat.pid, _Pulse(beat=beat, changed=now))
            if beat.count != pulse.beat.count:
                if beat.phase == pulse.beat.phase == STEP:
                    pulse.intervals.append((now - pulse.changed) / max(1, _num_between(pulse.beat, beat)))
                pulse.beat, pulse.changed = beat, now
            limit = self._limit_s(pulse)
            if now - pulse.changed > limit:
                silent.append(Silence(beat=beat, silent_s=now - pulse.changed, limit_s=limit))
        return sorted(silent, key=lambda entry: -entry.silent_s)

    def _limit_s(self, pulse: _Pulse) -> float:
        if pulse.beat.phase != STEP or pulse.beat.count < _NEEDED:
            return max(self.min_s, self.slow_s)
        # Steps that all came between two looks leave no interval, and are short.
        return max(self.min_s, PATIENCE_STEPS * statistics.median(pulse.intervals or [0.0]))


def _num_between(before: Beat, after: Beat) -> int:
    """Beats between two looks; a foreign script's files count touches, whose number nobody knows."""
    num = after.count - before.count
    return num if 0 < num < 1_000_000 else 1
