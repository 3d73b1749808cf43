"""What the cluster is: partitions and limits, asked of Slurm once per command."""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, has_slurm, run_program

SINFO_FORMAT = "%R|%D|%l|%L|%G|%c|%m|%P"


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition; time limits None: unlimited; gpus_per_node 0 where its nodes have none.

    default_time_minutes is what a job gets that asks for no limit.
    """

    name: str
    num_nodes: int
    is_default: bool
    max_time_minutes: int | None
    gpus_per_node: int
    cpus_per_node: int
    mem_mb_per_node: int
    default_time_minutes: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """What submissions are planned against.  accounts: those the person may use; None where any is accepted."""

    name: str
    version: str
    partitions: tuple[Partition, ...]
    max_array_size: int
    accounts: tuple[str, ...] | None = None

    @property
    def default_partition(self) -> Partition | None:
        """Slurm's default partition, or the only one."""
        for partition in self.partitions:
            if partition.is_default:
                return partition
        return self.partitions[0] if len(self.partitions) == 1 else None

    def partition(self, name: str | None) -> Partition | None:
        """The partition of this name; the default for None."""
        if name is None:
            return self.default_partition
        return next((partition for partition in self.partitions if partition.name == name), None)


def parse_time_limit(text: str) -> int | None:
    """Slurm's `infinite`, `2-00:00:00`, `30:00` in minutes, rounded up; None for no limit."""
    if text.strip().lower() in {"infinite", "unlimited", "n/a", "none", ""}:
        return None
    days, _, clock = text.strip().rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0, 0, 0, *parts][-3:] if not days else [*parts, 0, 0, 0][:3]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return -(-total // 60)


def parse_gpus(gres: str) -> int:
    """GPUs in a node's gres text: `gpu:8`, `gpu:a100:8(S:0-1)`, `(null)`."""
    return sum(int(match[1]) for match in re.finditer(r"gpu(?::[A-Za-z0-9_.-]+)??:(\d+)", gres))


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Partitions from `sinfo -h -o SINFO_FORMAT`, one line per kind of node; kinds of one partition are merged."""
    merged: dict[str, Partition] = {}
    for line in text.splitlines():
        name, nodes, limit, default, gres, cpus, memory, starred = (part.strip() for part in line.split("|"))
        other = merged.get(name)
        merged[name] = Partition(
            name=name,
            num_nodes=int(nodes) + (other.num_nodes if other else 0),
            is_default=starred.endswith("*"),
            max_time_minutes=parse_time_limit(limit),
            gpus_per_node=max(parse_gpus(gres), other.gpus_per_node if other else 0),
            cpus_per_node=max(int(cpus.rstrip("+")), other.cpus_per_node if other else 0),
            mem_mb_per_node=max(int(memory.rstrip("+")), other.mem_mb_per_node if other else 0),
            default_time_minutes=parse_time_limit(default),
        )
    return tuple(merged.values())


def parse_config(text: str) -> dict[str, str]:
    """`scontrol show config` as names and values."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def discover() -> ClusterFacts | None:
    """Ask Slurm; None where there is no Slurm.  Raises UnreachableError when it does not answer."""
    if not has_slurm():
        return None
    try:
        return _ask()
    except ProgramFailedError as error:
        raise UnreachableError(f"Slurm: {error}") from error


def _ask() -> ClusterFacts:
    config = parse_config(run_program(["scontrol", "show", "config"]))
    return ClusterFacts(
        name=config.get("ClusterName", "?"),
        version=config.get("SLURM_VERSION", "?"),
        partitions=parse_partitions(run_program(["sinfo", "-h", "-o", SINFO_FORMAT])),
        max_array_size=int(config.get("MaxArraySize", "1001")),
        accounts=_accounts() if "associations" in config.get("AccountingStorageEnforce", "") else None,
    )


def _accounts() -> tuple[str, ...] | None:
    """The person's accounts, where Slurm insists on them; None when accounting does not answer."""
    user = pwd.getpwuid(os.getuid()).pw_name
    argv = ["sacctmgr", "-n", "-P", "show", "associations", f"user={user}", "format=Account"]
    try:
        return tuple(sorted(set(run_program(argv).split())))
    except (ProgramFailedError, UnreachableError):
        return None
