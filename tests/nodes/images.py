"""The root, Debian packages and wheels that the tests' machines start from: fetched once, kept in a cache folder.

    CACHE/root-DIGEST/       what debootstrap makes: no Slurm, no munge, no chrony
    CACHE/packages-DIGEST/   a flat apt repository of everything that the roles install from Debian
    CACHE/wheels-DIGEST/     a wheel of everything that uv.lock names for users, and of what builds the project's own

CACHE is PHENOMHPC_NODES_CACHE, else /var/cache/phenomhpc-nodes.  A folder is whole or absent; the digest is that of its recipe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster import ClusterError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
UV = Path(sys.executable).parent / "uv"
SUITE = "bookworm"
BASE = "systemd,systemd-sysv,dbus,python3,python3-apt,openssh-server,procps,iproute2,sudo,ca-certificates,libpam-systemd,kmod"
PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "mariadb-server",
    "chrony",
    "python3-venv",
    "rdma-core",
    "ibverbs-utils",
    "prometheus-node-exporter",
    "unattended-upgrades",
)
# The machines' disks are a memory file system: nothing of theirs outlives a test run, so dpkg need not wait for a disk.
_DPKG = (
    "force-unsafe-io\npath-exclude /usr/share/doc/*\npath-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\n"
)
_FETCH_LIMIT_S = 600


def cache() -> Path:
    return Path(os.environ.get("PHENOMHPC_NODES_CACHE", "/var/cache/phenomhpc-nodes"))


def root() -> Path:
    """The bare root, made by debootstrap where it is not there yet (about 90 s)."""
    return _kept("root", (SUITE, BASE, _DPKG), _make_root)


def packages() -> Path:
    """The repository of Debian's packages, fetched where it is not there yet."""
    return _kept("packages", (SUITE, BASE, *PACKAGES), _fetch_packages)


def wheels() -> Path:
    """The wheels, from where this machine's pip has its own: torch in the build that it would install here."""
    return _kept("wheels", (sys.version, *(_exported(*words) for words in ((), ("--prune", "torch")))), _make_wheels)


def _exported(*words: str) -> str:
    """Exact versions of what uv.lock names for users, as the role asks for them."""
    argv = ["export", "--frozen", "--offline", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-project"]
    return _run([str(UV), *argv, "--no-dev", "-q", *words], cwd=REPOSITORY).stdout


def _make_wheels(folder: Path) -> None:
    """What only torch asks for comes as its build asks for it: a build for CPUs wants no CUDA."""
    lines = _exported().splitlines()
    with tempfile.TemporaryDirectory() as scratch:
        wanted, constraints = Path(scratch) / "wanted.txt", Path(scratch) / "constraints.txt"
        wanted.write_text(_exported("--prune", "torch"))
        constraints.write_text("\n".join(line for line in lines if not line.startswith(("cuda-", "nvidia-", "triton"))))
        torch = next(line for line in lines if line.startswith("torch=="))
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--wheel-dir", str(folder), "-c", str(constraints)]
        _run([*pip, "-r", str(wanted), torch.partition(" ")[0], "hatchling"])


def index(folder: Path) -> None:
    """(Re)write the index of a flat apt repository."""
    listing = _run(["dpkg-scanpackages", "--multiversion", "."], cwd=folder).stdout
    (folder / "Packages").write_text(listing)


def versions(folder: Path) -> dict[str, str]:
    """Package name -> version of a flat repository (the last one named)."""
    found: dict[str, str] = {}
    name = ""
    for line in (folder / "Packages").read_text().splitlines():
        key, _, value = line.partition(": ")
        if key == "Package":
            name = value
        elif key == "Version":
            found[name] = value
    return found


def _kept(kind: str, recipe: Sequence[str], make: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    kept = cache() / f"{kind}-{digest}"
    if not kept.is_dir():
        cache().mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache()))
        try:
            made.chmod(0o755)
            make(made)
            made.rename(kept)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return kept


def _mirror() -> str:
    """Where this machine has Debian's packages from."""
    wanted = ("Created-By: Packages", f"Codename: {SUITE}", "Component: main")
    found = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).stdout.split()
    if not found:
        raise ClusterError(f"apt has no source of Debian {SUITE} here; name one in /etc/apt/sources.list.d")
    return found[0]


def _make_root(folder: Path) -> None:
    _run(["debootstrap", "--variant=minbase", f"--include={BASE}", SUITE, str(folder), _mirror()])
    (folder / "etc/dpkg/dpkg.cfg.d/tests").write_text(_DPKG)
    for name in ("etc/apt/sources.list", "etc/machine-id", "etc/hostname"):
        (folder / name).unlink(missing_ok=True)
    for key in (folder / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for archive in (folder / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()


def _fetch_packages(folder: Path) -> None:
    """apt-get resolves against the bare root's own list of what is installed, and only downloads."""
    bare = root()
    state = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"):
        (state / name).mkdir(parents=True)
    keyring = bare / "usr/share/keyrings/debian-archive-keyring.gpg"
    (state / "sources.list").write_text(f"deb [signed-by={keyring}] {_mirror()} {SUITE} main\n")
    options = {
        "Dir::State": state / "state",
        "Dir::State::status": bare / "var/lib/dpkg/status",
        "Dir::Cache": state / "cache",
        "Dir::Etc": state / "etc",
        "Dir::Etc::SourceList": state / "sources.list",
        "APT::Sandbox::User": "root",
        "APT::Architecture": "amd64",
    }
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES])
    for archive in (state / "cache/archives").glob("*.deb"):
        archive.rename(folder / archive.name)
    shutil.rmtree(state)
    index(folder)


def _run(argv: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_FETCH_LIMIT_S)
    if done.returncode:
        raise ClusterError(f"{argv[0]}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done
