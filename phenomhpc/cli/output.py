"""Printing for people (rich tables) and for programs (--json)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phenomhpc.jobs.base import Summary, Table
    from phenomhpc.runs import RunPaths

MAX_SET_ASIDE_SHOWN = 20


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, default=str)
    print()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_table(table: Table) -> None:
    """A table on stdout; on anything but a terminal it is as wide as it needs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for position, column in enumerate(table.columns):
        numeric = bool(table.rows) and all(isinstance(row[position], int | float | None) for row in table.rows)
        drawn.add_column(escape(column), justify="right" if numeric else "left")
    for row in table.rows:
        drawn.add_row(*(escape(_cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(drawn)


def _by_reason(summary: Summary) -> tuple[tuple[int, str], ...]:
    """The most frequent reasons, with what differs from file to file left out of them."""
    from phenomhpc.jobs.base import kind_of_reason

    kinds = Counter(kind_of_reason(reason) for _, reason in summary.set_aside)
    return tuple((times, reason) for reason, times in kinds.most_common(MAX_SET_ASIDE_SHOWN))


def print_summary(paths: RunPaths, summary: Summary) -> None:
    """How a run here ended: tables, what was set aside, plain words, where to look (last)."""
    from phenomhpc.jobs.base import Table

    for table in summary.tables:
        print_table(table)
    if summary.set_aside:
        shown = summary.set_aside[:MAX_SET_ASIDE_SHOWN]
        if len(shown) < len(summary.set_aside):
            print_table(Table(title="Set aside, by reason", columns=("fields", "why"), rows=_by_reason(summary)))
        print_table(Table(title=f"{len(summary.set_aside)} set aside", columns=("what", "why"), rows=shown))
        if len(shown) < len(summary.set_aside):
            print(f"... and {len(summary.set_aside) - len(shown)} more, all of them in {paths.outcome}")
    print(summary.text)
    print(f"run: {paths.root}")
    if summary.report:
        print(f"report: {summary.report}")
