"""The cluster's hosts as namespaces: one for the controller, which is also the login host, and one per node."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import settings
from tests.cluster.memory import MemoryGroups
from tests.cluster.processes import ClusterError, Processes, daemon, start_time, wait_for
from tests.cluster.settings import CONTROLLER_ADDRESS, ClusterSpec

# The machine may be busy with other tests: a limit ends what hangs, and costs nothing where nothing does.
STEP_LIMIT_S = 180.0


def system_path() -> str:
    """PATH with the folders of daemons, which a user's may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


@dataclass(frozen=True, kw_only=True)
class NodeProcess:
    """A process on a node: its id and its parent's there (0: none), and its command."""

    pid: int
    parent: int
    argv: tuple[str, ...]


class Hosts:
    """The namespaces of the cluster in `root`."""

    def __init__(self, root: Path, spec: ClusterSpec, processes: Processes, memory: MemoryGroups) -> None:
        self._root, self._spec, self._processes, self._memory = root, spec, processes, memory

    def start_controller_host(self) -> None:
        """The controller's host: holds its namespaces, and the bridge that all nodes hang on."""
        root = self._root
        script = (
            f"hostname {settings.CONTROLLER_HOST} && mount --bind {root}/hosts /etc/hosts && ip link set lo up && "
            f"ip link add br0 type bridge && ip addr add {CONTROLLER_ADDRESS}/24 dev br0 && ip link set br0 up && "
            f"echo ok > {root}/ctl.ready && exec sleep infinity"
        )
        command = ["unshare", "--uts", "--mount", "--net", "--propagation", "private", "bash", "-c", script]
        log = root / "log" / "namespace.out"
        process = daemon(command, log)
        self._processes.add("namespace", process.pid)
        wait_for("controller's namespaces", (root / "ctl.ready").exists, STEP_LIMIT_S, log)

    def holder(self) -> int:
        """Process id of the controller host's holder; ClusterError when there is none."""
        living = self._processes.living("namespace")
        if not living:
            raise ClusterError(f"no cluster is up in {self._root}; python -m tests.cluster up")
        return living[-1][1]

    def command(self, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """`argv` as it runs on the controller's host."""
        return ["nsenter", "-t", str(self.holder()), "-u", "-m", "-n", f"--wd={cwd or Path.cwd()}", "--", *argv]

    def end_controller_host(self) -> None:
        """End what was started on the controller's host and outlived its starter, then the host."""
        for _, holder in self._processes.living("namespace"):
            for pid in _sharing(holder, "net"):
                if pid not in (holder, os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self._processes.end("namespace", signal.SIGKILL)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def start_node(self, number: int) -> None:
        """Boot a node: its namespaces, its slurmd, its link to the bridge."""
        root, name = self._root, self._spec.node_name(number)
        ready = root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        command = ["unshare", "--uts", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        command += ["--propagation", "private", "bash", f"{root}/node-init.sh", name, str(root)]
        command += [str(self._memory.node(name))] if self._memory.exist else []
        log = root / "log" / f"{name}.out"
        process = daemon(["env", f"PATH={system_path()}", *command], log)
        self._processes.add(f"node-{name}", process.pid)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(f"node {name}", lambda: ready.exists() and bool(children.read_text().split()), STEP_LIMIT_S, log)
        init = int(children.read_text().split()[0])
        self._processes.add(f"init-{name}", init)
        self._on_controller(f"ip link del {_veth(number)} 2>/dev/null; ip link add {_veth(number)} type veth peer "
                            f"name eth0 netns {init} && ip link set {_veth(number)} master br0 up")  # fmt: skip
        address = f"ip addr add {self._spec.node_address(number)}/24 dev eth0 && ip link set eth0 up"
        subprocess.run(["nsenter", "-t", str(init), "-n", "--", "sh", "-c", address], check=True, timeout=60)

    def end_node(self, number: int) -> None:
        """The node's PID 1 is killed, and the kernel kills everything else on it."""
        self._processes.end(f"init-{self._spec.node_name(number)}", signal.SIGKILL)
        self._processes.end(f"node-{self._spec.node_name(number)}", signal.SIGKILL)

    def link(self, number: int, state: str) -> None:
        """A node's link: `up` or `down`."""
        self._on_controller(f"ip link set {_veth(number)} {state}")

    def processes_on(self, number: int) -> list[NodeProcess]:
        """What runs on a node, by the ids that are seen there."""
        inner, parents, commands = {}, {}, {}
        for outer in _sharing(self._init(number), "pid"):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{outer}/status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines if ":" in line)
                argv = Path(f"/proc/{outer}/cmdline").read_bytes().split(b"\0")
                inner[outer], parents[outer] = int(status["NSpid"].split()[-1]), int(status["PPid"])
                commands[outer] = tuple(word.decode(errors="replace") for word in argv if word)
        return [
            NodeProcess(pid=pid, parent=inner.get(parents[outer], 0), argv=commands[outer])
            for outer, pid in inner.items()
        ]

    def signal(self, number: int, pid: int, name: signal.Signals) -> None:
        """Signal a process of a node by its id there; ClusterError when there is none."""
        # kill of the node's own namespace: the id outside may be another's by the time it is found.
        kill = ["nsenter", "-t", str(self._init(number)), "-p", "-m", "--", "kill", f"-{name.value}", str(pid)]
        done = subprocess.run(kill, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise ClusterError(f"{self._spec.node_name(number)}: kill {pid}: {done.stderr.strip()}")

    def _init(self, number: int) -> int:
        living = self._processes.living(f"init-{self._spec.node_name(number)}")
        if not living:
            raise ClusterError(f"{self._spec.node_name(number)} is not running")
        return living[-1][1]

    def _on_controller(self, script: str) -> None:
        subprocess.run(["nsenter", "-t", str(self.holder()), "-n", "--", "sh", "-c", script], check=True, timeout=60)


def _veth(number: int) -> str:
    return f"ve{number}"


def _sharing(pid: int, kind: str) -> list[int]:
    """Living processes in the same namespace as `pid`, itself included."""
    try:
        wanted = Path(f"/proc/{pid}/ns/{kind}").readlink()
    except OSError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns" / kind).readlink() == wanted and start_time(int(entry.name)) is not None:
                    found.append(int(entry.name))
    return sorted(found)
