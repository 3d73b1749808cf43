"""phenomhpc store inspect | verify | seal | annotate; store_qc.py, store_copy.py and store_export.py have the other verbs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phenomhpc.cli import store_copy
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.store_export import export_hcs
from phenomhpc.cli.store_qc import qc

if TYPE_CHECKING:
    from phenomhpc.store import Store

app = typer.Typer(help="Look at a Zarr store, verify, annotate, copy and export it.", no_args_is_help=True)
store_copy.register(app)
app.command("export-hcs")(export_hcs)

StorePath = Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MEBIBYTE = 2**20


def _facts(store: Store) -> list[dict[str, Any]]:
    """One row per plate: fields, set-aside ones, size, compression."""
    import polars as pl

    from phenomhpc.store.fields import read_fields
    from phenomhpc.store.shards import read_geometry

    rows = []
    for plate in store.paths.converted_plates():
        geometry = read_geometry(store.paths, plate)
        files = [store.paths.shard(plate, shard) for shard in range(geometry.num_shards)]
        shards = [path for path in files if path.is_file()]
        stored = sum(path.stat().st_size for path in shards)
        raw = geometry.num_fields * geometry.num_channels * geometry.height * geometry.width * store.spec.itemsize
        sealed = store.paths.fields(plate).is_file()
        set_aside = read_fields(store.paths, plate).filter(pl.col("status") != "ok").height if sealed else None
        rows.append(
            {
                "plate": plate,
                "fields": geometry.num_fields,
                "set_aside": set_aside,
                "pixels": f"{geometry.height}x{geometry.width}",
                "shards": f"{len(shards)}/{geometry.num_shards}",
                "MiB": round(stored / MEBIBYTE, 1),
                "ratio": round(raw / stored, 2) if stored else None,
            }
        )
    return rows


@app.command()
def inspect(
    store: StorePath,
    picture: Annotated[
        Path | None, typer.Option(help="Write a picture of a well to this PNG.", show_default=False)
    ] = None,
    well: Annotated[
        str | None, typer.Option(help="PLATE/WELL of the picture; default the first.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a store holds; --picture shows a well."""
    from dataclasses import asdict

    from phenomhpc.errors import UsageError
    from phenomhpc.jobs.base import Table
    from phenomhpc.store import open_store
    from phenomhpc.store.origin import read_origin

    if well is not None and picture is None:
        raise UsageError(f"--well {well}: is for a picture; give --picture FILE.png too")
    opened = open_store(store)
    latest = opened.paths.latest.read_text().strip() if opened.paths.latest.is_file() else None
    rows, origin = _facts(opened), read_origin(opened.paths)
    if as_json:
        print_json({**asdict(opened.spec), "origin": origin and asdict(origin), "snapshot": latest, "plates": rows})
    else:
        spec = opened.spec
        codec = "raw" if spec.codec is None else "blosc {}, level {}, {}".format(*spec.codec)
        if origin is not None:
            print(f"a {origin.kind} of {origin.store}")
        print(f"{opened.paths.root}: {spec.dtype}, channels {', '.join(spec.channels)}")
        print(f"chunks of {spec.chunk_px}x{spec.chunk_px}, {codec}; snapshot {latest or 'none: run store seal'}")
        if rows:
            columns = tuple(rows[0])
            print_table(Table(title="Plates", columns=columns, rows=tuple(tuple(row.values()) for row in rows)))
    if picture is not None:
        from phenomhpc.jobs.well_picture import write_well_picture

        print(f"wrote {write_well_picture(opened, well, picture)}")


@app.command()
def verify(
    store: StorePath,
    sources: Annotated[bool, typer.Option(help="Check the raw files too, where they still are.")] = True,
    as_json: AsJson = False,
) -> None:
    """Recompute every checksum; exit code 1 when anything is damaged."""
    from dataclasses import asdict

    from phenomhpc.errors import WORK_FAILED
    from phenomhpc.jobs.base import Table
    from phenomhpc.progress import console
    from phenomhpc.store import open_store
    from phenomhpc.store.verify import verify as verify_store

    verdict = verify_store(open_store(store), console(), sources=sources)
    if as_json:
        print_json(asdict(verdict))
    else:
        if verdict.damage:
            rows = tuple((entry.plate, entry.thing, entry.reason) for entry in verdict.damage)
            print_table(Table(title="Damage", columns=("plate", "what", "why"), rows=rows))
        absent = f" ({verdict.absent_sources} are no longer there)" if verdict.absent_sources else ""
        print(
            f"{verdict.fields} fields and {verdict.sources} sources{absent}: {len(verdict.damage) or 'nothing'} damaged"
        )
    if verdict.damage:
        raise typer.Exit(WORK_FAILED)


@app.command()
def seal(store: StorePath) -> None:
    """Write fields tables, shard indices and a snapshot of what the store holds now."""
    from phenomhpc.progress import console
    from phenomhpc.store import open_store
    from phenomhpc.store.seal import seal as seal_store

    snapshot = seal_store(open_store(store), console())
    print(f"snapshot {snapshot.digest}: {snapshot.num_fields} fields of {len(snapshot.plates)} plate(s)")


@app.command()
def annotate(
    store: StorePath,
    metadata: Annotated[Path, typer.Option(help="CSV joined by plate and well.", show_default=False)],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="STORE_COLUMN=CSV_COLUMN, as often as needed.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join metadata that came later, or corrected ones, and make a new snapshot; no pixel is touched."""
    from dataclasses import asdict

    from phenomhpc.errors import UsageError
    from phenomhpc.progress import console
    from phenomhpc.store import open_store
    from phenomhpc.store.annotate import annotate as annotate_store
    from phenomhpc.store.annotate import words_of

    mapped = {}
    for text in columns or []:
        name, equals, column = text.partition("=")
        if not equals:
            raise UsageError(f"--column {text}: is no STORE_COLUMN=CSV_COLUMN")
        mapped[name] = column
    opened = open_store(store)
    done = annotate_store(opened, metadata, console(), columns=mapped, dry_run=dry_run)
    if as_json:
        print_json(asdict(done))
        return
    first = next(iter((*done.changed, *done.gained)), None)
    shown = f" (first: {' '.join(first)})" if first else ""
    print(
        f"{len(done.gained)} well(s) gained metadata, {len(done.changed)} changed{shown}, {done.same} are as they were",
        end="",
    )
    print(words_of(done.left, metadata, opened.paths))
    print(f"snapshot {done.snapshot}" if done.snapshot else "nothing was written")


app.command()(qc)
