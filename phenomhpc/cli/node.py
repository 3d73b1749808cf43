"""phenomhpc node check | excluded list, clear, add; node_fingerprint.py has the other verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from phenomhpc.cli import node_fingerprint
from phenomhpc.cli.output import print_json, print_table
from phenomhpc.cli.runs import runs_folder

app = typer.Typer(help="Look at this node; nodes that your runs are kept away from.", no_args_is_help=True)
excluded = typer.Typer(help="The exclusion ledger: nodes found sick or slow.", no_args_is_help=True)
app.add_typer(excluded, name="excluded")
node_fingerprint.register(app)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Nodes = Annotated[list[str], typer.Argument(metavar="NODE...", help="Names as Slurm has them.", show_default=False)]
ClusterName = Annotated[
    str | None, typer.Option(help="Name of the Slurm cluster; default: this one's.", show_default=False)
]
Everybody = Annotated[bool, typer.Option("--everybody", help="In the administrators' file, which binds all users.")]
DEFAULT_HOURS = 24.0


@app.command()
def check(
    store: Annotated[
        list[str] | None, typer.Option(help="A store that must be readable; may be repeated.", show_default=False)
    ] = None,
    runs: Annotated[
        str | None, typer.Option(help="Folder of the runs, which must be writable.", show_default=False)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus-per-node", help="GPUs that must be here; default: those seen.")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            help="Check nothing here: write the program that slurmd runs as HealthCheckProgram, made from the lock.",
            show_default=False,
        ),
    ] = None,
    site: node_fingerprint.Site = None,
    as_json: AsJson = False,
) -> None:
    """What the gate looks at before training, on this machine; exit code 1 when it would be refused."""
    from dataclasses import asdict

    if write is not None:
        _write_check(write, site)
        return

    from phenomhpc.errors import WORK_FAILED
    from phenomhpc.jobs.base import Table
    from phenomhpc.jobs.gate import check_here

    facts, problems = check_here(runs_folder(runs), [Path(each) for each in store or ()], gpus)
    if as_json:
        print_json({"fit": not problems, "problems": problems, "facts": asdict(facts)})
    else:
        rows: list[tuple[Any, ...]] = [("CPUs", facts.cpus), ("memory", f"{facts.mem_mb} MiB")]
        rows += [(each.path, _folder_words(each.words, each.free_mb, each.seconds)) for each in facts.folders]
        rows.append(("GPUs", facts.gpu_words or ("no nvidia-smi here" if facts.gpus is None else len(facts.gpus))))
        rows += [
            (f"GPU {gpu.index}", f"{gpu.uuid}, {gpu.memory_used_mb or 0:g} MiB in use") for gpu in facts.gpus or ()
        ]
        print_table(Table(title=facts.hostname, columns=("what", "found"), rows=tuple(rows)))
        print("\n".join(f"not fit: {words}" for words in problems) or "fit")
    if problems:
        raise typer.Exit(WORK_FAILED)


def _write_check(path: Path, site: Path | None) -> None:
    from phenomhpc.commit import commit
    from phenomhpc.errors import UsageError
    from phenomhpc.nodes.check_program import check_program
    from phenomhpc.nodes.lock_file import find_lock, site_path

    lock = find_lock(site)
    if lock is None:
        raise UsageError(f"node check --write: there is no {site_path()}; give the lock with --site")
    commit(path, check_program(lock).encode())
    path.chmod(0o755)
    print(f"{path}: the node check of {lock.name}; set HealthCheckProgram to it, installed as root's own on every node")


def _folder_words(words: str | None, free_mb: float | None, seconds: float) -> str:
    return words or f"usable, {(free_mb or 0) / 1024:.1f} GiB free, {seconds:.2f} s"


@excluded.command("list")
def list_excluded(
    cluster: ClusterName = None,
    as_json: AsJson = False,
) -> None:
    """Nodes excluded now, with the reason, what was seen, and the end."""
    import sys
    from dataclasses import asdict
    from datetime import UTC, datetime

    from phenomhpc.jobs.base import Table
    from phenomhpc.nodes.exclusions import active, read_ledger

    ledger = read_ledger()
    for line in ledger.problems:
        print(f"phenomhpc: {line}", file=sys.stderr)
    names = sorted({entry.cluster for entry in ledger.entries} if cluster is None else {cluster})
    entries = [entry for name in names for entry in active(ledger.entries, name, datetime.now(UTC))]
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        print("no node is excluded")
        return
    rows = tuple(
        (
            entry.cluster,
            entry.node,
            (entry.until or "cleared")[:16].replace("T", " "),
            "everybody" if entry.binding else "you",
            entry.reason,
            _seen(entry.evidence),
        )
        for entry in entries
    )
    columns = ("cluster", "node", "until (UTC)", "binds", "reason", "seen in")
    print_table(Table(title="Excluded nodes", columns=columns, rows=rows))


def _seen(evidence: Any) -> str:
    """The run, attempt and job of an entry, as far as they are told."""
    words = [Path(str(evidence["run"])).name] if "run" in evidence else []
    words += [f"{name} {evidence[name]}" for name in ("attempt", "job") if evidence.get(name) is not None]
    return ", ".join(words) or "-"


@excluded.command()
def clear(
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="NODE...", help="Nodes to use again.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All nodes of the cluster.")] = False,
    cluster: ClusterName = None,
    everybody: Everybody = False,
) -> None:
    """Use nodes again."""
    from phenomhpc.errors import UsageError
    from phenomhpc.nodes import exclusions

    if bool(nodes) == every:
        raise UsageError("node excluded clear: name nodes, or give --all")
    name = _cluster(cluster)
    path = exclusions.site_ledger() if everybody else exclusions.user_ledger()
    gone = exclusions.clear(cluster=name, nodes=None if every else nodes, path=path)
    if gone:
        print(f"may be used again on {name}: {', '.join(gone)}")
    left = sorted(set(nodes or ()) - set(gone))
    if left:
        raise UsageError(
            f"{', '.join(left)}: not in {path} for cluster {name}; `phenomhpc node excluded list` shows all"
        )


@excluded.command()
def add(
    nodes: Nodes,
    reason: Annotated[str, typer.Option(help="Why, in words.", show_default=False)],
    hours: Annotated[float, typer.Option(help="For how long.", min=0.01)] = DEFAULT_HOURS,
    until_cleared: Annotated[bool, typer.Option("--until-cleared", help="Without an end.")] = False,
    cluster: ClusterName = None,
    everybody: Everybody = False,
) -> None:
    """Keep your runs (or everybody's) away from nodes."""
    from phenomhpc.nodes import exclusions

    name = _cluster(cluster)
    path = exclusions.site_ledger() if everybody else exclusions.user_ledger()
    for node in nodes:
        entry = exclusions.record(
            cluster=name,
            node=node,
            reason=reason,
            evidence={},
            hours=None if until_cleared else hours,
            by=exclusions.person(),
            path=path,
        )
        print(f"{node}: excluded on {name} until {entry.until or 'it is cleared'}")


def _cluster(given: str | None) -> str:
    """The cluster's name: as given, else asked of Slurm."""
    from phenomhpc.errors import UsageError
    from phenomhpc.slurm.facts import discover

    if given is not None:
        return given
    facts = discover()
    if facts is None:
        raise UsageError("--cluster is missing: there is no Slurm here to ask for its name")
    return facts.name
