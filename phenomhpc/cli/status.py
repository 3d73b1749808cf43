"""phenomhpc status RUN: how far a run is, and what went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.runs import runs_folder
from phenomhpc.progress import duration

if TYPE_CHECKING:
    from phenomhpc.jobs.status import RunStatus
    from phenomhpc.jobs.usage import Hours


def status(
    run: Annotated[
        str, typer.Argument(help="A run's ID, the beginning of one, or `last`.", autocompletion=complete_run)
    ],
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay and follow; ends with the run, and with its exit code.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run; where it has no living steward, do what the steward would."""
    from dataclasses import asdict

    from phenomhpc.errors import UnreachableError, UsageError
    from phenomhpc.jobs.status import UNKNOWN, tended_status
    from phenomhpc.runs import find_run

    if watch and as_json:
        raise UsageError("--watch --json: one or the other; a program polls `status --json`")
    paths = find_run(runs_folder(folder), run)
    if watch:
        from phenomhpc.cli.watch import follow

        raise typer.Exit(follow(paths))
    found = tended_status(paths)
    if found.state == UNKNOWN and not found.last_known and found.where != "here":
        raise UnreachableError(f"run {found.id}: nothing can be said: {found.message}")
    if as_json:
        print_json(asdict(found))
    else:
        _print(found)


def facts_of(found: RunStatus) -> list[tuple[str, str]]:
    """What there is to tell, as names and values, in the order of a person's interest."""
    facts: list[tuple[str, str]] = [("kind", found.kind), ("where", found.where)]
    if found.attempt:
        facts.append(("attempt", str(found.attempt)))
    if found.total:
        facts.append((found.noun, f"{found.done} of {found.total}"))
    if found.parts_total:
        facts.append((found.parts, f"{found.parts_done} of {found.parts_total}"))
    if found.running or found.waiting:
        facts.append(("tasks", f"{found.running} running, {found.waiting} waiting"))
    if found.rate_per_s or found.parts_per_s:
        facts.append(("rate", rate_of(found)))
    if found.left_s is not None:
        facts.append(("time left", duration(found.left_s)))
    if found.loss is not None:
        facts.append(("loss", f"{found.loss:.4f}"))
    facts += [
        (name, f"{share:.1%}") for name, share in (("MFU", found.mfu), ("goodput", found.goodput)) if share is not None
    ]
    facts += [("alarm", alarm) for alarm in found.alarms]
    facts += [(f"failed: {name}", f"{count} task(s)") for name, count in found.failures.items()]
    if found.usage.gpu.used:
        facts.append(("GPU hours", _hours(found.usage.gpu)))
    elif found.usage.core.used:
        facts.append(("core hours", _hours(found.usage.core)))
    if found.jobs:
        facts.append(("Slurm jobs", ", ".join(found.jobs)))
    if found.hosts:
        facts.append(("hosts", ", ".join(found.hosts)))
    if found.set_aside:
        facts.append(("set aside", str(found.set_aside)))
    if found.report:
        facts.append(("report", found.report))
    return [*facts, ("folder", found.folder)]


def rate_of(found: RunStatus) -> str:
    """How fast a run is, in what the bar of a run here counts."""
    if found.parts_per_s is None:
        return f"{found.rate_per_s:.3g} {found.noun}/s"
    raw = f", {found.raw_mb_per_s:.3g} raw MB/s" if found.raw_mb_per_s is not None else ""
    return f"{found.parts_per_s:.3g} {found.parts}/s{raw}"


def _hours(hours: Hours) -> str:
    return f"{hours.used:.3g} used, {hours.lost:.3g} lost"


def _print(found: RunStatus) -> None:
    from phenomhpc.jobs.base import Table

    print(f"{found.id}: {found.state}{f' ({found.message})' if found.message else ''}")
    for name, value in facts_of(found):
        print(f"  {name:12s} {value}")
    if found.stages:
        rows = tuple((stage, run or None, state or None) for stage, run, state in found.stages)
        print_table(Table(title="Stages", columns=("stage", "run", "state"), rows=rows))
    if found.state in {"failed", "cancelled"} or found.failures:
        print(f"phenomhpc why {found.id}   tells more")
