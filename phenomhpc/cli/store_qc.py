"""phenomhpc store qc: the quality of a screen as a page to look at, or as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def qc(
    store: Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File of the page; default STORE/qc.html, with --plate STORE/qc-selected.html.", show_default=False
        ),
    ] = None,
    plates: Annotated[
        list[str] | None, typer.Option("--plate", help="Only this plate, as often as needed.", show_default=False)
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Fixed limits, as data.where takes them; default: focus > 0.2 and saturated < 0.01.",
            show_default=False,
        ),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="Digest of a snapshot; default the newest.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every well's figures as JSON; a page only with --out.")
    ] = False,
) -> None:
    """Plate heatmaps, montages, and what lies apart, on one page; exit code 3 when pixels could not be read.

    The page lies in the store unless told otherwise: it is about that store, is found there by whoever opens it next, and
    goes with it when the store is copied; it is in no checksum, so that making it anew is no damage.
    """
    import sys
    from datetime import datetime

    from phenomhpc.cli.output import print_json
    from phenomhpc.errors import SET_ASIDE
    from phenomhpc.jobs.quality import build_page, figures, look_at
    from phenomhpc.progress import console
    from phenomhpc.runs import commit
    from phenomhpc.store import Snapshot, open_store

    opened = open_store(store)
    found = Snapshot.open(opened, snapshot)
    quality = look_at(found, plates or [], where, console())
    if as_json:
        print_json(figures(found, quality))
        if out is None:
            return
    page = build_page(found, quality, f"{datetime.now():%Y-%m-%d %H:%M}", console())
    path = out or opened.paths.quality_page(selected=bool(plates))
    commit(path, page.html)
    say = sys.stderr if as_json else sys.stdout
    if not quality.measures:
        print(
            "no measures of quality in this store: convert it again with qc=true; the page has montages only", file=say
        )
    for line in page.unreadable[:5]:
        print(line, file=say)
    if len(page.unreadable) > 5:
        print(f"... and {len(page.unreadable) - 5} more wells", file=say)
    flagged = sum(len(plate.flagged_wells) for plate in quality.plates)
    size = len(page.html) / 2**20
    print(
        f"{len(quality.plates)} plate(s), {flagged} wells flagged; {page.shown} plate(s) in full, {size:.1f} MiB",
        file=say,
    )
    print(f"wrote {path}", file=say)
    if page.unreadable:
        raise typer.Exit(SET_ASIDE)
