"""phenomhpc runs: what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.output import print_json, print_table


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
    from phenomhpc.jobs.status import run_status
    from phenomhpc.runs import list_runs

    found = [run_status(paths) for paths in list_runs(runs_folder(folder))]
    if as_json:
        print_json([asdict(status) for status in found])
        return
    if not found:
        print(f"no runs in {runs_folder(folder)}")
        return
    rows = tuple(
        (each.id, each.kind, each.where, each.state, each.created[:16].replace("T", " "), each.message)
        for each in found
    )
    print_table(Table(title="Runs", columns=("run", "kind", "where", "state", "created (UTC)", ""), rows=rows))
