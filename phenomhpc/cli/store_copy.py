"""phenomhpc store rechunk | cache: the same pixels in other bytes, or on a disk of this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phenomhpc.cli.job_flags import BELOW_STORE, HERE_FLAGS, JOB_HELP, job_command
from phenomhpc.cli.jobs import run
from phenomhpc.cli.output import print_json

if TYPE_CHECKING:
    from phenomhpc.store.cache import CacheState

GIGABYTE = 1e9


def register(app: typer.Typer) -> None:
    """Add both verbs to `phenomhpc store`."""
    for kind in BELOW_STORE:
        app.command(kind, help=JOB_HELP[kind])(job_command(kind, HERE_FLAGS, run))
    app.command()(cache)


def cache(
    store: Annotated[Path, typer.Argument(help="Folder of the store.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder of the cache, on a disk of this node.", show_default=False)],
    snapshot: Annotated[
        str | None, typer.Option(help="Digest of the snapshot; default the newest.", show_default=False)
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Most that is cached, GB; default: what fits.", show_default=False)
    ] = None,
    reserve_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Left free on the disk, GB; default: a twentieth of it.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that copy, at the lowest priority.")] = 1,
    status: Annotated[bool, typer.Option("--status", help="Say how full it is; fill nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Keep uncompressed shards on a disk of this node, whole ones, as many as fit; usable while it fills."""
    from dataclasses import asdict

    from phenomhpc.errors import WORK_FAILED
    from phenomhpc.progress import console
    from phenomhpc.store import Snapshot, open_store
    from phenomhpc.store.cache import state_of
    from phenomhpc.store.fill import fill

    opened = Snapshot.open(open_store(store), snapshot)
    if status:
        state = state_of(opened, to)
    else:
        state = fill(
            opened,
            to,
            max_bytes=None if max_gb is None else round(max_gb * GIGABYTE),
            reserve_bytes=None if reserve_gb is None else round(reserve_gb * GIGABYTE),
            workers=workers,
            wait=True,
            progress=console(),
        )
    if as_json:
        print_json({**asdict(state), "hit_rate": state.hit_rate})
    else:
        print(_words(state, to))
    if state.skipped:
        raise typer.Exit(WORK_FAILED)


def _words(state: CacheState, folder: Path) -> str:
    held = f"{state.shards_held} of {state.num_shards} shards, {state.fields_held} of {state.num_fields} fields"
    size = f"{state.bytes_held / GIGABYTE:.3g} of {state.bytes_all / GIGABYTE:.3g} GB"
    now = f"; {state.filler} fills it" if state.filler else ""
    first = f"; {len(state.skipped)} not cached (first: {': '.join(state.skipped[0])})" if state.skipped else ""
    return f"{folder}: {held}, {size}; expected hit rate {state.hit_rate:.1%}{now}{first}"
