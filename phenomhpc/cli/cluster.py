"""phenomhpc cluster drift: every node against the lock, and against the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phenomhpc.cli.node_fingerprint import AsJson, Site, show

app = typer.Typer(help="The cluster as a whole.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def drift(
    site: Site = None,
    nodes: Annotated[
        str | None, typer.Option(help="Slurm's host list of the nodes to ask; default: the lock's.", show_default=False)
    ] = None,
    reach: Annotated[
        str | None,
        typer.Option(
            help="Command that runs a program on {host}, such as 'ssh {host} sudo -n'; default: the lock's drift.reach, else ssh.",
            show_default=False,
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of fingerprints (HOST.json) instead of asking.", show_default=False),
    ] = None,
    limit_s: Annotated[float, typer.Option("--limit", help="Time limit for each node, seconds.", min=1)] = 30,
    as_json: AsJson = False,
) -> None:
    """Report drift: managed, unmanaged, divergent.  Only reads.  Exit code 0: clean, 1: drift, 4: could not tell."""
    from phenomhpc.errors import UsageError
    from phenomhpc.nodes.drift import find_drift
    from phenomhpc.nodes.fingerprint import DEFAULT_REACH, gather, read_fingerprints
    from phenomhpc.nodes.hostlist import expand
    from phenomhpc.nodes.lock_file import find_lock, site_json

    lock = find_lock(site)
    try:
        hosts = list(expand(nodes)) if nodes else list(lock.classes()) if lock is not None else []
    except ValueError as error:
        raise UsageError(f"--nodes: {error}") from None
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"--from={given}: is no folder")
        found = read_fingerprints(sorted(given.glob("*.json")))
        unreached = {host: "no fingerprint among the files" for host in hosts if host not in found}
        if nodes:
            found = {host: seen for host, seen in found.items() if host in hosts}
    elif not hosts:
        raise UsageError("cluster drift: whom to ask is missing: give --nodes, --site or --from")
    else:
        command = reach or (lock.drift.reach if lock is not None else "") or DEFAULT_REACH
        found, unreached = gather(
            hosts, reach=command, site=site_json(lock) if lock is not None else None, limit_s=limit_s
        )
    show(find_drift(found, lock, unreached), as_json)
