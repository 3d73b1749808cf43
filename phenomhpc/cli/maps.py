"""phenomhpc maps query | compare."""

from __future__ import annotations

from typing import Annotated

import typer

from phenomhpc.cli.complete import complete_run
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.runs import runs_folder

app = typer.Typer(help="Ask a map for neighbours, or compare two maps.", no_args_is_help=True)
RunsFolder = Annotated[str | None, typer.Option("--runs", help="Folder of the run directories.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_MAP_HELP = "A run of evaluate (its ID, the beginning of one, `last`), or a folder with a map.parquet."


@app.command()
def query(
    label: Annotated[str, typer.Argument(metavar="GENE", help="A perturbation of the map.", show_default=False)],
    map_: Annotated[str, typer.Option("--map", help=_MAP_HELP, autocompletion=complete_run)] = "last",
    top: Annotated[int, typer.Option(help="Neighbours on either side.", min=1)] = 20,
    folder: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """The perturbations most alike and most opposite to one, known relationships marked."""
    from dataclasses import asdict

    from phenomhpc.jobs.map_files import neighbour_table, open_map
    from phenomhpc.jobs.map_files import query as ask

    found = open_map(map_, runs_folder(folder))
    near, far = ask(found, label, top)
    if as_json:
        print_json(
            {
                "map": found.name,
                "label": label,
                "alike": [asdict(one) for one in near],
                "opposite": [asdict(one) for one in far],
            }
        )
    else:
        print_table(neighbour_table(found, label, (near, far)))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=_MAP_HELP, show_default=False, autocompletion=complete_run)],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another one.", show_default=False, autocompletion=complete_run)
    ],
    bootstrap: Annotated[int, typer.Option(help="Bootstrap draws of the intervals; 0 for none.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Their key.", min=0)] = 0,
    folder: RunsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Recall of two maps side by side, with paired intervals of the difference (B less A)."""
    from dataclasses import asdict

    from phenomhpc.jobs.map_files import compare as compared
    from phenomhpc.jobs.map_files import comparison_table, open_map

    runs = runs_folder(folder)
    found = compared(open_map(first, runs), open_map(second, runs), bootstrap=bootstrap, seed=seed)
    if as_json:
        print_json(asdict(found))
    else:
        print_table(comparison_table(found))
