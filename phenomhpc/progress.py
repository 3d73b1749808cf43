"""Progress of long work: bars with rate and time left on a terminal, plain lines elsewhere.

Work code receives a `Progress` and never asks where it is drawn.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TextIO

# stage's name, total, unit; units done, figures, note
Message = tuple[str, int | None, str, int, dict[str, float], str | None]


class Stage(Protocol):
    """One named stretch of work."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """`n` more units are done; `figures` (loss=0.41, mb_per_s=120.0) replace those shown before."""

    def note(self, text: str) -> None:
        """One line for a person, kept above the bar."""

    def __enter__(self) -> Stage: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where stages are shown."""

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        """Begin a stage of `total` units (None: unknown)."""

    def say(self, text: str) -> None:
        """One line for a person."""


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_per_', '/')} {value:.4g}" for name, value in figures.items())


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Silent:
    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return self

    def say(self, text: str) -> None:
        pass

    def advance(self, n: int = 1, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _LineStage:
    """Plain lines, at most one per `every_s`, and one at the end."""

    def __init__(self, out: TextIO, name: str, total: int | None, unit: str, every_s: float) -> None:
        self._out, self._name, self._total, self._unit, self._every_s = out, name, total, unit, every_s
        self._done = 0
        self._figures: dict[str, float] = {}
        self._began = self._shown = time.monotonic()

    def _show(self, now: float) -> None:
        self._shown = now
        elapsed = max(now - self._began, 1e-9)
        rate = self._done / elapsed
        count = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        left = ""
        if self._total is not None and 0 < self._done < self._total:
            left = f"  {duration((self._total - self._done) / rate)} left"
        line = f"{self._name}: {count} {self._unit}  {rate:.3g}/s  {duration(elapsed)}{left}  {_figures(self._figures)}"
        print(line.rstrip(), file=self._out, flush=True)

    def advance(self, n: int = 1, **figures: float) -> None:
        self._done += n
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._shown >= self._every_s:
            self._show(now)

    def note(self, text: str) -> None:
        print(f"{self._name}: {text}", file=self._out, flush=True)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(time.monotonic())


class _Lines:
    def __init__(self, out: TextIO, every_s: float) -> None:
        self._out, self._every_s = out, every_s

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return _LineStage(self._out, name, total, unit, self._every_s)

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class _BarStage:
    def __init__(self, name: str, total: int | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[rate]}}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._task: Any = self._bars.add_task(name, total=total, rate="", figures="")
        self._figures: dict[str, float] = {}
        self._began = time.monotonic()
        self._done = 0

    def advance(self, n: int = 1, **figures: float) -> None:
        self._figures.update(figures)
        self._done += n
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        self._bars.update(self._task, advance=n, rate=f"{rate:.3g}/s", figures=_figures(self._figures))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Stage:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


class _Bars:
    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return _BarStage(name, total, unit)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Forwarded:
    """Stages of a worker process, sent to the process that draws: (name, total, unit, n, figures, note) tuples."""

    def __init__(
        self, send: Callable[[Message], None], name: str = "", total: int | None = None, unit: str = ""
    ) -> None:
        self._send, self._name, self._total, self._unit = send, name, total, unit

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return _Forwarded(self._send, name, total, unit)

    def say(self, text: str) -> None:
        self._send(("", None, "", 0, {}, text))

    def advance(self, n: int = 1, **figures: float) -> None:
        self._send((self._name, self._total, self._unit, n, figures, None))

    def note(self, text: str) -> None:
        self._send((self._name, self._total, self._unit, 0, {}, text))

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def forwarding(send: Callable[[Message], None]) -> Progress:
    """For a worker process: what would be drawn is sent, e.g. by a queue's put; the drawing process reads it."""
    return _Forwarded(send)


def silent() -> Progress:
    """Shows nothing."""
    return _Silent()


def lines(out: TextIO | None = None, *, every_s: float = 10.0) -> Progress:
    """Plain lines, as a log file wants them."""
    return _Lines(out or sys.stderr, every_s)


def console() -> Progress:
    """Bars where stderr is a terminal, plain lines elsewhere."""
    return _Bars() if sys.stderr.isatty() else lines()


class Meter:
    """Advances a stage by fields, and shows the raw bytes per second."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._began, self._bytes = stage, time.monotonic(), 0

    def advance(self, num_bytes: int) -> None:
        """One more field, of so many bytes."""
        self._bytes += num_bytes
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._stage.advance(1, raw_MB_per_s=self._bytes / 1e6 / seconds)


class _BeatingStage:
    def __init__(self, stage: Stage, beat: Callable[[], None]) -> None:
        self._stage, self._beat = stage, beat

    def advance(self, n: int = 1, **figures: float) -> None:
        self._beat()
        self._stage.advance(n, **figures)

    def note(self, text: str) -> None:
        self._stage.note(text)

    def __enter__(self) -> Stage:
        self._stage.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, trace)


class _Beating:
    def __init__(self, inner: Progress, beat: Callable[[], None]) -> None:
        self._inner, self._beat = inner, beat

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return _BeatingStage(self._inner.stage(name, total, unit), self._beat)

    def say(self, text: str) -> None:
        self._inner.say(text)


def beating(inner: Progress, beat: Callable[[], None]) -> Progress:
    """`inner`, with `beat()` called whenever a stage advances: progress is a sign of life."""
    return _Beating(inner, beat)


__all__ = ["Message", "Meter", "Progress", "Stage", "beating", "console", "duration", "forwarding", "lines", "silent"]
