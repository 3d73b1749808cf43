"""phenomhpc logs RUN: what its tasks said."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.runs import runs_folder

POLL_S = 0.5


def logs(
    run: Annotated[
        str, typer.Argument(help="A run's ID, the beginning of one, or `last`.", autocompletion=complete_run)
    ],
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    task: Annotated[int | None, typer.Option(help="One task (of a gang: one node) only.", show_default=False)] = None,
    attempt: Annotated[int | None, typer.Option(help="An earlier attempt.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print the logs of the newest attempt (or of another), a pipeline's with those of its stages."""
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.pipeline import stage_runs
    from phenomhpc.runs import RunPaths, find_run, read_outcome

    paths = find_run(runs_folder(folder), run)
    shown: dict[Path, int] = {}
    while True:
        ended = read_outcome(paths) is not None
        every = [paths, *(RunPaths(paths.root.parent / stage) for stage in stage_runs(paths).values())]
        several = len([log for each in every for log in each.log_files(attempt, task)]) > 1
        for each in every:
            for log in each.log_files(attempt, task):
                _print_new(log, shown, named=several)
        if not follow or ended:
            break
        time.sleep(POLL_S)
    if not shown:
        what = f"task {task}" if task is not None else "it"
        raise UsageError(
            f"run {paths.id}: {what} has written no log in {paths.logs} (a run here prints on the terminal)"
        )


def _print_new(log: Path, shown: dict[Path, int], *, named: bool) -> None:
    begin = shown.get(log, 0)
    with log.open("rb") as file:
        file.seek(begin)
        data = file.read()
    # A line that is being written is printed when it is whole.
    end = data.rfind(b"\n") + 1
    shown[log] = begin + end
    if end:
        if named:
            print(f"==> {log.parent.parent.name} {log.name} <==")
        sys.stdout.write(data[:end].decode(errors="replace"))
        sys.stdout.flush()
