"""phenomhpc logs RUN: what its tasks said."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.runs import runs_folder

if TYPE_CHECKING:
    from phenomhpc.runs import RunPaths

POLL_S = 0.5


def logs(
    run: Annotated[str, typer.Argument(help="A run's ID, the beginning of one, or `last`.")],
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    task: Annotated[int | None, typer.Option(help="One task (of a gang: one node) only.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Print the logs of the newest attempt, a pipeline's with those of its stages."""
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.pipeline import stage_runs
    from phenomhpc.runs import RunPaths, find_run, read_outcome

    paths = find_run(runs_folder(folder), run)
    shown: dict[Path, int] = {}
    while True:
        ended = read_outcome(paths) is not None
        every = [paths, *(RunPaths(paths.root.parent / stage) for stage in stage_runs(paths).values())]
        several = len([log for each in every for log in _files(each, task)]) > 1
        for each in every:
            for log in _files(each, task):
                _print_new(log, shown, named=several)
        if not follow or ended:
            break
        time.sleep(POLL_S)
    if not shown:
        what = f"task {task}" if task is not None else "it"
        raise UsageError(
            f"run {paths.id}: {what} has written no log in {paths.logs} (a run here prints on the terminal)"
        )


def _files(paths: RunPaths, task: int | None) -> list[Path]:
    """Logs of the newest attempt: tasks by number, then the batch scripts' and the steward's."""
    if not paths.logs.is_dir():
        return []
    if task is not None:
        log = paths.log_file(task, paths.last_attempt())
        return [log] if log.is_file() else []
    found = list(paths.logs.glob(f"*.{paths.last_attempt():03d}.out"))
    return sorted(found, key=lambda log: (not log.name.split(".")[0].isdigit(), len(log.name), log.name))


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
