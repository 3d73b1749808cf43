"""phenomhpc checkpoints list | gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.runs import runs_folder

app = typer.Typer(help="List and clear up the checkpoints of a run.", no_args_is_help=True)
RunName = Annotated[
    str,
    typer.Argument(
        help="The run (id or its beginning, `last`, or its folder), or a folder of checkpoints.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
RunsFolder = Annotated[str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _folder(name: str, runs: str | None) -> Path:
    """The folder of the checkpoints that `name` means.  Raises UsageError."""
    from phenomhpc.models.checkpoint import step_folders
    from phenomhpc.runs import find_run

    if step_folders(Path(name)):
        return Path(name)
    return find_run(runs_folder(runs), name).checkpoints


@app.command("list")
def list_(run: RunName, runs: RunsFolder = None, as_json: AsJson = False) -> None:
    """The checkpoints of a run, oldest first: usable or not, and why not."""
    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.checkpoints import describe

    folder = _folder(run, runs)
    rows = describe(folder)
    if as_json:
        print_json({"folder": str(folder), "checkpoints": rows})
        return
    if not rows:
        print(f"no checkpoints in {folder}")
        return
    names = sorted({name for row in rows for name in row["scores"]})
    columns = ("checkpoint", "MiB", "saved (UTC)", "ranks", *names, "left out", "state")
    cells = tuple(
        (row["name"], row["mebibytes"], row["saved"], row["ranks"], *(row["scores"].get(name) for name in names),
         row["left_out"], row["damage"] or "usable")
        for row in rows
    )  # fmt: skip
    print_table(Table(title=str(folder), columns=columns, rows=cells))


@app.command()
def gc(
    run: RunName,
    keep: Annotated[
        int | None, typer.Option(help="Newest ones to keep; default: the run's own.", min=1, show_default=False)
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(help="Keep those of every so many steps too; default: the run's own.", min=1, show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    runs: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Delete checkpoints that nothing keeps; the newest usable one always stays."""
    from phenomhpc.jobs.checkpoints import clear_up

    folder = _folder(run, runs)
    gone = clear_up(folder, keep=keep, keep_every=every, dry_run=dry_run)
    if as_json:
        print_json({"folder": str(folder), "deleted": [] if dry_run else gone, "would_delete": gone if dry_run else []})
        return
    size = sum(entry["bytes"] for entry in gone)
    for entry in gone:
        print(f"{'would delete' if dry_run else 'deleted'} {folder / entry['name']}")
    print(f"{len(gone)} checkpoint(s), {size:,} bytes{', if it were not for --dry-run' if dry_run else ''}")
