"""phenomhpc runs: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.arguments import parse_since
from phenomhpc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from datetime import datetime

    from phenomhpc.jobs.status import RunStatus
    from phenomhpc.jobs.usage import Usage


def runs_folder(given: str | None) -> Path:
    """The folder of the runs: as given, else from the defaults, else ./runs."""
    from phenomhpc.config import default_layers

    values = {name: value for layer in default_layers() for name, value in layer.values.items()}
    return Path(given or str(values.get("runs") or "runs")).expanduser()


def runs(
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    usage: Annotated[
        bool, typer.Option("--usage", help="GPU and core hours: asked for, used, useful, lost; per run and user.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Only runs made since: 30d, 12h, or a day (2026-11-01).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs, oldest first."""
    from dataclasses import asdict
    from datetime import datetime

    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.status import statuses

    root = runs_folder(folder)
    begin = parse_since(since, datetime.now().astimezone()) if since else None
    if usage:
        _print_usage(root, begin, as_json=as_json)
        return
    found = [each for each in statuses(root) if begin is None or datetime.fromisoformat(each.created) >= begin]
    if as_json:
        print_json([asdict(status) for status in found])
        return
    if not found:
        print(f"no runs in {root}")
        return
    rows = tuple(
        (each.id, each.where, each.state, _done(each), each.created[:16].replace("T", " "), each.message)
        for each in found
    )
    print_table(Table(title="Runs", columns=("run", "where", "state", "done", "created (UTC)", ""), rows=rows))


def _print_usage(root: Path, begin: datetime | None, *, as_json: bool) -> None:
    """The accounts, from the run directories alone."""
    from dataclasses import asdict

    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.usage import account, totals
    from phenomhpc.runs import list_runs, read_outcome

    outcomes = [(paths, read_outcome(paths)) for paths in list_runs(root)]
    accounts = account([(paths, str(outcome["state"]) if outcome else "open") for paths, outcome in outcomes], begin)
    sums = totals(accounts)
    if not accounts and not as_json:
        print(f"no runs in {root}{f' since {begin:%Y-%m-%d %H:%M}' if begin else ''}")
        return
    if as_json:
        users = {user: asdict(total) for user, total in sums.items()}
        print_json({"runs": [asdict(entry) for entry in accounts], "users": users})
        return
    columns = ("asked", "used", "useful", "lost", "asked", "used", "useful", "lost")
    rows = tuple((entry.run, entry.user, entry.state, *_hours(entry.usage)) for entry in accounts)
    print_table(Table(title="GPU hours, then core hours", columns=("run", "user", "state", *columns), rows=rows))
    each = tuple((user, *_hours(total)) for user, total in sums.items())
    print_table(Table(title="Per user", columns=("user", *columns), rows=each))


def _hours(usage: Usage) -> tuple[float | None, ...]:
    return tuple(
        value for hours in (usage.gpu, usage.core) for value in (hours.asked, hours.used, hours.useful, hours.lost)
    )


def _done(status: RunStatus) -> str:
    return f"{status.done} of {status.total} {status.noun}" if status.total else "-"
