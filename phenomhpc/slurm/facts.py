"""What the cluster is: partitions and limits, asked of Slurm once per command."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.accounts import Accounting, query_accounting
from phenomhpc.slurm.programs import ProgramFailedError, has_slurm, run_program

# What Slurm calls the quality of service of whoever has no other.
DEFAULT_QOS = "normal"
SINFO_FORMAT = "%R|%D|%l|%L|%G|%c|%m|%P"


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition; time limits None: unlimited; gpus_per_node 0 where its nodes have none.

    default_time_minutes is what a job gets that asks for no limit.  The names in allow_* and deny_* are as the administrator
    gave them; allow_* None: everybody.
    """

    name: str
    num_nodes: int
    is_default: bool
    max_time_minutes: int | None
    gpus_per_node: int
    cpus_per_node: int
    mem_mb_per_node: int
    default_time_minutes: int | None = None
    state: str = "UP"
    min_nodes: int = 0
    max_nodes: int | None = None
    allow_accounts: tuple[str, ...] | None = None
    deny_accounts: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] | None = None
    deny_qos: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] | None = None
    qos: str | None = None


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How many jobs a person may have in the queue: by account, and by quality of service; names without a limit are absent."""

    accounts: Mapping[str, int] = field(default_factory=dict)
    qos: Mapping[str, int] = field(default_factory=dict)
    default_account: str = ""

    def max_submit_jobs(self, account: str | None, qos: str | None) -> int | None:
        """The least of those that bind a job; None: none does."""
        found = (self.accounts.get(account or self.default_account), self.qos.get(qos or DEFAULT_QOS))
        return min((limit for limit in found if limit is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """What submissions are planned against.  accounting: None where any account is accepted, or where it does not answer.

    max_job_count: of the controller's table, everybody's jobs together.
    """

    name: str
    version: str
    partitions: tuple[Partition, ...]
    max_array_size: int
    max_job_count: int | None = None
    queue_limits: QueueLimits = QueueLimits()
    accounting: Accounting | None = None

    @property
    def accounts(self) -> tuple[str, ...] | None:
        """The accounts that the person may use; None: nothing is known against any."""
        return self.accounting.accounts if self.accounting else None

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


def with_policies(partitions: tuple[Partition, ...], text: str) -> tuple[Partition, ...]:
    """The partitions with what `scontrol show partition -o` says of who may use them, and how."""
    said = {}
    for line in text.splitlines():
        pairs = dict(word.split("=", 1) for word in line.split() if "=" in word)
        said[pairs.get("PartitionName", "")] = pairs
    return tuple(replace(entry, **_policies(said.get(entry.name, {}))) for entry in partitions)


def _policies(pairs: dict[str, str]) -> dict[str, Any]:
    """Fields of Partition; of keys that this Slurm does not print, the defaults."""
    return {
        "state": pairs.get("State", "UP"),
        "min_nodes": _number(pairs.get("MinNodes", "")) or 0,
        "max_nodes": _number(pairs.get("MaxNodes", "")),
        "allow_accounts": _names(pairs.get("AllowAccounts", "ALL")),
        "deny_accounts": _names(pairs.get("DenyAccounts", "")) or (),
        "allow_qos": _names(pairs.get("AllowQos", "ALL")),
        "deny_qos": _names(pairs.get("DenyQos", "")) or (),
        "allow_groups": _names(pairs.get("AllowGroups", "ALL")),
        "qos": None if pairs.get("QoS", "N/A") in {"N/A", "", "(null)"} else pairs["QoS"],
    }


def _names(text: str) -> tuple[str, ...] | None:
    return None if text in {"ALL", "(null)"} else tuple(name for name in text.split(",") if name)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


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


def parse_associations(text: str, user: str) -> tuple[dict[str, int], str]:
    """From `scontrol show assoc_mgr flags=assoc`: a person's limits on jobs in the queue by account, and the default account.

    A group's limit counts the jobs of all its members; it is an upper bound for one of them.
    """
    limits: dict[str, int] = {}
    default = ""
    for record in re.split(r"^(?=ClusterName=)", text, flags=re.MULTILINE):
        fields = dict(re.findall(r"(\w+)=(\S*)", record))
        if fields.get("UserName", "").partition("(")[0] not in {"", user} or "Account" not in fields:
            continue
        if fields["UserName"] and fields.get("DefAssoc") == "Yes":
            default = fields["Account"]
        for name in ("MaxSubmitJobs", "GrpSubmitJobs"):
            limit = fields.get(name, "").partition("(")[0]
            if limit.isdigit():
                limits[fields["Account"]] = min(int(limit), limits.get(fields["Account"], int(limit)))
    return limits, default


def parse_qos(text: str) -> dict[str, int]:
    """From `sacctmgr -n -P show qos format=Name,MaxSubmitJobsPU,GrpSubmitJobs`: limits by name."""
    rows = (line.split("|") for line in text.splitlines() if line)
    found = {name: [int(limit) for limit in limits if limit.isdigit()] for name, *limits in rows}
    return {name: min(limits) for name, limits in found.items() if limits}


def _queue_limits(enforced: str) -> QueueLimits:
    """What Slurm enforces; silence of the accounting database is no limit, since the controller goes on without it."""
    if "limits" not in enforced and "safe" not in enforced:
        return QueueLimits()
    user = pwd.getpwuid(os.getuid()).pw_name
    accounts, default, qos = dict[str, int](), "", dict[str, int]()
    with suppress(ProgramFailedError, UnreachableError):
        accounts, default = parse_associations(
            run_program(["scontrol", "show", "assoc_mgr", "flags=assoc", f"users={user}"]), user
        )
    with suppress(ProgramFailedError, UnreachableError):
        qos = parse_qos(
            run_program(["sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxSubmitJobsPU,GrpSubmitJobs"])
        )
    return QueueLimits(accounts=accounts, qos=qos, default_account=default)


def _ask() -> ClusterFacts:
    config = parse_config(run_program(["scontrol", "show", "config"]))
    enforced = config.get("AccountingStorageEnforce", "")
    name = config.get("ClusterName", "?")
    partitions = parse_partitions(run_program(["sinfo", "-a", "-h", "-o", SINFO_FORMAT]))
    policies = run_program(["scontrol", "show", "partition", "-a", "-o"])
    return ClusterFacts(
        name=name,
        version=config.get("SLURM_VERSION", "?"),
        partitions=with_policies(partitions, policies),
        max_array_size=int(config.get("MaxArraySize", "1001")),
        max_job_count=_number(config.get("MaxJobCount", "")),
        queue_limits=_queue_limits(enforced),
        accounting=query_accounting(name, enforced),
    )
