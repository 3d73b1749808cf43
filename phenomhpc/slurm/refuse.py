"""What a cluster would refuse, found before anything is queued.  Pure, but for `ask_sbatch`, which asks sbatch itself."""

from __future__ import annotations

import difflib
import grp
import os
from collections.abc import Iterator

from phenomhpc.config import ClusterConfig
from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.facts import ClusterFacts, Partition
from phenomhpc.slurm.programs import LimitReachedError, refusal, try_program


def problems_of(cluster: ClusterConfig, num_nodes: int, facts: ClusterFacts) -> list[str]:
    """Everything that this cluster cannot give, one line each: the thing, the value, what there is."""
    partition = facts.partition(cluster.partition)
    found = [*_of_account(cluster, facts), *_of_qos(cluster, facts)]
    names = [entry.name for entry in facts.partitions]
    if partition is None and cluster.partition is None:
        found.append(f"--partition is missing: {facts.name} has no default partition; choose one of {', '.join(names)}")
    elif partition is None:
        found.append(f"--partition {cluster.partition}: {facts.name} has {_among(cluster.partition or '', names)}")
        found += _of_size(cluster, num_nodes, _largest(facts))
    else:
        found += [*_of_policy(cluster, facts, partition), *_of_size(cluster, num_nodes, partition)]
    return found


def _among(given: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, known, 1, 0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{', '.join(known) or 'none'}{hint}"


def _of_account(cluster: ClusterConfig, facts: ClusterFacts) -> Iterator[str]:
    if cluster.account is not None and facts.accounts is not None and cluster.account not in facts.accounts:
        yield f"--account {cluster.account}: you may use {_among(cluster.account, facts.accounts)}"


def _of_qos(cluster: ClusterConfig, facts: ClusterFacts) -> Iterator[str]:
    known = facts.accounting.qos if facts.accounting else ()
    if cluster.qos is None or facts.accounting is None or not known:
        return
    mine = facts.accounting.qos_of(cluster.account)
    if cluster.qos not in known:
        yield f"--qos {cluster.qos}: {facts.name} has {_among(cluster.qos, known)}"
    elif mine and cluster.qos not in mine:
        yield f"--qos {cluster.qos}: you may use {_among(cluster.qos, mine)}"


def _of_policy(cluster: ClusterConfig, facts: ClusterFacts, partition: Partition) -> Iterator[str]:
    """Who may use a partition, and whether it takes jobs at all."""
    where = f"partition {partition.name}"
    if partition.state in {"DRAIN", "INACTIVE"}:
        yield f"--partition {partition.name}: its state is {partition.state}, it takes no jobs; choose another"
    account = cluster.account or (facts.accounting.default_account if facts.accounting else None)
    for flag, value, allowed, denied in (
        ("--account", account, partition.allow_accounts, partition.deny_accounts),
        ("--qos", cluster.qos, partition.allow_qos, partition.deny_qos),
    ):
        if value is not None and allowed is not None and value not in allowed:
            yield f"{flag} {value}: {where} allows {_among(value, allowed)}"
        if value is not None and value in denied:
            yield f"{flag} {value}: {where} denies it; choose another, or another partition"
    if partition.allow_groups is not None and os.getuid() and not set(partition.allow_groups) & own_groups():
        yield f"--partition {partition.name}: only for the groups {', '.join(partition.allow_groups)}; choose another"


def own_groups() -> set[str]:
    """Names of the groups that this process is in."""
    names = set()
    for number in {os.getgid(), *os.getgroups()}:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def _largest(facts: ClusterFacts) -> Partition:
    """What no partition exceeds: with the partition mistyped, the other settings are still measured against something."""
    limits = [entry.max_time_minutes for entry in facts.partitions]
    return Partition(
        name="",
        num_nodes=max((entry.num_nodes for entry in facts.partitions), default=0),
        is_default=False,
        max_time_minutes=None if None in limits else max((limit for limit in limits if limit), default=None),
        gpus_per_node=max((entry.gpus_per_node for entry in facts.partitions), default=0),
        cpus_per_node=max((entry.cpus_per_node for entry in facts.partitions), default=0),
        mem_mb_per_node=max((entry.mem_mb_per_node for entry in facts.partitions), default=0),
    )


def _of_size(cluster: ClusterConfig, num_nodes: int, partition: Partition) -> Iterator[str]:
    where = f"partition {partition.name} has" if partition.name else "the largest partition has"
    limit = partition.max_time_minutes
    for flag, asked, most, unit in (
        ("--nodes", num_nodes, partition.num_nodes, "node(s)"),
        ("--nodes", num_nodes, partition.max_nodes, "node(s) per job at most"),
        ("--gpus-per-node", cluster.gpus_per_node or 0, partition.gpus_per_node, "GPU(s) per node"),
        ("cluster.cpus_per_task", cluster.cpus_per_task or 1, partition.cpus_per_node, "CPUs per node"),
        ("cluster.mem_mb", cluster.mem_mb or 0, partition.mem_mb_per_node, "MiB per node"),
        ("--time (minutes)", cluster.time_minutes or 0, limit, "minutes at most"),
    ):
        if most is not None and asked > most:
            yield f"{flag} {asked}: {where} {most} {unit}"
    if num_nodes < partition.min_nodes:
        yield f"--nodes {num_nodes}: {where} {partition.min_nodes} node(s) per job at least"


def ask_sbatch(run_id: str, script: str) -> str | None:
    """What sbatch would say against a script, in one line; None when it would take it, or only the queue is full just now.

    Raises UnreachableError when the controller does not answer.  Slurm spends a job id on it.
    """
    code, words = try_program(["sbatch", "--test-only"], stdin=script)
    if code == 0:
        return None
    error = refusal(run_id, words.replace("allocation failure: ", ""))
    if isinstance(error, UnreachableError):
        raise error
    if isinstance(error, LimitReachedError):
        return None
    return str(error).removeprefix(f"run {run_id}: ")
