"""phenomhpc submit JOB: the same job, the same flags, on Slurm."""

from __future__ import annotations

import sys
from typing import Any

import typer

from phenomhpc.cli.estimate import print_estimate, wants_estimate
from phenomhpc.cli.job_flags import JOB_FLAGS, JOB_HELP, SUBMIT_FLAGS, job_command
from phenomhpc.cli.prepare import prepare

app = typer.Typer(help="Submit a job to Slurm, with the flags it has here.", no_args_is_help=True)


def submit(kind: str, settings: dict[str, Any], overrides: list[str], own: dict[str, Any]) -> None:
    """Resolve the settings and hand the job to Slurm; exits with the run's code under --wait."""
    from phenomhpc.jobs.submit import submit_job
    from phenomhpc.progress import console

    config = prepare(kind, settings, overrides, own)
    if wants_estimate(own):
        print_estimate(config, own)
        return
    code = submit_job(
        config,
        command=sys.argv,
        name=own["name"],
        after=own["after"],
        dry_run=own["dry_run"],
        wait=own["wait"],
        progress=console(),
    )
    raise typer.Exit(code)


for _kind in JOB_FLAGS:
    app.command(_kind, help=JOB_HELP[_kind])(job_command(_kind, SUBMIT_FLAGS, submit))
