"""Booted machines for the tests: systemd-nspawn over an overlay of one root, each in a network namespace of its own.

    ROOT (a tmpfs)/  NAME/ up work root    shared/ (bound to /shared)    key key.pub ssh.conf    log/    processes.jsonl

The machines hang on a bridge in the namespace of the control host, from which ssh and Ansible reach them; nothing of it reaches,
or can be reached from, outside.  vm.* and kernel.* are read-only there, so that the machine they run on is safe; net.* is each
machine's own.  A machine is ended by the recorded process id of its supervisor, whose PID namespace holds all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.processes import ClusterError, Processes, daemon, wait_for
from tests.nodes import images

SUBNET = "10.79.0"
CONTROL_ADDRESS = f"{SUBNET}.1"
STEP_LIMIT_S = 60.0
PROGRAMS = (
    "debootstrap",
    "systemd-nspawn",
    "dpkg-deb",
    "dpkg-scanpackages",
    "ip",
    "nsenter",
    "unshare",
    "setpriv",
    "ssh",
)

# A control group for each: else their systemds would share the groups of units of the same name.
# Exit code 133 is a reboot.  nspawn leaves its socket in /run/systemd/nspawn, which the next start refuses.
_SUPERVISE = """
set -eu
folder=$1 lower=$2 group=$3; shift 3
for tree in systemd unified .; do
    [ -e "/sys/fs/cgroup/$tree/cgroup.procs" ] || continue
    mkdir -p "/sys/fs/cgroup/$tree/$group"
    echo 0 > "/sys/fs/cgroup/$tree/$group/cgroup.procs"
done
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$folder/up,workdir=$folder/work" "$folder/root"
mkdir -p /run/systemd/nspawn
while :; do
    mount -t tmpfs tmpfs /run/systemd/nspawn
    code=0
    "$@" </dev/null || code=$?
    umount /run/systemd/nspawn
    [ $code = 133 ] || exit $code
done
"""


def why_not() -> str | None:
    """Why machines cannot be booted here; None where they can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (make test-nodes installs them as root on Debian)"
    if os.geteuid() != 0:
        return "needs root, for systemd-nspawn and network namespaces"
    probe = ["unshare", "--mount", "--pid", "--net", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(probe, capture_output=True, timeout=10).returncode:
        return "namespaces and mounts are not permitted here"
    return None


class Machines:
    """Some machines below `root`; their names become their host names.  Errors are ClusterError with the console's end."""

    def __init__(
        self, root: Path, names: Sequence[str], repositories: Sequence[Path], folders: Sequence[Path] = ()
    ) -> None:
        """repositories: of packages; they and further `folders` are seen, read-only, below /srv."""
        self.root, self.names, self._repositories = root, tuple(names), tuple(repositories)
        self._folders = (*repositories, *folders)
        self._processes = Processes(root / "processes.jsonl")
        self._space = f"phn{os.getpid()}"

    def up(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g,mode=755", "tmpfs", str(self.root)], check=True)
        try:
            (self.root / "log").mkdir()
            (self.root / "shared").mkdir()
            self._make_key()
            self._make_network()
            lower = images.root()
            for name in self.names:
                self._prepare(name)
                self._start(name, lower)
            for name in self.names:
                self.wait_booted(name)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every machine by its supervisor's id; remove the network and the memory file system."""
        self._processes.end("machine-*", signal.SIGKILL)
        for name in ["ctl", *self.names]:
            subprocess.run(["ip", "netns", "del", self._netns(name)], capture_output=True, timeout=STEP_LIMIT_S)
        wait_for("the machines' control groups are empty", self._remove_groups, STEP_LIMIT_S)
        wait_for("the memory file system is free", self._unmount, STEP_LIMIT_S)

    def __enter__(self) -> Machines:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def address(self, name: str) -> str:
        return f"{SUBNET}.{11 + self.names.index(name)}"

    def path(self, name: str, path: str) -> Path:
        """A path of a machine's own in the overlay's upper folder: what was written since it was bare."""
        return self.root / name / "up" / path.lstrip("/")

    def control(self, argv: Sequence[str]) -> list[str]:
        """`argv` as it runs on the control host: where ssh and Ansible see the machines."""
        return ["nsenter", f"--net=/run/netns/{self._netns('ctl')}", *argv]

    def run(
        self, name: str, command: str, *, check: bool = True, limit_s: float = STEP_LIMIT_S, stdin: str = ""
    ) -> str:
        """Output of a shell command on a machine, as root; ClusterError when it fails and `check` is set."""
        done = self.execute(name, command, limit_s=limit_s, stdin=stdin)
        if check and done.returncode:
            raise ClusterError(f"{name}: {command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout.strip()

    def execute(
        self, name: str, command: str, *, limit_s: float = STEP_LIMIT_S, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        argv = self.control(["ssh", "-F", str(self.root / "ssh.conf"), name, command])
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=limit_s)

    def wait_booted(self, name: str, limit_s: float = STEP_LIMIT_S) -> None:
        def booted() -> bool:
            state = self.execute(name, "systemctl is-system-running", limit_s=15).stdout.strip()
            return state in ("running", "degraded")

        wait_for(f"{name} has booted", booted, limit_s, self.root / "log" / f"{name}.out")

    # -- bringing up --------------------------------------------------------------------------------------------------

    def _netns(self, name: str) -> str:
        return f"{self._space}-{name}"

    def _unmount(self) -> bool:
        done = subprocess.run(["umount", str(self.root)], capture_output=True, timeout=STEP_LIMIT_S)
        return done.returncode == 0 or not os.path.ismount(self.root)

    def _make_key(self) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / "key")], check=True, timeout=30
        )
        options = {
            "IdentityFile": self.root / "key",
            "User": "root",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "5",
            "ControlMaster": "auto",
            "ControlPersist": "60",
            "ControlPath": self.root / "ssh-%C",
        }
        lines = ["Host *", *(f"    {name} {value}" for name, value in options.items())]
        for name in self.names:
            lines += [f"Host {name}", f"    HostName {self.address(name)}"]
        (self.root / "ssh.conf").write_text("\n".join(lines) + "\n")

    def _make_network(self) -> None:
        control = self._netns("ctl")
        words = [f"netns add {control}", f"-n {control} link set lo up", f"-n {control} link add br0 type bridge"]
        words += [f"-n {control} addr add {CONTROL_ADDRESS}/24 dev br0", f"-n {control} link set br0 up"]
        for number, name in enumerate(self.names, start=1):
            space = self._netns(name)
            words += [
                f"netns add {space}",
                f"-n {space} link set lo up",
                f"-n {control} link add veth{number} type veth peer name eth0 netns {space}",
                f"-n {control} link set veth{number} master br0 up",
                f"-n {space} addr add {self.address(name)}/24 dev eth0",
                f"-n {space} link set eth0 up",
            ]
        for line in words:
            subprocess.run(["ip", *line.split()], check=True, timeout=STEP_LIMIT_S)

    def _prepare(self, name: str) -> None:
        for part in ("up/root/.ssh", "up/etc/ssh/sshd_config.d", "up/etc/apt/sources.list.d", "work", "root"):
            (self.root / name / part).mkdir(parents=True)
        (self.root / name / "up").chmod(0o755)
        hosts = ["127.0.0.1 localhost", f"{CONTROL_ADDRESS} control", *(f"{self.address(n)} {n}" for n in self.names)]
        sources = [f"deb [trusted=yes] file:/srv/{folder.name} ./" for folder in self._repositories]
        texts: Mapping[str, str] = {
            "/etc/hostname": name,
            "/etc/hosts": "\n".join(hosts),
            "/etc/apt/sources.list": "\n".join(sources),
            # Sessions of systemd-logind, one for each task of Ansible's, would cost more than the tasks.
            "/etc/ssh/sshd_config.d/tests.conf": "UsePAM no",
            "/root/.ssh/authorized_keys": (self.root / "key.pub").read_text(),
        }
        for path, text in texts.items():
            self.path(name, path).write_text(text.rstrip() + "\n")
        self.path(name, "/root").chmod(0o700)
        self.path(name, "/root/.ssh").chmod(0o700)
        keys = ["ssh-keygen", "-q", "-A", "-f", str(self.root / name / "up")]
        subprocess.run(keys, check=True, timeout=30, capture_output=True)

    def _start(self, name: str, lower: Path) -> None:
        folder = self.root / name
        nspawn = [
            *(
                "systemd-nspawn",
                "-q",
                "--boot",
                "-D",
                str(folder / "root"),
                f"--machine={name}",
                "--register=no",
                "--keep-unit",
            ),
            *(f"--network-namespace-path=/run/netns/{self._netns(name)}", "--resolv-conf=off", "--console=read-only"),
            f"--bind={self.root}/shared:/shared",
            *(f"--bind-ro={path}:/srv/{path.name}" for path in self._folders),
        ]
        supervisor = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]
        argv = ["env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", *supervisor, "--mount-proc"]
        process = daemon(
            [*argv, "bash", "-c", _SUPERVISE, name, str(folder), str(lower), self._group(name), *nspawn],
            self._log(name),
        )
        self._processes.add(f"machine-{name}", process.pid)

    def _group(self, name: str) -> str:
        return f"{self._space}-{name}"

    def _remove_groups(self) -> bool:
        """Remove the machines' groups, deepest first; False while a dying process keeps one."""
        for tree in ("systemd", "unified", "."):
            for name in self.names:
                top = Path("/sys/fs/cgroup") / tree / self._group(name)
                for folder, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(folder).rmdir()
                if top.is_dir():
                    return False
        return True

    def _log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.out"
