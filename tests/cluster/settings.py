"""The cluster's configuration files, as pure text.

Timeouts are short, so that a test sees in seconds what takes minutes on a real cluster: a node is down after
SlurmdTimeout, a requeued job may start again after cred_expire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CLUSTER_NAME = "phenom"
SUBNET = "10.77.0"
CONTROLLER_HOST = "ctl"
CONTROLLER_ADDRESS = f"{SUBNET}.1"
DATABASE_PORT = 13306
SLURMDBD_PORT = 16819


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Size of the pretended cluster, and slurm.conf values over the usual ones (None removes a key).

    accounting: MariaDB and slurmdbd; without them sacct and sacctmgr know nothing.  max_submit_jobs: what the association of
    root, the only user, may have in the queue at once, enforced; array elements count one by one.  cgroups: memory is limited by
    the kernel where its groups are ours to write; else slurmstepd looks and kills.
    """

    nodes: int = 4
    cpus: int = 8
    gpus: int = 8
    mem_mb: int = 16000
    accounting: bool = True
    max_submit_jobs: int | None = None
    cgroups: bool = True
    overrides: Mapping[str, str | int | None] | None = None

    def node_name(self, number: int) -> str:
        """Nodes are n1, n2, ..."""
        return f"n{number}"

    def node_address(self, number: int) -> str:
        return f"{SUBNET}.{10 + number}"


def slurm_conf(spec: ClusterSpec, root: Path, *, cgroups: bool) -> str:
    """slurm.conf.  config_overrides lets nodes pretend to have more than this machine has.

    cgroups: memory limits are the kernel's, and end as OUT_OF_MEMORY; else slurmstepd polls, and kills.
    """
    values: dict[str, str | int | None] = {
        "ClusterName": CLUSTER_NAME,
        "SlurmctldHost": f"{CONTROLLER_HOST}({CONTROLLER_ADDRESS})",
        "SlurmctldPort": 16817,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/munge/sock,cred_expire=5",
        "StateSaveLocation": f"{root}/state",
        "SlurmdSpoolDir": f"{root}/spool/%n",
        "SlurmctldPidFile": f"{root}/slurmctld.pid",
        "SlurmdPidFile": f"{root}/spool/%n.pid",
        "SlurmctldLogFile": f"{root}/log/slurmctld.log",
        "SlurmdLogFile": f"{root}/log/slurmd-%n.log",
        "SlurmctldDebug": "info",
        "SlurmdDebug": "info",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/cgroup" if cgroups else "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=5" if cgroups else "task=1",
        "JobAcctGatherParams": None if cgroups else "OverMemoryKill",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "DefMemPerCPU": spec.mem_mb // spec.cpus,
        "GresTypes": "gpu",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "RebootProgram": "/bin/true",
        "SlurmctldTimeout": 10,
        "SlurmdTimeout": 5,
        "MessageTimeout": 5,
        "InactiveLimit": 0,
        "KillWait": 3,
        "CompleteWait": 0,
        "MinJobAge": 300,
        "WaitTime": 0,
        "BatchStartTimeout": 10,
        # A step on a node that was cut off tries for a minute to tell of its end; until then it counts as not killed.
        "UnkillableStepTimeout": 120,
        "MaxArraySize": 10001,
        "MaxJobCount": 50000,
        "JobRequeue": 1,
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "PriorityType": "priority/multifactor",
        "PriorityWeightAge": 10,
        "PriorityWeightQOS": 1000,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=5,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=2000,"
        "partition_job_depth=0,bf_interval=2,bf_resolution=1,max_rpc_cnt=0,nohold_on_prolog_fail",
    }
    values |= _accounting(spec, root)
    values |= spec.overrides or {}
    lines = [f"{key}={value}" for key, value in values.items() if value is not None]
    for number in range(1, spec.nodes + 1):
        name = spec.node_name(number)
        lines.append(
            f"NodeName={name} NodeHostname={name} NodeAddr={spec.node_address(number)} Port=6818 CPUs={spec.cpus} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={spec.cpus} ThreadsPerCore=1 RealMemory={spec.mem_mb} Gres=gpu:{spec.gpus} "
            "State=UNKNOWN"
        )
    nodes = f"Nodes=n[1-{spec.nodes}] MaxTime=INFINITE State=UP"
    lines += [
        f"PartitionName=main {nodes} Default=YES PriorityTier=10",
        f"PartitionName=high {nodes} PriorityTier=100 PreemptMode=OFF",
        f"PartitionName=low {nodes} PriorityTier=1 PreemptMode=REQUEUE GraceTime=60",
    ]
    return "\n".join(lines) + "\n"


def _accounting(spec: ClusterSpec, root: Path) -> dict[str, str | int | None]:
    if not spec.accounting:
        return {"AccountingStorageType": "accounting_storage/none"}
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": SLURMDBD_PORT,
        # Without it sacct and sacctmgr look for munge at its usual place, whatever AuthInfo says.
        "AccountingStoragePass": f"{root}/munge/sock",
        "AccountingStorageTRES": "gres/gpu",
        "AccountingStorageEnforce": None if spec.max_submit_jobs is None else "associations,limits,qos",
    }


def associations(spec: ClusterSpec) -> list[list[str]]:
    """sacctmgr's words that make the cluster known before its controller asks, and set the user's limits."""
    if not spec.accounting or spec.max_submit_jobs is None:
        return []
    return [
        ["add", "cluster", CLUSTER_NAME],
        ["add", "account", "lab", "Description=lab", "Organization=lab"],
        ["add", "user", "root", "Account=lab", "DefaultAccount=lab"],
        ["modify", "user", "root", "set", f"MaxSubmitJobs={spec.max_submit_jobs}"],
    ]


def cgroup_conf(root: Path, *, cgroups: bool) -> str:
    """cgroup.conf.  Slurm's groups are named by node, and nodes of two clusters by number: each node sees its own hierarchy."""
    if not cgroups:
        return "CgroupPlugin=cgroup/v1\n"
    return f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={root}/cgroup\nConstrainRAMSpace=yes\n"


def gres_conf(spec: ClusterSpec, root: Path) -> str:
    """gres.conf: GPUs are character devices; plain files would leave CUDA_VISIBLE_DEVICES unset."""
    return f"Name=gpu File={root}/dev/gpu[0-{spec.gpus - 1}]\n" if spec.gpus else ""


def slurmdbd_conf(root: Path) -> str:
    """slurmdbd.conf; the password guards nothing outside the cluster's own network namespace."""
    return (
        f"AuthType=auth/munge\nAuthInfo=socket={root}/munge/sock\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
        f"DbdPort={SLURMDBD_PORT}\nSlurmUser=root\nLogFile={root}/log/slurmdbd.log\nPidFile={root}/slurmdbd.pid\n"
        "DebugLevel=info\nCommitDelay=0\nStorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
        f"StoragePort={DATABASE_PORT}\nStorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm_acct_db\n"
    )


def database_conf(root: Path) -> str:
    """my.cnf: small, loopback only, no durability to speak of."""
    return (
        f"[mariadbd]\nuser=root\ndatadir={root}/db\nsocket={root}/db.sock\npid-file={root}/db.pid\nbind-address=127.0.0.1\n"
        f"port={DATABASE_PORT}\nskip-name-resolve\nskip-log-bin\nperformance-schema=OFF\ninnodb-log-file-size=8M\n"
        "innodb-buffer-pool-size=64M\ninnodb-flush-log-at-trx-commit=0\ninnodb-lock-wait-timeout=900\n"
    )


DATABASE_INIT = (
    "CREATE DATABASE IF NOT EXISTS slurm_acct_db;\n"
    "CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';\n"
    "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';\n"
)


def hosts(spec: ClusterSpec) -> str:
    """/etc/hosts of every host of the cluster."""
    nodes = [f"{spec.node_address(number)} {spec.node_name(number)}" for number in range(1, spec.nodes + 1)]
    return "\n".join(["127.0.0.1 localhost", f"{CONTROLLER_ADDRESS} {CONTROLLER_HOST}", *nodes]) + "\n"


NODE_INIT = """#!/bin/bash
# PID 1 of a node: reaps orphans and keeps the node alive when slurmd alone dies.  Killing it from outside is a power cut.
# SIGHUP starts slurmd again.
name=$1 root=$2 memory=$3
export SLURM_CONF=$root/slurm.conf
hostname "$name"
mount --bind "$root/hosts" /etc/hosts
mkdir -p "$root/shm/$name" && mount --bind "$root/shm/$name" /dev/shm
[ -z "$memory" ] || mount --bind "$memory" "$root/cgroup/memory"
ip link set lo up
echo ok > "$root/$name.ready"
until ip -o -4 addr show eth0 2>/dev/null | grep -q inet; do sleep 0.02; done
cd /
start() { slurmd -D -N "$name" </dev/null >>"$root/log/slurmd-$name.out" 2>&1 & echo $! > "$root/$name.slurmd"; }
start
trap 'exit 0' TERM
trap start HUP
while :; do sleep 3600 & wait $!; done
"""
