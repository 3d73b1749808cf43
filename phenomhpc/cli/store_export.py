"""phenomhpc store export-hcs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.output import MAX_SET_ASIDE_SHOWN, print_json, print_table


def export_hcs(
    store: Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder that gets PLATE.zarr of each plate.", show_default=False)],
    plate: Annotated[
        list[str] | None, typer.Option(help="Only this plate, as often as needed.", show_default=False)
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(help="Levels of the pyramids; default: down to one chunk.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: one per core.", min=1, show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write plates as OME-Zarr 0.5; run again after a kill, or when the store has grown, it writes what is missing."""
    from dataclasses import asdict

    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.export_hcs import export_hcs as export_plates
    from phenomhpc.progress import console
    from phenomhpc.store import open_store

    done = export_plates(open_store(store), to, console(), plates=plate or (), levels=levels, workers=workers)
    if as_json:
        print_json(asdict(done))
        return
    if done.left_out:
        shown = done.left_out[:MAX_SET_ASIDE_SHOWN]
        print_table(
            Table(title=f"{len(done.left_out)} left out, as the store has them", columns=("what", "why"), rows=shown)
        )
        print(f"{to}/PLATE.left_out.csv has all of them")
    if done.split:
        print(
            f"{len(done.split)} site(s) lack a timepoint or z plane, so each of their planes is an image (first: {done.split[0]})"
        )
    if done.empty:
        print(f"{len(done.empty)} plate(s) have no usable field (first: {done.empty[0]})")
    print(f"{done.fields} fields of {len(done.plates)} plate(s) are in {to}, {done.written} written now")
