"""A site of the tests: booted machines, an inventory, a lock and a vault for them, and Ansible's playbooks run on it.

ROOT/site/  site.lock.yml    inventory/hosts.yml    inventory/group_vars/all/{main,vault}.yml    vault-password
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ClusterError
from tests.nodes import images, wheels
from tests.nodes.images import REPOSITORY
from tests.nodes.machines import SUBNET, Machines
from tests.nodes.stand_ins import OLDER, TOOLKIT
from tests.nodes.wheels import Project

ANSIBLE = REPOSITORY / "ansible"
HEAD = "head"
SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
PLAY_LIMIT_S = 600
TYPED_LIMIT_S = 120
ENVIRONMENT, LAB = "/shared/env/current", "/shared/lab"
# Somebody who submits.
PERSON = {"name": "ada", "uid": 2001, "gid": 2001, "home": "/shared/home/ada", "shell": "/bin/bash"}
_RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
_PINNED = ("munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "mariadb-server", "chrony", "python3-venv")
_CLASS_OF = {
    "slurmctld": ["controller"],
    "slurmd": ["compute"],
    "slurmdbd": ["database"],
    "mariadb-server": ["database"],
}


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a run of a playbook said.  changed, failed: counts by host."""

    code: int
    output: str
    seconds: float
    changed: Mapping[str, int]
    failed: Mapping[str, int]

    @property
    def changes(self) -> str:
        """The tasks that changed something, with what is around them, for a message."""
        lines, found, task = self.output.splitlines(), [], ""
        for number, line in enumerate(lines):
            if line.startswith("TASK"):
                task = line
            if line.startswith(("changed:", "fatal:", "failed:")):
                detail = [] if line.startswith("changed:") else lines[number + 1 : number + 30]
                found.append("\n  ".join([task.rstrip("* "), line, *detail]))
        return "\n".join(found) or self.output[-3000:]


class Site:
    """Machines with a lock.  `lock` may be changed between plays; each play writes it first."""

    def __init__(self, machines: Machines, packages: Path, nodes: Sequence[str]) -> None:
        """nodes: those of the cluster; further machines may join it later."""
        self.machines = machines
        self.nodes = list(nodes)
        self.folder = machines.root / "site"
        kept = f"/srv/{images.wheels().name}"
        self.ours = wheels.ours(machines.root / "shared" / "wheels", "/shared/wheels", kept)
        self.small = wheels.small(self.folder / "project", machines.root / "shared" / "small", "/shared/small")
        self.lock = _lock(self.nodes, images.versions(packages))
        self.use(self.ours)
        self.secrets = {
            "munge_key": secrets.token_hex(64),
            "slurm_database_password": secrets.token_hex(16),
            "fingerprint_key": secrets.token_hex(32),
        }
        self.all_secrets = list(self.secrets.values())
        self.outputs: list[str] = []

    def use(self, project: Project) -> None:
        """From the next play on python_env installs this one."""
        self.project = project
        self.lock["python"] = {
            "version": "3.11",
            "lock_sha256": project.lock_sha256,
            "env_path": ENVIRONMENT,
            "wheelhouse": project.wheelhouse,
            **({"torch": project.torch} if project.torch else {}),
        }

    def join(self, name: str) -> None:
        """From the next play on one more machine is a node."""
        self.nodes.append(name)
        for part in ("node_types", "partitions"):
            self.lock["slurm"][part][0]["nodes"] = ",".join(self.nodes)

    def write(self) -> None:
        """Inventory, vault and lock as they are now."""
        variables = self.folder / "inventory" / "group_vars" / "all"
        variables.mkdir(parents=True, exist_ok=True)
        password = self.folder / "vault-password"
        if not password.exists():
            password.write_text(secrets.token_hex(16))
        (self.folder / "site.lock.yml").write_text(yaml.safe_dump(self.lock, sort_keys=False))
        (self.folder / "inventory" / "hosts.yml").write_text(yaml.safe_dump(_inventory(self.nodes)))
        (variables / "main.yml").write_text(yaml.safe_dump(_variables(self)))
        (variables / "vault.yml").write_text(yaml.safe_dump(self.secrets))
        self._ansible(
            ["ansible-vault", "encrypt", "--vault-password-file", str(password), str(variables / "vault.yml")]
        )

    def play(self, playbook: str, *arguments: str, limit_s: float = PLAY_LIMIT_S) -> Played:
        """Run a playbook of the bundle from the control host."""
        self.write()
        argv = [
            "ansible-playbook",
            *("-i", str(self.folder / "inventory"), "--vault-password-file", str(self.folder / "vault-password")),
            *(str(ANSIBLE / "playbooks" / playbook), *arguments),
        ]
        began = time.monotonic()
        done = self._ansible(argv, limit_s=limit_s, check=False)
        output = done.stdout + done.stderr
        self.outputs.append(output)
        recap = [(host, int(changed), int(lost) + int(bad)) for host, _, changed, lost, bad in _RECAP.findall(output)]
        return Played(
            code=done.returncode,
            output=output,
            seconds=time.monotonic() - began,
            changed={host: changed for host, changed, _ in recap},
            failed={host: failed for host, _, failed in recap},
        )

    def drift(self) -> dict[str, Any]:
        """What drift.yml's fingerprints say: verdict, findings, silent."""
        folder = self.machines.root / "drift"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.play("drift.yml", "-e", f"drift_folder={folder}")
        argv = [sys.executable, "-m", "phenomhpc", "cluster", "drift", "--site", str(self.folder / "site.lock.yml")]
        done = subprocess.run([*argv, "--from", str(folder), "--json"], capture_output=True, text=True, timeout=60)
        report: dict[str, Any] = json.loads(done.stdout)
        return report | {"code": done.returncode}

    def type(self, *words: str, limit_s: float = TYPED_LIMIT_S) -> subprocess.CompletedProcess[str]:
        """What `phenomhpc WORDS` says to the person, at home on the login host."""
        line = shlex.join(
            [
                *("setpriv", f"--reuid={PERSON['uid']}", f"--regid={PERSON['gid']}", "--init-groups"),
                *("env", "-i", f"HOME={PERSON['home']}", f"PATH={ENVIRONMENT}/bin:/usr/bin:/bin", "phenomhpc", *words),
            ]
        )
        return self.machines.execute(HEAD, f"cd {PERSON['home']} && {line}", limit_s=limit_s)

    def states(self) -> dict[str, str]:
        """sinfo's state of every node."""
        lines = self.machines.run(HEAD, "sinfo -h -N -o '%N %T'").splitlines()
        return dict(line.split() for line in lines)

    def site_json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.machines.run(name, "cat /etc/phenomhpc/site.json"))
        return found

    def _ansible(
        self, argv: Sequence[str], *, limit_s: float = PLAY_LIMIT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment |= {
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(self.machines.root / "ansible"),
            "ANSIBLE_SSH_ARGS": f"-F {self.machines.root}/ssh.conf",
            "ANSIBLE_NOCOLOR": "1",
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            self.machines.control(argv), env=environment, capture_output=True, text=True, timeout=limit_s, cwd=ANSIBLE
        )
        if check and done.returncode:
            raise ClusterError(f"{argv[0]}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


def _inventory(nodes: Sequence[str]) -> dict[str, Any]:
    head: dict[str, Any] = {"hosts": {HEAD: None}}
    return {
        "all": {
            "children": {
                "controller": head,
                "database": head,
                "login": head,
                "compute": {"hosts": dict.fromkeys(nodes)},
            }
        }
    }


def _variables(site: Site) -> dict[str, Any]:
    """What differs here from a cluster of real machines, and no more."""
    return {
        "site_lock": str(site.folder / "site.lock.yml"),
        "python_env_source": str(site.project.source),
        "chrony_control_clock": False,
        "chrony_allow": [f"{SUBNET}.0/24"],
        "chrony_local_stratum": 8,
        # A stand-in: nobody installs the real one on a machine without a GPU.
        "repo_pins_also": f"{{{{ ['{TOOLKIT}'] if 'compute' in site_classes else [] }}}}",
        "repo_pins_remove_extra": True,
        # Stand-ins have no module to load, and nothing to start.
        "nvidia_hardware": False,
        "slurm_database_pool": "64M",
        "slurm_database_log_size": "16M",
    }


def _lock(nodes: Sequence[str], versions: Mapping[str, str]) -> dict[str, Any]:
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    every = ",".join(nodes)
    return {
        "schema": 1,
        "name": "tests",
        "os": {"family": "debian", "distribution": "debian", "release": "12"},
        "slurm": {
            "version": re.split(r"[-+]", versions["slurmd"])[0],
            "cluster": "tests",
            "controller": HEAD,
            "database": HEAD,
            "login": [HEAD],
            "node_types": [
                {
                    "name": "plain",
                    "nodes": every,
                    "cpus": os.cpu_count(),
                    "memory_mb": memory_mb,
                    "reserved_mb": memory_mb // 2,
                }
            ],
            "partitions": [{"name": "main", "nodes": every, "default": True, "max_time": "1:00:00"}],
            # The machines see the control groups of the host read-only.
            "settings": {
                "ProctrackType": "proctrack/linuxproc",
                "TaskPlugin": "task/none",
                "JobAcctGatherType": "jobacct_gather/linux",
                "PrologFlags": "Alloc",
                "SlurmdParameters": "config_overrides",
            },
        },
        "packages": [
            {"name": name, "version": versions[name]} | ({"hosts": _CLASS_OF[name]} if name in _CLASS_OF else {})
            for name in _PINNED
        ]
        + [{"name": TOOLKIT, "version": OLDER, "hosts": ["compute"]}],
        "sysctls": {
            "net.core.somaxconn": "8192",
            "net.ipv4.tcp_rmem": "4096 131072 268435456",
            "vm.swappiness": _read_only("vm/swappiness"),
        },
        "limits": [
            {"domain": "*", "type": "-", "item": "memlock", "value": "unlimited"},
            {"domain": "*", "type": "-", "item": "nofile", "value": "1048576"},
        ],
        "units": [
            {"name": "munge.service", "enabled": True, "active": True},
            {"name": "slurmd.service", "enabled": True, "active": True, "hosts": ["compute"]},
        ],
        "time": {"servers": [HEAD], "max_offset_s": 1},
        "monitoring": {"node": 9100},
        # One folder of the host's stands for the site's shared file system.
        "paths": {name: f"{LAB}/{name}" for name in ("store", "runs", "raw")},
        "users": [
            {"name": "munge", "uid": 981, "gid": 981},
            {"name": "slurm", "uid": 982, "gid": 982, "home": "/var/lib/slurm"},
            PERSON,
        ],
        "drift": {
            "must": ["os", "python.environment"],
            # The machines cannot raise their own: slurmd has the host's.
            "ignore": ["limit:locked_memory", "file:/etc/phenomhpc/manifest.json"],
        },
        "managed": {
            "directories": [
                {"path": path}
                for path in (
                    "/etc/sysctl.d",
                    "/etc/apt/preferences.d",
                    "/etc/security/limits.d",
                    "/etc/slurm",
                    "/etc/phenomhpc",
                )
            ],
            "files": _files(),
        },
    }


def _read_only(name: str) -> str:
    """A sysctl that the machines see, and cannot set: the lock wants what it is."""
    return Path("/proc/sys", name).read_text().strip()


def _files() -> list[dict[str, Any]]:
    root = {"mode": "0644", "owner": "root", "group": "root"}
    paths = [
        "/etc/sysctl.d/90-phenomhpc.conf",
        "/etc/apt/preferences.d/90-phenomhpc",
        "/etc/security/limits.d/90-phenomhpc.conf",
        "/etc/slurm/slurm.conf",
        "/etc/slurm/gres.conf",
        "/etc/slurm/cgroup.conf",
        "/etc/phenomhpc/site.json",
    ]
    munge = {"mode": "0400", "owner": "munge", "group": "munge", "secret": True}
    slurm = {"mode": "0600", "owner": "slurm", "group": "slurm", "secret": True, "hosts": ["database"]}
    return [
        *({"path": path} | root for path in paths),
        {"path": "/etc/munge/munge.key"} | munge,
        {"path": "/etc/slurm/slurmdbd.conf"} | slurm,
        {"path": "/etc/phenomhpc/fingerprint.key", "mode": "0400", "owner": "root", "group": "root", "secret": True},
    ]
