"""phenomhpc scaling RUN...: recall and loss against training FLOP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.runs import runs_folder


def scaling(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs of evaluate, or of pretrain (loss alone); three at least.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the page, the picture and the numbers; made if absent.")] = Path(
        "scaling"
    ),
    flop: Annotated[
        float | None,
        typer.Option(
            help="Training FLOP to foretell; default: the next model size on as many crops.", show_default=False
        ),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit recall and loss against training FLOP over runs, draw them, and foretell the next size."""
    from phenomhpc.jobs.scaling import as_json as numbers
    from phenomhpc.jobs.scaling import scaling_of, tables_of, write_scaling

    found = scaling_of(runs, runs_folder(folder), flop)
    page = write_scaling(found, out)
    if as_json:
        print_json({**numbers(found), "page": str(page)})
        return
    for table in tables_of(found):
        print_table(table)
    for reason in found.left_out.values():
        print(reason)
    print(f"page: {page}")
