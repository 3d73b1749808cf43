"""What the parts of a site lock demand of each other.  Pure: a lock in, problems out: key, value, the way out."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phenomhpc.nodes.hostlist import expand, short
from phenomhpc.nodes.lock import Lock, OnHosts, Package

# CUDA 11, 12 and 13 run on any driver from these on (NVIDIA, CUDA Compatibility, "minor version compatibility").
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
# Slurm kills a HealthCheckProgram after 60 s (slurm.conf(5)); the check wants some seconds to say what it found.
SLURM_LIMIT_S = 60
# Lines of slurm.conf that the roles write from other parts of the lock.
_OURS = {
    name.lower(): key
    for name, key in {
        "ClusterName": "slurm.cluster",
        "SlurmctldHost": "slurm.controller",
        "NodeName": "slurm.node_types",
        "PartitionName": "slurm.partitions",
        "AccountingStorageHost": "slurm.database",
        "HealthCheckProgram": "checks",
        "HealthCheckInterval": "checks.interval_s",
    }.items()
}
# A package whose name matches says the version of a part of the lock.
_SAYS = (
    ("nvidia-driver-*", "nvidia.driver"),
    ("nvidia-open*", "nvidia.driver"),
    ("nvidia-fabric*manager*", "nvidia.fabricmanager"),
    ("libnccl2", "nvidia.nccl"),
    ("libnccl", "nvidia.nccl"),
    ("slurm*", "slurm.version"),
    ("gpfs.base", "gpfs.version"),
    ("apptainer", "containers.apptainer"),
    ("enroot", "containers.enroot"),
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong: where, with what value, and what to do."""

    key: str
    value: object
    words: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.words}"


def problems_of(lock: Lock) -> tuple[Problem, ...]:
    """Everything in a lock that does not go together."""
    rules = (_versions, _kernel, _pins, _memory, _hosts, _partitions, _gpfs, _checks, _files, _twice, _drift)
    return tuple(problem for rule in rules for problem in rule(lock))


def upstream(version: str) -> str:
    """A package's version without its epoch: 1:24.11.5-1 -> 24.11.5-1."""
    return version.rpartition(":")[2] if re.match(r"^\d+:", version) else version


def says(version: str, wanted: str) -> bool:
    """Is a package's version that of `wanted`: the very one, or that with a further part behind it?"""
    return re.match(re.escape(wanted) + r"(?![0-9])", upstream(version)) is not None


def _versions(lock: Lock) -> Iterator[Problem]:
    nvidia, python = lock.nvidia, lock.python
    if nvidia is not None:
        if nvidia.fabricmanager is not None and nvidia.fabricmanager != nvidia.driver:
            yield Problem(
                key="nvidia.fabricmanager",
                value=nvidia.fabricmanager,
                words=f"the fabric manager runs with its own driver only; give nvidia.driver's {nvidia.driver}",
            )
        least = LEAST_DRIVER.get(_first(nvidia.cuda or ""))
        if least is not None and _first(nvidia.driver) < least:
            yield Problem(
                key="nvidia.cuda", value=nvidia.cuda, words=f"needs a driver of {least} or newer, not {nvidia.driver}"
            )
    if lock.rdma is not None and lock.rdma.stack == "inbox" and lock.rdma.version is not None:
        yield Problem(
            key="rdma.version", value=lock.rdma.version, words="stack=inbox has the kernel's version; leave it out"
        )
    if python is not None and lock.paths.env is not None and lock.paths.env != python.env_path:
        yield Problem(
            key="paths.env", value=lock.paths.env, words=f"is not python.env_path={python.env_path}; leave one out"
        )


def _first(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _kernel(lock: Lock) -> Iterator[Problem]:
    kernel, gpfs = lock.kernel, lock.gpfs
    if kernel is not None and kernel.package is not None and kernel.release not in kernel.package:
        yield Problem(
            key="kernel.package", value=kernel.package, words=f"is not the package of kernel.release={kernel.release}"
        )
    if gpfs is None or gpfs.gplbin is None:
        return
    if kernel is None:
        yield Problem(
            key="gpfs.gplbin", value=gpfs.gplbin, words="is built for one kernel; pin it: kernel.release is missing"
        )
    elif gpfs.gplbin != kernel.release:
        yield Problem(
            key="gpfs.gplbin",
            value=gpfs.gplbin,
            words=f"GPFS's module does not load into kernel.release={kernel.release}; build it for that kernel, or pin this one",
        )
    for package in lock.packages:
        if package.name.startswith("gpfs.gplbin-") and package.name.removeprefix("gpfs.gplbin-") != gpfs.gplbin:
            yield Problem(
                key="packages", value=package.name, words=f"is for another kernel than gpfs.gplbin={gpfs.gplbin}"
            )


def _pins(lock: Lock) -> Iterator[Problem]:
    names = {package.name for package in lock.packages}
    needed: list[tuple[str, str | None]] = [("kernel.package", lock.kernel.package if lock.kernel else None)]
    needed += [("nvidia.packages", name) for name in (lock.nvidia.packages if lock.nvidia else ())]
    needed += [("rdma.packages", name) for name in (lock.rdma.packages if lock.rdma else ())]
    for key, name in needed:
        if name is not None and name not in names:
            yield Problem(key=key, value=name, words="has no exact version; add it to packages")
    for package in lock.packages:
        for pattern, key in _SAYS:
            wanted = _value(lock, key)
            if wanted is not None and fnmatch.fnmatch(package.name, pattern) and not says(package.version, wanted):
                yield Problem(
                    key=f"packages.{package.name}", value=package.version, words=f"is not of {key}={wanted}; change one"
                )


def _value(lock: Lock, key: str) -> str | None:
    part, _, name = key.partition(".")
    found = getattr(getattr(lock, part), name, None)
    return found if isinstance(found, str) else None


def _memory(lock: Lock) -> Iterator[Problem]:
    for kind in lock.slurm.node_types:
        key, left = f"slurm.node_types.{kind.name}", lock.left_mb(kind)
        taken = f"reserved_mb={kind.reserved_mb}" + (
            f" and GPFS's pagepool_mb={lock.gpfs.pagepool_mb}" if lock.gpfs else ""
        )
        if left <= 0:
            yield Problem(
                key=f"{key}.memory_mb", value=kind.memory_mb, words=f"{taken} leave nothing of it; lower them"
            )
        elif kind.real_memory_mb is not None and kind.real_memory_mb > left:
            yield Problem(
                key=f"{key}.real_memory_mb",
                value=kind.real_memory_mb,
                words=f"{taken} leave {left} of memory_mb={kind.memory_mb}; give at most that, or leave it out",
            )
        cores = kind.cores_per_socket
        if kind.cpus % (kind.sockets * kind.threads_per_core) or (
            cores is not None and kind.sockets * cores * kind.threads_per_core != kind.cpus
        ):
            words = f"is not sockets={kind.sockets} x cores_per_socket={cores or '?'} x threads_per_core={kind.threads_per_core}"
            yield Problem(key=f"{key}.cpus", value=kind.cpus, words=f"{words}; `slurmd -C` prints all four")


def _partitions(lock: Lock) -> Iterator[Problem]:
    partitions = lock.slurm.partitions
    defaults = [partition.name for partition in partitions if partition.default]
    if len(defaults) != 1:
        yield Problem(
            key="slurm.partitions.default",
            value=",".join(defaults) or "none",
            words=f"one partition is the default, not {len(defaults)}: set default: true of one of "
            + ", ".join(partition.name for partition in partitions),
        )
    gpus = {node: kind.gpus for kind in lock.slurm.node_types for node in expand(kind.nodes)}
    for partition in partitions:
        key = f"slurm.partitions.{partition.name}"
        nodes = expand(partition.nodes)
        strange = [node for node in nodes if node not in gpus]
        if strange:
            yield Problem(
                key=f"{key}.nodes", value=partition.nodes, words=f"{_some(strange)}: in no node type; add one"
            )
        poor = [node for node in nodes if gpus.get(node, partition.gpus_per_node) < partition.gpus_per_node]
        if poor:
            words = f"{_some(poor)}: has fewer GPUs, by its node type; lower it"
            yield Problem(key=f"{key}.gpus_per_node", value=partition.gpus_per_node, words=words)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _hosts(lock: Lock) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for kind in lock.slurm.node_types:
        for node in expand(kind.nodes):
            if node in owner:
                words = f"{node} is in node type {owner[node]}, too; a node is of one type"
                yield Problem(key=f"slurm.node_types.{kind.name}.nodes", value=kind.nodes, words=words)
                break
            owner[node] = kind.name
    known = lock.classes()
    if lock.gpfs is not None:
        asked = [("gpfs.delegate", lock.gpfs.delegate or lock.slurm.controller)]
        asked += [
            (f"gpfs.node_classes.{name}", host)
            for name, hosts in lock.gpfs.node_classes.items()
            for host in expand(hosts)
        ]
        for key, host in asked:
            if short(host) not in known:
                yield Problem(
                    key=key, value=host, words="is no host of slurm's (controller, database, login, node_types)"
                )
    for name in lock.slurm.settings:
        if name.lower() in _OURS:
            yield Problem(
                key=f"slurm.settings.{name}",
                value=lock.slurm.settings[name],
                words=f"is written from {_OURS[name.lower()]}; set that, and leave this out",
            )


def _gpfs(lock: Lock) -> Iterator[Problem]:
    gpfs = lock.gpfs
    if gpfs is None:
        return
    if gpfs.pagepool_class not in ("default", *gpfs.node_classes):
        words = (
            f"is no node class; there are default, {', '.join(gpfs.node_classes) or 'and none of gpfs.node_classes'}"
        )
        yield Problem(key="gpfs.pagepool_class", value=gpfs.pagepool_class, words=words)
    for name, attributes in gpfs.attributes.items():
        if name != "default" and name not in gpfs.node_classes:
            words = f"is no node class; there are default, {', '.join(gpfs.node_classes) or 'and none of gpfs.node_classes'}"
            yield Problem(key="gpfs.attributes", value=name, words=words)
        for attribute, value in attributes.items():
            if attribute.lower() == "pagepool":
                yield Problem(
                    key=f"gpfs.attributes.{name}.pagepool",
                    value=value,
                    words="is gpfs.pagepool_mb, which Slurm's memory heeds",
                )


def _checks(lock: Lock) -> Iterator[Problem]:
    checks = lock.checks
    if checks.total_s > SLURM_LIMIT_S - 5:
        words = f"Slurm kills the check after {SLURM_LIMIT_S} s; give at most {SLURM_LIMIT_S - 5}"
        yield Problem(key="checks.total_s", value=f"{checks.total_s:g}", words=words)
    if checks.each_s > checks.total_s:
        words = f"is more than checks.total_s={checks.total_s:g}, so that one check could take all of it"
        yield Problem(key="checks.each_s", value=f"{checks.each_s:g}", words=words)


def _files(lock: Lock) -> Iterator[Problem]:
    for file in lock.managed.files:
        if file.secret and (file.mode is None or int(file.mode, 8) & 0o077):
            words = f"{file.path} is secret: only its owner may have it; mode 0400, say"
            yield Problem(key="managed.files.mode", value=file.mode, words=words)


def _twice(lock: Lock) -> Iterator[Problem]:
    for key, things in (("packages", lock.packages), ("units", lock.units)):
        yield from _overlapping(key, [(thing.name, thing) for thing in things])
    yield from _overlapping("managed.files", [(file.path, file) for file in lock.managed.files])
    yield from _overlapping("managed.directories", [(folder.path, folder) for folder in lock.managed.directories])
    named = {
        "slurm.partitions": [partition.name for partition in lock.slurm.partitions],
        "slurm.node_types": [kind.name for kind in lock.slurm.node_types],
        "repositories": [repository.name for repository in lock.repositories],
        "users": [user.name for user in lock.users],
        "users.uid": [str(user.uid) for user in lock.users],
    }
    for key, names in named.items():
        for name, times in Counter(names).items():
            if times > 1:
                yield Problem(key=key, value=name, words=f"is there {times} times; leave one")


def _overlapping(key: str, things: Sequence[tuple[str, OnHosts]]) -> Iterator[Problem]:
    seen: dict[tuple[str, str], OnHosts] = {}
    for name, thing in things:
        if any((name, host) in seen for host in thing.hosts):
            version = f" ({thing.version})" if isinstance(thing, Package) else ""
            yield Problem(key=key, value=name + version, words="is there twice for one class of hosts; leave one")
        seen |= {(name, host): thing for host in thing.hosts}


def _drift(lock: Lock) -> Iterator[Problem]:
    for pattern in lock.drift.must:
        if pattern in lock.drift.ignore:
            yield Problem(
                key="drift.must", value=pattern, words="is in drift.ignore, too, which comes first; leave one"
            )
