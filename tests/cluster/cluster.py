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
from tests.cluster.processes import ClusterError, Processes, daemon, wait_for
from tests.cluster.settings import CONTROLLER_ADDRESS, ClusterSpec

DEFAULT_ROOT = Path(tempfile.gettempdir()) / "phenomhpc-cluster"
STEP_LIMIT_S = 30.0
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
    missing = [name for name in PROGRAMS if shutil.which(name, path=_system_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make test installs them as root on Debian)"
    if os.geteuid() != 0:
        return "needs root, for namespaces and device nodes"
    probe = ["unshare", "--uts", "--mount", "--pid", "--net", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, timeout=10).returncode:
        return "namespaces are not permitted here"
    return None


def _system_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class Cluster:
    """One cluster below `root`.  Methods raise ClusterError in one message with the log's tail."""

    def __init__(self, root: Path = DEFAULT_ROOT, spec: ClusterSpec | None = None) -> None:
        self.root, self.spec = root, spec or ClusterSpec()
        self._processes = Processes(root / "processes.jsonl")

    # -- life ---------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Bring everything up; what a crashed cluster left in `root` is finished off first."""
        self.down()
        for name in ("state", "spool", "log", "munge", "db", "dev", "shm"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o711)
        try:
            self._write_settings()
            self._start_namespace()
            self._start_munge()
            self._start_database()
            self.start_slurmdbd()
            self.start_controller()
            for number in range(1, self.spec.nodes + 1):
                self._start_node(number)
            self.wait_idle()
        except BaseException:
            self.down(keep_logs=True)
            raise

    def down(self, *, keep_logs: bool = False) -> None:
        """End every process, by its recorded id and start time, and remove the folder."""
        for name, number in (
            ("node-*", signal.SIGKILL),
            ("init-*", signal.SIGKILL),
            ("slurmctld", signal.SIGTERM),
            ("slurmdbd", signal.SIGTERM),
            ("mariadbd", signal.SIGTERM),
            ("munged", signal.SIGTERM),
            ("namespace", signal.SIGKILL),
        ):
            self._processes.end(name, number)
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
        path = os.pathsep.join([str(Path(sys.executable).parent), _system_path()])
        state = {"PHENOMHPC_STATE": str(self.ledger.parent)}
        return {**kept, "PATH": path, "SLURM_CONF": str(self.root / "slurm.conf"), **state, **(extra or {})}

    def command(self, argv: Sequence[str], cwd: Path | None = None) -> list[str]:
        """`argv` as it runs on the login (and controller) host."""
        holder = self._holder()
        return ["nsenter", "-t", str(holder), "-u", "-m", "-n", f"--wd={cwd or Path.cwd()}", "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
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
        """Until every node is idle."""

        def idle() -> bool:
            done = self.run(["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"], check=False, timeout=15)
            return len(done.stdout.split()) == self.spec.nodes

        wait_for("all nodes idle", idle, limit_s, self.root / "log" / "slurmctld.log")

    def node_state(self, number: int) -> str:
        """sinfo's short state of a node: idle, mix, alloc, down, ..."""
        done = self.run(["sinfo", "-h", "-N", "-p", "main", "-n", self.spec.node_name(number), "-o", "%T"], timeout=15)
        return done.stdout.strip()

    # -- harm ---------------------------------------------------------------------------------------------------------

    def power_cut(self, number: int) -> None:
        """The node's PID 1 is killed: slurmd, steps and tasks are gone at once, and nobody is told."""
        self._processes.end(f"init-{self.spec.node_name(number)}", signal.SIGKILL)
        self._processes.end(f"node-{self.spec.node_name(number)}", signal.SIGKILL)

    def power_on(self, number: int) -> None:
        """Start a node that was cut."""
        self._start_node(number)

    def partition(self, number: int) -> None:
        """The node's link goes down; what runs on it runs on."""
        self._link(number, "down")

    def heal(self, number: int) -> None:
        """The link comes back."""
        self._link(number, "up")

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

    def _holder(self) -> int:
        living = self._processes.living("namespace")
        if not living:
            raise ClusterError(f"no cluster is up in {self.root}; python -m tests.cluster up")
        return living[-1][1]

    def _daemon(self, name: str, argv: Sequence[str]) -> None:
        command = [
            "env",
            f"SLURM_CONF={self.root}/slurm.conf",
            f"PATH={_system_path()}",
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

    def _write_settings(self) -> None:
        root, spec = self.root, self.spec
        texts = {
            "slurm.conf": settings.slurm_conf(spec, root),
            "gres.conf": settings.gres_conf(spec, root),
            "slurmdbd.conf": settings.slurmdbd_conf(root),
            "my.cnf": settings.database_conf(root),
            "init.sql": settings.DATABASE_INIT,
            "hosts": settings.hosts(spec),
            "cgroup.conf": "CgroupPlugin=cgroup/v1\n",
            "node-init.sh": settings.NODE_INIT,
        }
        for name, text in texts.items():
            (root / name).write_text(text)
        (root / "slurmdbd.conf").chmod(0o600)
        for number in range(spec.gpus):
            device = root / "dev" / f"gpu{number}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # twins of /dev/null
            device.chmod(0o666)

    def _start_namespace(self) -> None:
        """The controller's host: holds its namespaces, and the bridge that all nodes hang on."""
        root = self.root
        script = (
            f"hostname {settings.CONTROLLER_HOST} && mount --bind {root}/hosts /etc/hosts && ip link set lo up && "
            f"ip link add br0 type bridge && ip addr add {CONTROLLER_ADDRESS}/24 dev br0 && ip link set br0 up && "
            f"echo ok > {root}/ctl.ready && exec sleep infinity"
        )
        command = ["unshare", "--uts", "--mount", "--net", "--propagation", "private", "bash", "-c", script]
        log = root / "log" / "namespace.out"
        process = daemon(command, log)
        wait_for("controller's namespaces", (root / "ctl.ready").exists, STEP_LIMIT_S, log)
        self._processes.add("namespace", process.pid)

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

    def _start_node(self, number: int) -> None:
        root, name = self.root, self.spec.node_name(number)
        ready = root / f"{name}.ready"
        ready.unlink(missing_ok=True)
        command = ["unshare", "--uts", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
        command += ["--propagation", "private", "bash", f"{root}/node-init.sh", name, str(root)]
        log = root / "log" / f"{name}.out"
        process = daemon(["env", f"PATH={_system_path()}", *command], log)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(f"node {name}", lambda: ready.exists() and bool(children.read_text().split()), STEP_LIMIT_S, log)
        init = int(children.read_text().split()[0])
        self._processes.add(f"node-{name}", process.pid)
        self._processes.add(f"init-{name}", init)
        self._on_controller(f"ip link del {self._veth(number)} 2>/dev/null; ip link add {self._veth(number)} type veth peer "
                            f"name eth0 netns {init} && ip link set {self._veth(number)} master br0 up")  # fmt: skip
        address = f"ip addr add {self.spec.node_address(number)}/24 dev eth0 && ip link set eth0 up"
        subprocess.run(["nsenter", "-t", str(init), "-n", "--", "sh", "-c", address], check=True, timeout=10)

    def _veth(self, number: int) -> str:
        return f"ve{number}"

    def _link(self, number: int, state: str) -> None:
        self._on_controller(f"ip link set {self._veth(number)} {state}")

    def _on_controller(self, script: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._holder()), "-n", "--", "sh", "-c", script], check=True, timeout=10)


def wait_until(what: str, condition: object, limit_s: float) -> None:
    """For tests: poll a callable; ClusterError when it stays false."""
    assert callable(condition)
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            raise ClusterError(f"{what}: not after {limit_s:g} s")
        time.sleep(0.25)
