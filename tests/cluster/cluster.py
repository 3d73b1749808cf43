"""A real Slurm of several nodes on one machine: munge, MariaDB, slurmdbd, slurmctld, and a slurmd per node.

Every node is a set of namespaces (UTS, mount, PID, network) with its own hostname and address on a bridge inside the
controller's network namespace; nothing of it can be reached from, or reaches, outside.  The file system is the machine's
own, as a cluster's shared one would be.

    ROOT/  slurm.conf gres.conf slurmdbd.conf hosts ...   processes.jsonl   log/ state/ spool/ munge/ db/ dev/ shm/
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster import settings
from tests.cluster.hosts import STEP_LIMIT_S, Hosts, NodeProcess, system_path
from tests.cluster.memory import MemoryGroups
from tests.cluster.processes import ClusterError, Processes, daemon, wait_for
from tests.cluster.settings import ClusterSpec

DEFAULT_ROOT = Path(tempfile.gettempdir()) / "phenomhpc-cluster"
PROGRAMS = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "sbatch",
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "ip",
    "nsenter",
    "unshare",
)


def why_not() -> str | None:
    """Why a cluster cannot be brought up here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=system_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make test installs them as root on Debian)"
    if os.geteuid() != 0:
        return "needs root, for namespaces and device nodes"
    probe = ["unshare", "--uts", "--mount", "--pid", "--net", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, timeout=10).returncode:
        return "namespaces are not permitted here"
    return None


class Cluster:
    """One cluster below `root`.  Methods raise ClusterError in one message with the log's tail."""

    def __init__(self, root: Path = DEFAULT_ROOT, spec: ClusterSpec | None = None) -> None:
        self.root, self.spec = root, spec or ClusterSpec()
        self._processes, self._memory = Processes(root / "processes.jsonl"), MemoryGroups(root)
        self._hosts = Hosts(root, self.spec, self._processes, self._memory)

    # -- life ---------------------------------------------------------------------------------------------------------

    def up(self, *, owned: bool = True) -> None:
        """Bring everything up; what a crashed cluster left in `root` is finished off first.

        owned: it goes down with this process, however that ends; else it stays up until someone says `down`.
        """
        self.down()
        for name in ("state", "spool", "log", "munge", "db", "dev", "shm", "cgroup/memory"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o711)
        try:
            if owned:
                from tests.cluster.watcher import start_watcher

                self._processes.add("watcher", start_watcher(self.root, self.root / "log" / "watcher.out").pid)
            self._write_settings(cgroups=self.spec.cgroups and self._memory.make())
            self._hosts.start_controller_host()
            self._start_munge()
            if self.spec.accounting:
                self._start_database()
                self.start_slurmdbd()
                for words in settings.associations(self.spec):
                    self.run(["sacctmgr", "-i", *words])
            self.start_controller()
            for number in range(1, self.spec.nodes + 1):
                self._hosts.start_node(number)
            self.wait_idle()
        except BaseException:
            self.down(keep_logs=True)
            raise

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process, by its recorded id and start time, and remove the memory groups and the folder."""
        for name, number in (
            ("watcher", signal.SIGTERM),
            ("node-*", signal.SIGKILL),
            ("init-*", signal.SIGKILL),
            ("slurmctld", signal.SIGTERM),
            ("slurmdbd", signal.SIGTERM),
            ("mariadbd", signal.SIGTERM),
            ("munged", signal.SIGTERM),
        ):
            self._processes.end(name, number)
        self._hosts.end_controller_host()
        self._memory.remove()
        if not keep_logs:
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def is_up(self) -> bool:
        return bool(self._processes.living("namespace"))

    def leftovers(self) -> list[tuple[str, int]]:
        """(name, pid) of the cluster's processes that run."""
        return self._processes.living()

    # -- use ----------------------------------------------------------------------------------------------------------

    @property
    def ledger(self) -> Path:
        """The exclusion ledger of the person whose shell this is."""
        return self.root / "person" / "excluded.json"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a person's shell on the login host has: SLURM_CONF, the project's programs first in PATH."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PHENOMHPC"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), system_path()])
        state = {"PHENOMHPC_STATE": str(self.ledger.parent)}
        return {**kept, "PATH": path, "SLURM_CONF": str(self.root / "slurm.conf"), **state, **(extra or {})}

    def command(self, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """`argv` as it runs on the login (and controller) host."""
        return self._hosts.command(argv, cwd)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 180,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login host; ClusterError with its output when it fails and `check` is set."""
        done = subprocess.run(
            self.command(argv, cwd), env=self.environment(env), capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def popen(self, argv: Sequence[str], *, cwd: Path | None = None, log: Path) -> subprocess.Popen[bytes]:
        """Start a command on the login host in a session of its own, its output in `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(argv, cwd),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_idle(self, limit_s: float = STEP_LIMIT_S) -> None:
        """Until every node is idle: no job of whoever was here before is on any."""

        def idle() -> bool:
            try:
                done = self.run(["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"], check=False, timeout=15)
            except subprocess.TimeoutExpired:
                return False
            return len(done.stdout.split()) == self.spec.nodes

        wait_for("all nodes idle", idle, limit_s, self.root / "log" / "slurmctld.log")

    def node_state(self, number: int) -> str:
        """sinfo's short state of a node: idle, mix, alloc, down, ..."""
        done = self.run(["sinfo", "-h", "-N", "-p", "main", "-n", self.spec.node_name(number), "-o", "%T"])
        return done.stdout.strip()

    # -- harm ---------------------------------------------------------------------------------------------------------

    def power_cut(self, number: int) -> None:
        """The node's PID 1 is killed: slurmd, steps and tasks are gone at once, and nobody is told."""
        self._hosts.end_node(number)

    def power_on(self, number: int) -> None:
        """Start a node that was cut."""
        self._hosts.start_node(number)

    def partition(self, number: int) -> None:
        """The node's link goes down; what runs on it runs on."""
        self._hosts.link(number, "down")

    def heal(self, number: int) -> None:
        """The link comes back."""
        self._hosts.link(number, "up")

    def processes_on(self, number: int) -> list[NodeProcess]:
        """What runs on a node: ids as they are seen there, and commands."""
        return self._hosts.processes_on(number)

    def signal_on(self, number: int, pid: int, name: signal.Signals) -> None:
        """Signal a process of a node, named by its id there: SIGSTOP, SIGCONT, SIGKILL."""
        self._hosts.signal(number, pid, name)

    def kill_slurmd(self, number: int) -> None:
        """kill -9 of the node's slurmd alone; its steps and tasks run on."""
        self.signal_on(number, self._slurmd(number), signal.SIGKILL)

    def start_slurmd(self, number: int) -> None:
        """Start the slurmd of a node where it was killed."""
        self.signal_on(number, 1, signal.SIGHUP)

    def _slurmd(self, number: int) -> int:
        return int((self.root / f"{self.spec.node_name(number)}.slurmd").read_text())

    def kill_controller(self) -> None:
        self._processes.end("slurmctld", signal.SIGKILL)

    def kill_slurmdbd(self) -> None:
        self._processes.end("slurmdbd", signal.SIGKILL)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._daemon("slurmctld", ["slurmctld", "-D"])
        self._wait_answer("slurmctld", ["scontrol", "ping"], "UP")

    def start_slurmdbd(self) -> None:
        """Start slurmdbd and wait until it answers."""
        self._daemon("slurmdbd", ["slurmdbd", "-D"])
        self._wait_answer("slurmdbd", ["sacctmgr", "-n", "show", "cluster"], "")

    # -- bringing up --------------------------------------------------------------------------------------------------

    def _daemon(self, name: str, argv: Sequence[str]) -> None:
        command = [
            "env",
            f"SLURM_CONF={self.root}/slurm.conf",
            f"PATH={system_path()}",
            *self.command(argv, Path("/")),
        ]
        process = daemon(command, self.root / "log" / f"{name}.out")
        self._processes.add(name, process.pid)

    def _wait_answer(self, name: str, question: Sequence[str], answer: str) -> None:
        def answers() -> bool:
            try:
                done = self.run(question, check=False, timeout=5)
            except subprocess.TimeoutExpired:
                return False
            return done.returncode == 0 and answer in done.stdout

        wait_for(f"{name} answers", answers, STEP_LIMIT_S, self.root / "log" / f"{name}.log")

    def _write_settings(self, *, cgroups: bool) -> None:
        root, spec = self.root, self.spec
        texts = {
            "slurm.conf": settings.slurm_conf(spec, root, cgroups=cgroups),
            "gres.conf": settings.gres_conf(spec, root),
            "slurmdbd.conf": settings.slurmdbd_conf(root),
            "my.cnf": settings.database_conf(root),
            "init.sql": settings.DATABASE_INIT,
            "hosts": settings.hosts(spec),
            "cgroup.conf": settings.cgroup_conf(root, cgroups=cgroups),
            "node-init.sh": settings.NODE_INIT,
        }
        for name, text in texts.items():
            (root / name).write_text(text)
        (root / "slurmdbd.conf").chmod(0o600)
        for number in range(spec.gpus):
            device = root / "dev" / f"gpu{number}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # twins of /dev/null
            device.chmod(0o666)

    def _start_munge(self) -> None:
        folder = self.root / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._daemon("munged", ["munged", "--foreground", "--force", "--num-threads=4", *options])
        wait_for("munge's socket", (folder / "sock").is_socket, STEP_LIMIT_S, self.root / "log" / "munged.out")

    def _start_database(self) -> None:
        conf, log = self.root / "my.cnf", self.root / "log" / "mariadbd.out"
        install = [
            "mariadb-install-db",
            f"--defaults-file={conf}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
        done = subprocess.run(install, capture_output=True, text=True, timeout=60, env=self.environment())
        if done.returncode:
            raise ClusterError(f"mariadb-install-db failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        self._daemon("mariadbd", ["mariadbd", f"--defaults-file={conf}", f"--init-file={self.root}/init.sql"])
        wait_for("MariaDB", lambda: "ready for connections" in log.read_text(errors="replace"), STEP_LIMIT_S, log)


def wait_until(what: str, condition: object, limit_s: float) -> None:
    """For tests: poll a callable; ClusterError when it stays false."""
    assert callable(condition)
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            raise ClusterError(f"{what}: not after {limit_s:g} s")
        time.sleep(0.25)
