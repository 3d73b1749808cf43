"""phenomhpc cancel RUN."""

from __future__ import annotations

from typing import Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.runs import runs_folder


def cancel(
    run: Annotated[
        str, typer.Argument(help="A run's ID, the beginning of one, or `last`.", autocompletion=complete_run)
    ],
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
) -> None:
    """Cancel a run on Slurm: its jobs, its steward, a pipeline's stages.  What was committed stays."""
    from phenomhpc.jobs.cancel import cancel_run
    from phenomhpc.progress import console
    from phenomhpc.runs import find_run

    print(cancel_run(find_run(runs_folder(folder), run), console()))
