"""phenomhpc runs: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.output import print_json, print_table

if TYPE_CHECKING:
    from phenomhpc.jobs.status import RunStatus


def runs_folder(given: str | None) -> Path:
    """The folder of the runs: as given, else from the defaults, else ./runs."""
    from phenomhpc.config import default_layers

    values = {name: value for layer in default_layers() for name, value in layer.values.items()}
    return Path(given or str(values.get("runs") or "runs")).expanduser()


def runs(
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs, oldest first."""
    from dataclasses import asdict

    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.status import statuses

    root = runs_folder(folder)
    found = statuses(root)
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


def _done(status: RunStatus) -> str:
    return f"{status.done} of {status.total} {status.noun}" if status.total else "-"
