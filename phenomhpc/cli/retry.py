"""phenomhpc retry RUN: what is missing, once more."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from phenomhpc.cli.arguments import parse_minutes
from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.runs import runs_folder


def retry(
    run: Annotated[
        str, typer.Argument(help="A run's ID, the beginning of one, or `last`.", autocompletion=complete_run)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CLUSTER.KEY=VALUE]...", help="Other cluster settings.", show_default=False),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed, not what was never tried.")] = False,
    failure: Annotated[
        str | None,
        typer.Option(
            "--class", help="Only what failed as this: oom, timeout, node_fail, bad_input, ...", show_default=False
        ),
    ] = None,
    code: Annotated[
        str, typer.Option(help="`submitted`: the code the run was submitted with; `current`: as it is now.")
    ] = "submitted",
    time: Annotated[
        str | None, typer.Option(help="Another time limit of a task: minutes, h:mm:ss, 12h.", show_default=False)
    ] = None,
) -> None:
    """Resubmit what is missing of a run that failed or was cancelled, as a new attempt in the same run directory."""
    from phenomhpc.jobs.retry import retry_run
    from phenomhpc.progress import console
    from phenomhpc.runs import find_run

    print(
        retry_run(
            find_run(runs_folder(folder), run),
            console(),
            command=sys.argv,
            failed=failed,
            failure=failure,
            code=code,
            time_minutes=parse_minutes(time) if time else None,
            overrides=overrides or (),
        )
    )
