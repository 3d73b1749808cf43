"""phenomhpc config show: the resolved recipe of a job, and where each value came from."""

from __future__ import annotations

from typing import Annotated

import typer

from phenomhpc.cli.output import print_json, print_table

app = typer.Typer(help="Look at settings.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at settings."""


@app.command("show")
def show(
    job: Annotated[str, typer.Argument(help="convert, rechunk, pretrain, embed, evaluate or pipeline.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the recipe's.", show_default=False),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Another recipe: a name in jobs/ or a YAML file.")] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Name the source of each value.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the resolved recipe of JOB."""
    from phenomhpc.config import JOBS, dump, resolve
    from phenomhpc.config.overrides import flatten
    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.base import Table

    if job not in JOBS:
        raise UsageError(f"job {job}: no such job; there are {', '.join(JOBS)}")
    resolved = resolve(job, {}, overrides or [], recipe=recipe)
    values = resolved.config.model_dump(mode="json")
    if as_json:
        print_json({"kind": job, **values, **({"origins": dict(resolved.origins)} if origin else {})})
    elif origin:
        flat = flatten(values)
        rows = tuple((key, str(flat.get(key)), source) for key, source in resolved.origins.items())
        print_table(Table(title=f"{job}: settings and their sources", columns=("key", "value", "source"), rows=rows))
    else:
        print(dump(resolved.config), end="")
