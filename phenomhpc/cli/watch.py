"""Drawing a run that is followed: live on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from phenomhpc.cli.status import facts_of, rate_of
from phenomhpc.progress import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from phenomhpc.jobs.status import RunStatus
    from phenomhpc.runs import RunPaths

BAR_WIDTH = 40
# What the head and the bar show already.
_IN_BAR = frozenset({"kind", "where", "folder"})


def follow(paths: RunPaths) -> int:
    """Show a run until it has ended; returns its exit code.  Ctrl-C leaves it alone and returns 130."""
    from phenomhpc.jobs import watch

    try:
        last = _live(watch.follow(paths)) if sys.stdout.isatty() else _lines(watch.follow(paths))
    except KeyboardInterrupt:
        print(f"{paths.id} goes on; phenomhpc status {paths.id} --watch comes back to it", file=sys.stderr)
        return 130
    if last.state == "unknown":
        return 1
    return last.exit_code or 0


def line_of(status: RunStatus) -> str:
    """A status in one line."""
    current = status.stage or status
    words = [f"{status.id}: {status.state}"]
    if status.stage:
        words.append(f"{status.stage.id}: {status.stage.state}")
    if current.total:
        words.append(f"{current.done} of {current.total} {current.noun}")
    if current.rate_per_s or current.parts_per_s:
        words.append(rate_of(current))
    if current.left_s is not None:
        words.append(f"{duration(current.left_s)} left")
    if current.loss is not None:
        words.append(f"loss {current.loss:.4f}")
    words += [f"{count} {name}" for name, count in current.failures.items()]
    words += current.alarms
    if current.hosts:
        words.append(f"on {', '.join(current.hosts)}")
    if status.message:
        words.append(status.message)
    return ", ".join(words)


def _lines(found: Iterator[RunStatus]) -> RunStatus:
    said = ""
    for status in found:
        words = line_of(status)
        if words != said:
            print(words, flush=True)
            said = words
    return status


def _live(found: Iterator[RunStatus]) -> RunStatus:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        for status in found:
            live.update(draw(status), refresh=True)
    return status


def draw(status: RunStatus) -> RenderableType:
    """A status as rich draws it: head, bar, facts, stages."""
    from rich.console import Group
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    current = status.stage or status
    head = Text.assemble((status.id, "bold"), f": {status.state}", (f"  {status.message}", "dim"))
    parts: list[RenderableType] = [head]
    for name, run, state in status.stages:
        mark = {"finished": "✓", "failed": "✗", "cancelled": "✗", "running": "▸"}.get(state, "·")
        parts.append(Text(f"  {mark} {name:10s} {state or '-':10s} {run}"))
    # Fields where they are told: they move while a unit is being done.
    done, total, noun = current.done, current.total, current.noun
    if current.parts_total:
        done, total, noun = current.parts_done, current.parts_total, current.parts
    if total:
        row = Table.grid(padding=(0, 1))
        row.add_row("  ", ProgressBar(total=total, completed=done, width=BAR_WIDTH), f"{done} of {total} {noun}")
        parts.append(row)
    facts = Table.grid(padding=(0, 2))
    for fact, value in facts_of(current):
        if fact not in _IN_BAR and fact != noun:
            facts.add_row(f"  {escape(fact)}", escape(value))
    return Group(*parts, facts)
