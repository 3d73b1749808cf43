"""The site lock: what a node is.  Roles, health check, Slurm's files, fingerprints, drift and defaults read this one file.

    ansible/site.lock.yml  --check-->  Lock  --as JSON, with `derived`-->  /etc/phenomhpc/site.json on every host

Only schema, name and slurm are needed; a part that a site does not have is left out.  What one part means for another
(fabric manager = driver, the pagepool is no memory of Slurm's ...) is in lock_rules.py, and checked before any host is touched.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from phenomhpc.nodes.hostlist import expand, short

SCHEMA = 1
MUST = ("nvidia.driver", "nvidia.cuda", "nvidia.nccl", "nvidia.model", "python.environment")
_TIME = re.compile(r"^(UNLIMITED|INFINITE|\d+|(\d+-)?\d+(:\d\d){1,2}|\d+-\d+)$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_XID_OF_APPLICATIONS = (13, 31, 43, 45, 68, 94)


def _quoted(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'quote it: "{value}", or YAML reads a number (12.10 would be 12.1)')
    return value


def _host_list(value: str) -> str:
    expand(value)
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in PurePosixPath(value).parts:
        raise ValueError("is no absolute path")
    return value


# What YAML would read as a number or as yes and no is wanted as text, for versions and for what other programs read.
Text = Annotated[str, BeforeValidator(_quoted), StringConstraints(min_length=1)]
Hosts = Annotated[str, StringConstraints(min_length=1), AfterValidator(_host_list)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Mode = Annotated[str, BeforeValidator(_quoted), StringConstraints(pattern=r"^0[0-7]{3}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
HostClass = Literal["controller", "database", "login", "compute"]
HOST_CLASSES: tuple[HostClass, ...] = ("controller", "database", "login", "compute")


class Part(BaseModel):
    """Base: immutable, no unknown keys, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class OnHosts(Part):
    """What is on hosts of some classes only."""

    hosts: tuple[HostClass, ...] = Field(HOST_CLASSES, description="classes of hosts; default: all")

    @property
    def everywhere(self) -> bool:
        return set(self.hosts) == set(HOST_CLASSES)


class OperatingSystem(Part):
    """As /etc/os-release says it."""

    family: Literal["debian", "redhat"]
    distribution: Text | None = Field(None, description="ID")
    release: Text | None = Field(None, description="VERSION_ID")


class Kernel(Part):
    """The running kernel."""

    release: Text = Field(description="as `uname -r` says")
    package: Name | None = Field(None, description="its package, pinned under packages")


class Nvidia(Part):
    """Driver, libraries and GPUs."""

    driver: Text
    fabricmanager: Text | None = Field(None, description="where there is an NVSwitch; must be the driver's version")
    cuda: Text | None = Field(None, description="version of the toolkit")
    nccl: Text | None = Field(
        None, description="version that the Python environment runs, else of the package libnccl2"
    )
    model: Text | None = Field(None, description="as nvidia-smi names all of a node's GPUs")
    open_modules: bool = True
    persistenced: bool = True
    packages: tuple[Name, ...] = ()


class Rdma(Part):
    """InfiniBand or RoCE."""

    stack: Literal["doca-ofed", "mlnx-ofed", "inbox"] = "inbox"
    version: Text | None = None
    devices: tuple[Name, ...] = Field((), description="must be there, with an active port")
    rate_gbps: Annotated[float, Field(gt=0)] | None = Field(None, description="least rate of each of them, Gbit/s")
    packages: tuple[Name, ...] = ()


class NodeType(Part):
    """Hosts with slurmd that are alike."""

    name: Name
    nodes: Hosts
    cpus: Positive = Field(description="logical CPUs, as `slurmd -C` says")
    sockets: Positive = 1
    cores_per_socket: Positive | None = Field(None, description="default: by the others")
    threads_per_core: Positive = 1
    memory_mb: Positive = Field(description="all of the machine's memory, as `slurmd -C` says, MiB")
    reserved_mb: Count = Field(0, description="kept for the system, MiB")
    real_memory_mb: Positive | None = Field(
        None, description="Slurm's RealMemory; default: what memory_mb, reserved_mb and GPFS's pagepool leave"
    )
    gpus: Count = 0
    gpu_type: Name | None = None
    features: tuple[Name, ...] = ()
    address: str = Field("", description="NodeAddr; empty: by name")


class Partition(Part):
    """One of Slurm's partitions."""

    name: Name
    nodes: Hosts
    default: bool = False
    max_time: Text = Field("UNLIMITED", description="minutes, h:mm:ss, d-hh:mm:ss or UNLIMITED")
    default_time: Text | None = None
    gpus_per_node: Count = Field(0, description="what the command line asks for by default")

    @field_validator("max_time", "default_time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and not _TIME.match(value):
            raise ValueError("is no time of Slurm's: minutes, h:mm:ss, d-hh:mm:ss or UNLIMITED")
        return value


class Slurm(Part):
    """Slurm and the hosts it runs on."""

    version: Text | None = None
    cluster: Name
    controller: Name
    backup_controllers: tuple[Name, ...] = ()
    database: Name | None = Field(None, description="host of slurmdbd; left out: no accounting")
    login: tuple[Name, ...] = ()
    node_types: Annotated[tuple[NodeType, ...], Field(min_length=1)]
    partitions: Annotated[tuple[Partition, ...], Field(min_length=1)]
    settings: dict[str, Text] = Field({}, description="more lines of slurm.conf")
    cgroup: dict[str, Text] = Field({}, description="more lines of cgroup.conf")


class Mount(Part):
    """A file system of GPFS."""

    name: Name
    path: AbsolutePath


class Gpfs(Part):
    """The clients of Storage Scale."""

    version: Text
    cluster: Name | None = None
    gplbin: Text | None = Field(None, description="kernel that the portability layer is built for")
    delegate: Name | None = Field(None, description="the one host on which mmchconfig is run; default: the controller")
    pagepool_mb: Positive = Field(description="of the clients, MiB; no memory of Slurm's")
    pagepool_class: Name = Field("default", description="node class of the clients; default: all nodes")
    mounts: tuple[Mount, ...] = ()
    attributes: dict[str, dict[str, Text]] = Field({}, description="of mmlsconfig, by node class; default: all nodes")
    node_classes: dict[str, Hosts] = Field({}, description="node class: host list")


class Containers(Part):
    """Versions of what runs containers; None: not installed."""

    apptainer: Text | None = None
    enroot: Text | None = None


class Repository(Part):
    """A source of packages, apt's or dnf's."""

    name: Name
    uri: Text
    suites: tuple[Text, ...] = ()
    components: tuple[Text, ...] = ()
    key: str = Field("", description="path on the host of the key that signs it; empty: trusted as it is")
    key_source: str = Field("", description="file on the control machine that is copied there")


class Package(OnHosts):
    """A package at an exact version."""

    name: Name
    version: Text
    hold: bool = True


class Limit(Part):
    """A line of limits.d."""

    domain: Text
    type: Literal["soft", "hard", "-"] = "-"
    item: Name
    value: Text


class Unit(OnHosts):
    """A unit of systemd's, as it must be; None: either way."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9@:._\\-]+\.[a-z]+$")]
    enabled: bool | None = None
    active: bool | None = None


class Time(Part):
    """chrony."""

    servers: tuple[Text, ...] = ()
    max_offset_s: Seconds = 0.1


class User(Part):
    """Somebody that a service runs as."""

    name: Name
    uid: Positive
    gid: Positive
    home: AbsolutePath = "/nonexistent"
    shell: AbsolutePath = "/usr/sbin/nologin"


class Python(Part):
    """The environment that jobs run in."""

    version: Text
    lock_sha256: Text | None = Field(None, description="of uv.lock")
    env_path: AbsolutePath = Field(description="the link that is switched")
    environment: str = Field("", description="digest of the installed set; empty: the nodes are only compared")
    wheelhouse: str = Field("", description="folder of wheels for installing offline")
    torch: Text | None = Field(None, description="version of torch, with its build")

    @field_validator("lock_sha256")
    @classmethod
    def _is_sha256(cls, value: str | None) -> str | None:
        if value is not None and not _SHA256.match(value):
            raise ValueError("is no sha256 (64 digits of 0-9a-f); sha256sum uv.lock prints it")
        return value


class Paths(Part):
    """Defaults of the command line."""

    store: AbsolutePath | None = None
    runs: AbsolutePath | None = None
    raw: AbsolutePath | None = None
    cache: AbsolutePath | None = None
    env: AbsolutePath | None = None


class Directory(OnHosts):
    """A folder in which every file must be explained by a package or by `files`."""

    path: AbsolutePath


class File(OnHosts):
    """A file that the roles write.  secret: told as a keyed digest only."""

    path: AbsolutePath
    mode: Mode | None = None
    owner: Name | None = None
    group: Name | None = None
    secret: bool = False


class Managed(Part):
    """What is watched file by file."""

    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()


class Pcie(Part):
    """Least link of each GPU."""

    generation: Positive
    width: Positive


class Checks(Part):
    """The node check that slurmd runs."""

    interval_s: Positive = Field(300, description="HealthCheckInterval")
    total_s: Seconds = Field(50, description="of all checks; Slurm kills at 60 s")
    each_s: Seconds = Field(10, description="of each check")
    free_mb: dict[AbsolutePath, Positive] = Field({}, description="least free space, MiB")
    mounts: tuple[AbsolutePath, ...] = Field((), description="mounts that must answer, beside GPFS's")
    units: tuple[Name, ...] = Field((), description="must be active")
    pcie: Pcie | None = None
    ignore_xid: tuple[Positive, ...] = Field(_XID_OF_APPLICATIONS, description="Xid errors that are the application's")
    path: tuple[AbsolutePath, ...] = Field(
        ("/usr/sbin", "/usr/bin", "/sbin", "/bin"), description="where programs are looked for; root's alone"
    )
    memlock: bool = Field(False, description="slurmd's own limit is unlimited")


class Drift(Part):
    """Patterns over the names of facts.  A name's first match in ignore, must, warn decides; none: warn."""

    must: tuple[Text, ...] = MUST
    warn: tuple[Text, ...] = ("*",)
    ignore: tuple[Text, ...] = ()
    reach: str = Field("", description="command that runs a program on {host} for `cluster drift`; empty: ssh")


class Lock(Part):
    """The whole lock."""

    schema_: Literal[1] = Field(alias="schema")
    name: Name
    os: OperatingSystem | None = None
    kernel: Kernel | None = None
    nvidia: Nvidia | None = None
    rdma: Rdma | None = None
    slurm: Slurm
    gpfs: Gpfs | None = None
    containers: Containers = Containers()
    repositories: tuple[Repository, ...] = ()
    packages: tuple[Package, ...] = ()
    sysctls: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+([./][A-Za-z0-9_*-]+)+$")], Text] = {}
    limits: tuple[Limit, ...] = ()
    units: tuple[Unit, ...] = ()
    time: Time = Time()
    users: tuple[User, ...] = ()
    python: Python | None = None
    paths: Paths = Paths()
    managed: Managed = Managed()
    monitoring: dict[Name, Annotated[int, Field(gt=0, lt=65536)]] = {}
    checks: Checks = Checks()
    drift: Drift = Drift()

    def classes(self) -> dict[str, tuple[str, ...]]:
        """Classes of every host, by its short name."""
        slurm = self.slurm
        members = {
            "controller": (slurm.controller, *slurm.backup_controllers),
            "database": (slurm.database,) if slurm.database else (),
            "login": slurm.login,
            "compute": tuple(node for kind in slurm.node_types for node in expand(kind.nodes)),
        }
        found: dict[str, list[str]] = {}
        for name in HOST_CLASSES:
            for host in members[name]:
                found.setdefault(short(host), []).append(name)
        return {host: tuple(names) for host, names in found.items()}

    def real_memory_mb(self, kind: NodeType) -> int:
        """Slurm's RealMemory of a node type, MiB: GPFS's pagepool is pinned memory that no job can have."""
        return self.left_mb(kind) if kind.real_memory_mb is None else kind.real_memory_mb

    def left_mb(self, kind: NodeType) -> int:
        """What the system and GPFS leave of a node's memory, MiB."""
        return kind.memory_mb - kind.reserved_mb - (self.gpfs.pagepool_mb if self.gpfs else 0)
