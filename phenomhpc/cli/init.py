"""phenomhpc init: asks Slurm and the person, writes ./phenomhpc.yaml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from phenomhpc.slurm.facts import ClusterFacts


def init(
    store: Annotated[str | None, typer.Option(help="The Zarr store.", show_default=False)] = None,
    runs: Annotated[str | None, typer.Option(help="Folder of the run directories.", show_default=False)] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm partition.", show_default=False)] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account.", show_default=False)] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs per node.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Take what was found; ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing phenomhpc.yaml.")] = False,
) -> None:
    """Write ./phenomhpc.yaml: store, runs, and what to ask of Slurm."""
    from phenomhpc.config.defaults import PROJECT_FILE
    from phenomhpc.errors import UnreachableError, UsageError
    from phenomhpc.runs import commit
    from phenomhpc.slurm.facts import discover

    path = Path.cwd() / PROJECT_FILE
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; edit it, or replace it with --force")
    try:
        facts = discover()
    except UnreachableError as error:
        print(f"{error}; going on without it", file=sys.stderr)
        facts = None
    found = facts.partition(partition) if facts else None
    if facts and partition and found is None:
        names = ", ".join(entry.name for entry in facts.partitions)
        raise UsageError(f"--partition {partition}: {facts.name} has {names}")
    _tell(facts)
    ask = not yes and sys.stdin.isatty()
    values: dict[str, str | int | None] = {
        "store": _answer(ask and store is None, "store (folder)", store or str(Path.cwd() / "store")),
        "runs": _answer(ask and runs is None, "runs (folder)", runs or str(Path.cwd() / "runs")),
    }
    if facts:
        values["partition"] = _answer(
            ask and partition is None, "partition", partition or (found.name if found else "")
        )
        values["account"] = _answer(ask and account is None, "account (empty: none)", account or "")
        gpus = gpus_per_node if gpus_per_node is not None else (found.gpus_per_node if found else 0)
        values["gpus_per_node"] = int(_answer(ask and gpus_per_node is None, "GPUs per node", str(gpus)))
    elif partition or account or gpus_per_node is not None:
        values |= {"partition": partition, "account": account, "gpus_per_node": gpus_per_node}
    commit(path, _text({name: value for name, value in values.items() if value not in (None, "")}))
    print(f"wrote {path}")


def _answer(ask: bool, what: str, default: str) -> str:
    return str(typer.prompt(what, default=default, show_default=bool(default))) if ask else default


def _tell(facts: ClusterFacts | None) -> None:
    if facts is None:
        print("no Slurm on this machine: jobs run here")
        return
    print(f"Slurm {facts.version}, cluster {facts.name}:")
    for partition in facts.partitions:
        limit = "no limit" if partition.max_time_minutes is None else f"{partition.max_time_minutes / 60:g} h"
        default = ", default" if partition.is_default else ""
        gpus = f"{partition.gpus_per_node} GPUs"
        print(
            f"  {partition.name}: {partition.num_nodes} nodes, {gpus}, {partition.cpus_per_node} CPUs, {limit}{default}"
        )


def _text(values: dict[str, str | int | None]) -> str:
    import yaml

    head = "# Defaults of this folder; phenomhpc config show JOB --origin tells what comes from where.\n"
    return head + yaml.safe_dump(values, sort_keys=False)
