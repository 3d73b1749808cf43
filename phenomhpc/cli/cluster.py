"""phenomhpc cluster drift | gpfs: every node against the lock, and against the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from phenomhpc.cli.node_fingerprint import AsJson, Site, show
from phenomhpc.cli.output import print_json

T = TypeVar("T")
app = typer.Typer(help="The cluster as a whole.", no_args_is_help=True)


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


@app.command()
def gpfs(
    site: Site = None,
    config: Annotated[
        Path | None, typer.Option(help="What `mmlsconfig -Y` printed; - for stdin.", show_default=False)
    ] = None,
    states: Annotated[Path | None, typer.Option(help="What `mmgetstate -a -Y` printed.", show_default=False)] = None,
    health: Annotated[
        Path | None, typer.Option(help="What `mmhealth node show -N all -Y` printed.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare Storage Scale with the lock, from what its commands printed.  Exit code 0: as the lock says, 1: not."""
    from dataclasses import asdict

    from phenomhpc.errors import WORK_FAILED, UsageError
    from phenomhpc.nodes import gpfs as scale
    from phenomhpc.nodes.hostlist import expand
    from phenomhpc.nodes.lock_file import find_lock

    lock = find_lock(site)
    if lock is None or lock.gpfs is None:
        raise UsageError("cluster gpfs: there is no lock with a part gpfs; give one with --site")
    if config is None and states is None and health is None:
        raise UsageError("cluster gpfs: give --config, --states or --health: what the mm commands printed")
    differences = (
        scale.compare_config(_parsed(config, scale.parse_config), scale.wanted_config(lock.gpfs)) if config else ()
    )
    clients = [node for kind in lock.slurm.node_types for node in expand(kind.nodes)]
    down = scale.not_active(_parsed(states, scale.parse_states), clients) if states else {}
    sick = scale.unwell(_parsed(health, scale.parse_health)) if health else ()
    commands = [" ".join(words) for words in scale.change_commands(differences)]
    if as_json:
        told = [asdict(each) for each in differences]
        print_json({"differences": told, "commands": commands, "not_active": down, "unwell": sick})
    else:
        for line in (
            *map(str, differences),
            *(f"{node} is {state}, not active" for node, state in down.items()),
            *sick,
        ):
            print(line)
        print(
            "\n".join(f"on {lock.gpfs.delegate or lock.slurm.controller}: {each}" for each in commands)
            or "nothing to change"
        )
    if differences or down or sick:
        raise typer.Exit(WORK_FAILED)


def _parsed(path: Path, parse: Callable[[str], T]) -> T:
    import sys

    from phenomhpc.errors import UsageError

    try:
        return parse(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: not readable ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
