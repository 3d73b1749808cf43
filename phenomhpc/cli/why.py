"""phenomhpc why RUN: what went wrong, where, and which command shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json
from phenomhpc.cli.runs import runs_folder

if TYPE_CHECKING:
    from phenomhpc.jobs.failures import TaskFailure
    from phenomhpc.jobs.why import Why

MAX_SHOWN = 5
MAX_TRACEBACK_LINES = 30


def why(
    run: Annotated[
        str, typer.Argument(help="A run's ID, the beginning of one, or `last`.", autocompletion=complete_run)
    ],
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    task: Annotated[int | None, typer.Option(help="One task (of a gang: one node) only.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why a run failed, or how it stands: class, node, exit code, memory, traceback, and where the log is."""
    from dataclasses import asdict

    from phenomhpc.jobs.why import why as explain
    from phenomhpc.runs import find_run

    found = explain(find_run(runs_folder(folder), run), task=task)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found, f" --runs {folder}" if folder else "")


def _print(found: Why, runs: str) -> None:
    print(f"{found.id}: {found.state}{f': {found.message}' if found.message else ''}")
    if found.stage:
        print(f"  stage        {found.stage}")
    if found.failure:
        print(f"  class        {found.failure}")
    if found.summary:
        print(f"  attempt {found.attempt:<4d} {found.summary}")
    for line in found.earlier:
        print(f"  earlier      {line}")
    for alarm in found.alarms:
        print(f"  alarm        {alarm}")
    for line in found.drift:
        print(f"  drift        {line}")
    for thing, reason in found.set_aside[:MAX_SHOWN]:
        print(f"  set aside    {thing}: {reason}")
    if len(found.set_aside) > MAX_SHOWN:
        print(f"  set aside    ... and {len(found.set_aside) - MAX_SHOWN} more; --json has all of them")
    if found.decided:
        print(f"  steward      {found.decided}")
    if found.log:
        print(f"  log          cat {found.log}")
    for position, failure in enumerate(found.failures[:MAX_SHOWN]):
        _print_failure(failure, runs, traced=position == 0)
    if len(found.failures) > MAX_SHOWN:
        print(f"... and {len(found.failures) - MAX_SHOWN} more task(s); phenomhpc why {found.id} --task T, or --json")


def _print_failure(failure: TaskFailure, runs: str, *, traced: bool) -> None:
    where = f" on {failure.host}" if failure.host else ""
    print(f"\ntask {failure.task}: {failure.failure}{where}: {failure.message}")
    facts: list[tuple[str, str]] = []
    if failure.unit_id:
        facts.append(("unit", failure.unit_id))
    if failure.exit_code is not None:
        facts.append(("exit code", f"{failure.exit_code}{f', signal {failure.signal}' if failure.signal else ''}"))
    if failure.max_rss_bytes:
        facts.append(("peak memory", f"{failure.max_rss_bytes / 2**20:.0f} MiB"))
    if failure.slurm_state:
        facts.append(("Slurm", f"{failure.slurm_state}{f'; step {failure.step_state}' if failure.step_state else ''}"))
    if failure.log_command:
        facts.append(("log", f"{failure.log_command}{runs}"))
    for name, value in facts:
        print(f"  {name:12s} {value}")
    if traced and failure.traceback:
        lines = failure.traceback.splitlines()
        for line in lines[-MAX_TRACEBACK_LINES:]:
            print(f"  | {line}")
