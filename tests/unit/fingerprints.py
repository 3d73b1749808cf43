"""Fingerprints for tests of what is made of them: a healthy node of a small Debian site, as probe.py tells it."""

from __future__ import annotations

import json
from typing import Any

from phenomhpc.nodes.lock import Lock
from phenomhpc.nodes.lock_file import lock_digest, lock_from

LOCK: dict[str, Any] = {
    "schema": 1,
    "name": "small",
    "os": {"family": "debian", "distribution": "debian", "release": "12"},
    "slurm": {
        "cluster": "small",
        "controller": "ctl",
        "node_types": [{"name": "n", "nodes": "n[1-4]", "cpus": 2, "memory_mb": 4000}],
        "partitions": [{"name": "all", "nodes": "n[1-4]", "default": True}],
    },
    "packages": [
        {"name": "slurmd", "version": "22.05.8-4", "hosts": ["compute"]},
        {"name": "munge", "version": "0.5.15-2", "hold": False},
    ],
    "sysctls": {"net.core.somaxconn": "4096"},
    "limits": [{"domain": "*", "item": "memlock", "value": "unlimited"}],
    "units": [
        {"name": "slurmd.service", "enabled": True, "active": True, "hosts": ["compute"]},
        {"name": "unattended-upgrades.service", "enabled": False, "active": False},
    ],
    "python": {"version": "3.11", "env_path": "/opt/env/current"},
    "managed": {
        "directories": [{"path": "/etc/sysctl.d"}, {"path": "/etc/apt/preferences.d"}, {"path": "/etc/slurm"}],
        "files": [
            {"path": "/etc/sysctl.d/90-phenomhpc.conf", "mode": "0644", "owner": "root", "group": "root"},
            {"path": "/etc/slurm/slurm.conf", "mode": "0644", "owner": "root", "group": "root"},
            {"path": "/etc/munge/munge.key", "mode": "0400", "owner": "munge", "group": "munge", "secret": True},
        ],
    },
}
PATHS = ("/etc/sysctl.d/90-phenomhpc.conf", "/etc/slurm/slurm.conf")


def lock(**parts: Any) -> Lock:
    return lock_from({**LOCK, **parts}, "site.lock.yml")


def file(content: str = "a" * 64, mode: str = "0644", **more: Any) -> dict[str, Any]:
    return {"mode": mode, "owner": "root", "group": "root", "sha256": content, **more}


def healthy(name: str = "n1") -> dict[str, Any]:
    """A node that is as the lock says, after the roles have written down what they made."""
    key = {"mode": "0400", "owner": "munge", "group": "munge", "sha256": "keyed:" + "e" * 32}
    ours = {path: file() for path in PATHS} | {"/etc/munge/munge.key": key}
    distributions = {"numpy": "2.1.0 aaaa", "torch": "2.13.0 bbbb"}
    env = {"path": "/opt/env/1", "version": "3.11.7", "environment": "f" * 32, "distributions": distributions}
    return json.loads(  # copies of all
        json.dumps(
            {
                "schema": 1,
                "host": name,
                "classes": ["compute"],
                "digest": "0" * 64,
                "silent": {},
                "seconds": {},
                "values": {
                    "os": "debian 12",
                    "kernel": "6.1.0-1",
                    "slurm.version": "22.05.8-4",
                    "python.version": "3.11.7",
                    "python.environment": "f" * 32,
                    "python.torch": "2.13.0",
                    "packages": "abc",
                    "site": lock_digest(lock())[:16],
                },
                "system": {"os": "debian 12", "kernel": "6.1.0-1"},
                "packages": {
                    "versions": {"slurmd": "22.05.8-4", "munge": "0.5.15-2", "bash": "5.2", "libc6": "2.36"},
                    "held": ["slurmd"],
                    "manual": ["slurmd", "munge", "bash"],
                },
                "candidates": {"slurmd": "22.05.8-4", "munge": "0.5.15-2"},
                "files": {
                    **ours,
                    "/etc/sysctl.d/README": file("b" * 64, package="procps", changed=False),
                    "/etc/sysctl.d/protect.conf": file("c" * 64, package="procps", changed=False),
                },
                "sysctls": {
                    "live": {"net.core.somaxconn": "4096", "kernel.sysrq": "438"},
                    "files": {
                        "net.core.somaxconn": {"value": "4096", "path": "/etc/sysctl.d/90-phenomhpc.conf"},
                        "kernel.sysrq": {"value": "438", "path": "/etc/sysctl.d/protect.conf"},
                    },
                },
                "units": {
                    "slurmd.service": {"enabled": "enabled", "active": "active"},
                    "unattended-upgrades.service": {"enabled": "absent", "active": "inactive"},
                    "ssh.service": {"enabled": "enabled"},
                },
                "modules": {},
                "limits": {"locked_memory": "unlimited unlimited", "open_files": "131072 131072"},
                "nvidia": {},
                "rdma": {},
                "gpfs": {},
                "python": env,
                "manifest": {"files": ours, "packages": ["slurmd", "munge", "bash"], "python": env},
            }
        )
    )


def short(**values: str) -> dict[str, Any]:
    """What a run's gate gathers."""
    whole = healthy()
    kept = {
        name: whole[name] for name in ("schema", "host", "classes", "digest", "silent", "seconds", "values", "python")
    }
    kept["values"] |= values
    kept["values"] = {name: value for name, value in kept["values"].items() if value}
    return kept
