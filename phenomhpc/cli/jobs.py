"""phenomhpc convert | pretrain | embed | evaluate | pipeline: run a job here and now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from phenomhpc.cli.estimate import print_estimate, wants_estimate
from phenomhpc.cli.job_flags import BELOW_STORE, CHECK_FLAGS, HERE_FLAGS, JOB_FLAGS, JOB_HELP, job_command
from phenomhpc.cli.output import print_summary

if TYPE_CHECKING:
    from phenomhpc.config import AnyConfig


def run(kind: str, settings: dict[str, Any], overrides: list[str], own: dict[str, Any]) -> None:
    """Resolve the settings, run the job here, print how it ended, exit with its code."""
    from phenomhpc.config import PipelineConfig, require, resolve
    from phenomhpc.jobs.here import run_here
    from phenomhpc.jobs.references import resolve_references
    from phenomhpc.progress import console

    config = resolve(kind, settings, overrides, recipe=own["recipe"]).config
    require(config)
    config = resolve_references(config)
    if wants_estimate(own):
        print_estimate(config, own)
        return
    if own.get("check"):
        check(config)
    if isinstance(config, PipelineConfig):
        from phenomhpc.jobs.pipeline import run_pipeline_here

        runner: Any = run_pipeline_here
    else:
        runner = run_here
    paths, summary = runner(config, command=sys.argv, progress=console(), name=own["name"], fresh=own["new_run"])
    print_summary(paths, summary)
    raise typer.Exit(summary.exit_code)


def check(config: AnyConfig) -> NoReturn:
    """`embed --check`: say whether the embeddings in --out are complete, exit with 0, or 3 where wells are named missing."""
    from phenomhpc.config import EmbedConfig
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.embed import check_embeddings
    from phenomhpc.progress import console

    assert isinstance(config, EmbedConfig)
    if config.out is None:
        raise UsageError("embed: --check: say where they lie with --out EMB (of a run without --out: RUN/embeddings)")
    summary = check_embeddings(config, console())
    print(summary.text)
    for thing, reason in summary.set_aside:
        print(f"missing: {thing}: {reason}")
    raise typer.Exit(summary.exit_code)


def register(app: typer.Typer) -> None:
    """Add one verb per job, but those that lie elsewhere."""
    for kind in JOB_FLAGS:
        if kind not in BELOW_STORE:
            app.command(kind, help=JOB_HELP[kind])(job_command(kind, (*HERE_FLAGS, *CHECK_FLAGS.get(kind, ())), run))
