"""A node's fingerprint: one file, standard library only, Python 3.9 or newer, so that it runs where nothing of ours is installed.

    python3 -I -S probe.py [--site /etc/phenomhpc/site.json]   the fingerprint as JSON; also from stdin (ssh NODE python3 -I -S -)
    python3 -I -S probe.py --short                              the values that runs may insist on, and their digest
    python3 -I -S probe.py --record /etc/phenomhpc/manifest.json   what a role has just written, for later comparisons

It only reads, but for --record.  Each section is gathered in a child with a time limit of its own, which is killed with
whatever it started when it does not answer; one that hangs in the kernel is left to it, and named under `silent`.
A secret is told as a keyed, slow digest: nobody learns it, or can guess it, from a report.
"""

from __future__ import annotations

import fnmatch
import glob
import grp
import hashlib
import hmac
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# Evaluated, and so in the old way: X | Y of types needs 3.10.
Values = dict[str, Any]
Words = dict[str, str]

SCHEMA = 1
# A site.json's text, put in here by who sends this file through a pipe; else the host's own is read.
GIVEN_SITE = ""
SITE = "/etc/phenomhpc/site.json"
MANIFEST = "/etc/phenomhpc/manifest.json"
KEY = "/etc/phenomhpc/fingerprint.key"
MMFS = "/usr/lpp/mmfs/bin"
LIMIT_S = 20.0
ROUNDS = 200_000
LARGEST_FILE = 16 * 2**20
MODULES = ("nvidia", "nvidia_peermem", "mlx5_core", "mmfslinux", "gdrdrv", "knem", "lustre")
# systemd-sysctl (sysctl.d(5)): files of all folders by name, a later name wins; of one name the first folder's counts.
SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
UNIT_TYPES = ("service", "socket", "timer", "mount", "path")
CUDA = "/usr/local/cuda/version.json"


# -- children ---------------------------------------------------------------------------------------------------------


def gather(sections: dict[str, Callable[[], Any]], limit_s: float) -> tuple[Values, Words, dict[str, float]]:
    """Run {name: function} in children at once: ({name: value}, {name: why it is silent}, {name: seconds})."""
    children: dict[int, tuple[str, int, list[bytes]]] = {}
    began = time.monotonic()
    for name, function in sections.items():
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_child(function, reading, writing)
        os.close(writing)
        children[reading] = (name, pid, [])
    values: Values = {}
    silent: Words = {}
    seconds: dict[str, float] = {}
    while children:
        left = began + limit_s - time.monotonic()
        ready = select.select(list(children), [], [], max(0.0, left))[0]
        if not ready and left <= 0:
            break
        for reading in ready:
            name, pid, parts = children[reading]
            data = os.read(reading, 1 << 16)
            if data:
                parts.append(data)
                continue
            os.close(reading)
            del children[reading]
            _, status = os.waitpid(pid, 0)
            seconds[name] = round(time.monotonic() - began, 3)
            _take(name, b"".join(parts), status, values, silent)
    for name, pid, _ in children.values():
        silent[name] = f"no answer within {limit_s:g} s"
        _kill(pid)
    return values, silent, seconds


def _be_child(function: Callable[[], Any], reading: int, writing: int) -> None:
    code = 1
    try:
        os.setsid()
        os.close(reading)
        try:
            said = {"value": function()}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        data = json.dumps(said).encode()
        while data:
            data = data[os.write(writing, data) :]
        code = 0
    finally:
        os._exit(code)


def _take(name: str, data: bytes, status: int, values: Values, silent: Words) -> None:
    try:
        said = json.loads(data)
    except ValueError:
        silent[name] = f"it died (status {status})"
        return
    if "error" in said:
        silent[name] = said["error"]
    else:
        values[name] = said["value"]


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.01)


def tell(*argv: str) -> str:
    """stdout of a program, which does not ask and speaks English; raises OSError or RuntimeError with its last words."""
    environment = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive", SYSTEMD_COLORS="0")
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{argv[0]}: {words[-1] if words else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def read_text(path: str) -> str | None:
    """A file's text without white space around it; None where it is not there or not ours to read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


# -- sections ---------------------------------------------------------------------------------------------------------


def system() -> Words:
    """Operating system, kernel, clock source."""
    release = {}
    for line in (read_text("/etc/os-release") or "").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            release[name] = value.strip("\"'")
    return {
        "os": f"{release.get('ID', '?')} {release.get('VERSION_ID', '')}".strip(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
    }


def packages() -> Values:
    """Every package: {"versions": {name: version}, "held": [...], "manual": [...]}; NAME:ARCH where there are several."""
    if shutil.which("dpkg-query"):
        return _dpkg()
    if shutil.which("rpm"):
        return _rpm()
    return {"versions": {}, "held": [], "manual": []}


def _dpkg() -> Values:
    form = "${binary:Package}\t${Version}\t${db:Status-Want}\t${db:Status-Status}\n"
    versions, held = {}, []
    for line in tell("dpkg-query", "-W", "-f", form).splitlines():
        name, version, want, status = line.split("\t")
        if status in ("not-installed", "config-files"):
            continue
        versions[name] = version if status == "installed" else f"{version} ({status})"
        if want == "hold":
            held.append(name)
    automatic = set()
    for stanza in (read_text("/var/lib/apt/extended_states") or "").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        if fields.get("Auto-Installed") == "1":
            automatic.add(fields.get("Package"))
    manual = sorted(name for name in versions if name.partition(":")[0] not in automatic)
    return {"versions": versions, "held": sorted(held), "manual": manual}


def _rpm() -> Values:
    versions = {}
    form = "%{NAME}\t%{ARCH}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\n"
    for line in sorted(tell("rpm", "-qa", "--qf", form).splitlines()):
        name, arch, version = line.split("\t")
        if name != "gpg-pubkey":
            versions[name if name not in versions else name + ":" + arch] = (
                version[2:] if version.startswith("0:") else version
            )
    locks = "/etc/dnf/plugins/versionlock.list"
    lines = [line for line in (read_text(locks) or "").splitlines() if line and not line.startswith("#")]
    # A line is NAME-EPOCH:VERSION-RELEASE.ARCH, or begins with NAME-VERSION.
    held = sorted({name for name in versions for line in lines if re.match(re.escape(name) + r"-\d", line)})
    return {"versions": versions, "held": held, "manual": sorted(versions)}


def candidates(names: list[str]) -> Words:
    """What apt would install of each package: {name: version}."""
    if not names or not shutil.which("apt-cache"):
        return {}
    # No cache is written: this only reads.
    argv = ["apt-cache", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "policy", *names]
    found, name = {}, None
    for line in tell(*argv).splitlines():
        if line and not line[0].isspace():
            name = line.rstrip(":")
        elif line.startswith("  Candidate: ") and name is not None:
            found[name] = line.split(": ", 1)[1]
    return found


def files(site: Values, classes: list[str] | None) -> dict[str, Values | None]:
    """Managed folders and files: {path: {mode, owner, group, sha256 | link, package?, changed?}}; None: it is not there."""
    managed = site.get("managed") or {}
    secrets = {KEY, *(each["path"] for each in managed.get("files") or () if each.get("secret"))}
    folders = [each["path"] for each in managed.get("directories") or () if _here(each, classes)]
    found: dict[str, Values | None] = {}
    for path in [each["path"] for each in managed.get("files") or () if _here(each, classes)]:
        found[path] = describe(path, site, path in secrets)
    for folder in folders:
        for path in _below(folder):
            found.setdefault(path, describe(path, site, path in secrets))
    owners = _owners(folders, [path for path in found if found[path]])
    return {path: None if each is None else {**each, **owners.get(path, {})} for path, each in found.items()}


def _here(each: Values, classes: list[str] | None) -> bool:
    return classes is None or bool(set(each.get("hosts") or classes) & set(classes))


def _below(folder: str) -> list[str]:
    paths = []
    for root, _, names in os.walk(folder):
        paths += [os.path.join(root, name) for name in names]
        paths += [os.path.join(root, name) for name in os.listdir(root) if os.path.islink(os.path.join(root, name))]
    return sorted(set(paths))


def describe(path: str, site: Values, secret: bool = False) -> Values | None:
    """What a path is; None where there is nothing."""
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return {"error": error.strerror}
    said: Values = {
        "mode": f"{stat.S_IMODE(seen.st_mode):04o}",
        "owner": _user(seen.st_uid),
        "group": _group(seen.st_gid),
    }
    if stat.S_ISLNK(seen.st_mode):
        said["link"] = os.readlink(path)
    elif stat.S_ISREG(seen.st_mode):
        if seen.st_size > LARGEST_FILE:
            said["size"] = seen.st_size
        else:
            try:
                with open(path, "rb") as file:
                    said["sha256"] = digest_of(file.read(), site, secret)
            except OSError as error:
                said["error"] = error.strerror
    return said


def digest_of(data: bytes, site: Values, secret: bool) -> str:
    """sha256 of a file's content; of a secret PBKDF2 under the site's key where there is one, else under its name."""
    if not secret:
        return hashlib.sha256(data).hexdigest()
    try:
        with open(KEY, "rb") as file:
            key = file.read()
    except OSError:
        key = str(site.get("name", "")).encode()
    slow = hashlib.pbkdf2_hmac("sha256", data, b"phenomhpc fingerprint", ROUNDS)
    return "keyed:" + hmac.new(key or b"phenomhpc", slow, "sha256").hexdigest()[:32]


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _owners(folders: list[str], paths: list[str]) -> dict[str, Values]:
    """{path: {"package": name, "changed": is its content another than the package's}} of those that packages brought."""
    wanted, heads = set(paths), tuple(folder.rstrip("/") + "/" for folder in folders)
    found = {}
    if shutil.which("dpkg-query"):
        for listing in glob.glob("/var/lib/dpkg/info/*.list"):
            with open(listing, errors="replace") as file:
                for line in file:
                    if line.startswith(heads) and line.rstrip("\n") in wanted:
                        name = os.path.basename(listing)[: -len(".list")]
                        found[line.rstrip("\n")] = {"package": name, "changed": False}
        for line in tell("dpkg-query", "-W", "-f", "${Conffiles}\n").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] in found:
                found[words[0]]["changed"] = _other_md5(words[0], words[1])
    elif shutil.which("rpm") and heads:
        for line in tell("rpm", "-qa", "--qf", "[%{FILENAMES}\t%{=NAME}\t%{FILEDIGESTS}\n]").splitlines():
            if line.startswith(heads):
                path, name, digest = line.split("\t")
                if path in wanted:
                    found[path] = {"package": name, "changed": bool(digest) and _other_sha256(path, digest)}
    return found


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _other_md5(path: str, digest: str) -> bool:
    data = _content(path)
    if data is None or not re.match(r"^[0-9a-f]{32}$", digest):  # "newconffile", say
        return False
    try:
        return hashlib.md5(data).hexdigest() != digest
    except ValueError:  # FIPS: no MD5 here
        return False


def _other_sha256(path: str, digest: str) -> bool:
    data = _content(path)
    return data is not None and len(digest) == 64 and hashlib.sha256(data).hexdigest() != digest


def sysctls(names: list[str]) -> Values:
    """{"live": {name: value}, "files": {name: {"value", "path"}}}: what is, and what the next boot makes of the files."""
    files_say: dict[str, Words] = {}
    patterns: dict[str, Words] = {}
    for path in sysctl_files():
        for name, value in parse_sysctls(_content(path) or b""):
            (patterns if "*" in name else files_say)[name] = {"value": value, "path": path}
    for name in names:
        if name not in files_say:
            for pattern, said in patterns.items():
                if fnmatch.fnmatch(name, pattern):
                    files_say[name] = said
    live = {}
    for name in sorted(set(names) | set(files_say)):
        text = read_text("/proc/sys/" + sysctl_path(name))
        if text is not None:
            live[name] = " ".join(text.split())
    return {"live": live, "files": files_say}


def sysctl_files(folders: tuple[str, ...] = SYSCTL_FOLDERS, last: str = "/etc/sysctl.conf") -> list[str]:
    """The files in the order in which they are read: by name, of one name the first folder's; sysctl.conf is procps' last one."""
    chosen: Words = {}
    for folder in folders:
        for path in glob.glob(os.path.join(glob.escape(folder), "*.conf")):
            chosen.setdefault(os.path.basename(path), path)
    paths = [chosen[name] for name in sorted(chosen)]
    known = {os.path.realpath(path) for path in paths}
    return paths + ([last] if os.path.exists(last) and os.path.realpath(last) not in known else [])


def parse_sysctls(data: bytes) -> list[tuple[str, str]]:
    """[(name, value)] of a file of sysctl.d."""
    found = []
    for line in data.decode(errors="replace").splitlines():
        line = line.strip()
        if line and line[0] not in "#;" and "=" in line:
            name, _, value = line.partition("=")
            found.append((sysctl_name(name.strip().lstrip("-")), " ".join(value.split())))
    return found


def sysctl_name(name: str) -> str:
    """With dots between its parts: where the first separator is a slash, dots are part of a name (sysctl.d(5))."""
    first = re.search(r"[./]", name)
    return name.translate(str.maketrans("./", "/.")) if first and first[0] == "/" else name


def sysctl_path(name: str) -> str:
    """Below /proc/sys."""
    return name.translate(str.maketrans("./", "/."))


def units(names: list[str]) -> dict[str, Words]:
    """{unit: {"enabled": state, "active": state of those in `names`}} of systemd's units; {} where there is no systemd."""
    if not os.path.isdir("/run/systemd/system") or not shutil.which("systemctl"):
        return {}
    found = {}
    listing = tell("systemctl", "list-unit-files", "--no-legend", "--no-pager", "--type=" + ",".join(UNIT_TYPES))
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 2:
            found[words[0]] = {"enabled": words[1]}
    for name in names:
        lines = tell("systemctl", "show", "--property=ActiveState,LoadState,UnitFileState", "--", name).splitlines()
        said = dict(line.split("=", 1) for line in lines if "=" in line)
        absent = said.get("LoadState") == "not-found"
        found[name] = {
            "enabled": "absent" if absent else said.get("UnitFileState") or found.get(name, {}).get("enabled", ""),
            "active": said.get("ActiveState", ""),
        }
    return found


def modules() -> dict[str, Words]:
    """{module: {"loaded": version, "file": version of the one that the next boot loads}} of those that are loaded."""
    found = {}
    for name in MODULES:
        if os.path.isdir("/sys/module/" + name):
            found[name] = {"loaded": read_text("/sys/module/" + name + "/version") or ""}
            if shutil.which("modinfo"):
                try:
                    found[name]["file"] = tell("modinfo", "-F", "version", name).strip()
                except RuntimeError:
                    found[name]["file"] = ""
    return found


def limits() -> Words:
    """Limits of slurmd, which its jobs inherit, soft and hard; {} where none runs."""
    for path in glob.glob("/proc/[0-9]*/comm"):
        if read_text(path) == "slurmd":
            found = {}
            for line in (read_text(os.path.join(os.path.dirname(path), "limits")) or "").splitlines()[1:]:
                words = re.split(r"\s{2,}", line.strip())
                if len(words) >= 3:
                    found[words[0].lower().replace("max ", "").replace(" ", "_")] = words[1] + " " + words[2]
            return found
    return {}


def nvidia() -> Words:
    """Driver, GPUs, CUDA toolkit; {} where there is no NVIDIA driver."""
    found = {}
    module = read_text("/proc/driver/nvidia/version")
    if module:
        version = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", module)
        if version:
            found["module"] = version[1]
    text = read_text(CUDA)
    if text:
        found["cuda"] = json.loads(text).get("cuda", {}).get("version", "")
    program = shutil.which("nvidia-smi")
    if program:
        fields = "name,driver_version,vbios_version,memory.total"
        rows = [
            [word.strip() for word in line.split(",")]
            for line in tell(program, "--query-gpu=" + fields, "--format=csv,noheader").splitlines()
            if line.strip()
        ]
        found["gpus"] = str(len(rows))
        for position, name in enumerate(("model", "driver", "vbios", "memory")):
            found[name] = ", ".join(sorted({row[position] for row in rows}))
    found.setdefault("driver", found.get("module", ""))
    return {name: value for name, value in found.items() if value}


def rdma() -> Words:
    """{"stack": version, DEVICE: "state, rate, firmware"} of InfiniBand and RoCE."""
    found = {}
    for path in sorted(glob.glob("/sys/class/infiniband/*")):
        ports = sorted(glob.glob(path + "/ports/*"))
        said = [read_text(port + "/state") or "" for port in ports] + [
            read_text(port + "/rate") or "" for port in ports
        ]
        found[os.path.basename(path)] = ", ".join([*said, read_text(path + "/fw_ver") or ""])
    if shutil.which("ofed_info"):
        found["stack"] = tell("ofed_info", "-n").strip()
    return found


def gpfs() -> Words:
    """This node's state as Storage Scale says it; {} where it is not installed."""
    folder = os.environ.get("PHENOMHPC_MMFS", MMFS)
    if not os.path.exists(os.path.join(folder, "mmgetstate")):
        return {}
    rows = parse_colons(tell(os.path.join(folder, "mmgetstate"), "-Y"))
    return {"state": rows[0].get("state", "")} if rows else {}


def parse_colons(text: str) -> list[Words]:
    """Rows of the mm commands' -Y: `command:section:HEADER:...` names the fields of what follows; values are percent-encoded."""
    from urllib.parse import unquote

    rows, heads = [], {}
    for line in text.splitlines():
        words = line.split(":")
        if len(words) < 3:
            continue
        if words[2] == "HEADER":
            heads[words[1]] = words
        elif words[1] in heads:
            pairs = zip(heads[words[1]][3:], words[3:])
            rows.append(dict({"section": words[1]}, **{name: unquote(value) for name, value in pairs if name}))
    return rows


def python_environment(path: str) -> Values:
    """The installed set: {"path", "version", "environment": digest, "distributions": {name: "VERSION DIGEST"}}."""
    if not path or not os.path.isdir(path):
        return {"path": path, "absent": True} if path else {}
    distributions, lines = {}, []
    for folder in _site_folders(path):
        for info in sorted(glob.glob(glob.escape(folder) + "/*.dist-info")):
            name, version, record = distribution(info)
            distributions[name] = f"{version} {record}"
            lines.append(f"{name}=={version} {record}")
        for extra in sorted(glob.glob(glob.escape(folder) + "/*.pth")):
            lines.append(f"{os.path.basename(extra)} {hashlib.sha256(_content(extra) or b'').hexdigest()}")
    settings = {}
    for line in (read_text(path + "/pyvenv.cfg") or "").splitlines():
        name, _, value = line.partition("=")
        settings[name.strip()] = value.strip()
    return {
        "path": os.path.realpath(path),
        "version": settings.get("version") or settings.get("version_info") or "",
        "environment": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32],
        "distributions": distributions,
    }


def _site_folders(path: str) -> list[str]:
    """Where an environment's packages are: its own folder, and those that its .pth files name."""
    folders = sorted(glob.glob(glob.escape(path) + "/lib/python3*/site-packages"))
    for folder in list(folders):
        for extra in sorted(glob.glob(glob.escape(folder) + "/*.pth")):
            lines = [os.path.join(folder, line) for line in (read_text(extra) or "").splitlines() if line.strip()]
            folders += [line for line in lines if os.path.isdir(line)]
    return list(dict.fromkeys(os.path.realpath(folder) for folder in folders))


def distribution(info: str) -> tuple[str, str, str]:
    """(name, version, digest of what it installed) of a .dist-info: of RECORD without what differs from place to place."""
    base = os.path.basename(info)[: -len(".dist-info")]
    name, _, version = base.rpartition("-")
    kept = []
    for line in (_content(info + "/RECORD") or b"").decode(errors="replace").splitlines():
        path, _, rest = line.rpartition(",")[0].rpartition(",")
        # Not compiled files, scripts (their first line is a path), nor who installed it and when.
        if rest and "__pycache__" not in path and not path.startswith("..") and ".dist-info/" not in path:
            kept.append(path + " " + rest)
    digest = hashlib.sha256("\n".join(sorted(kept)).encode())
    digest.update(_content(info + "/METADATA") or b"")
    return re.sub(r"[-_.]+", "-", name).lower(), version, digest.hexdigest()[:16]


# -- the whole --------------------------------------------------------------------------------------------------------


def short_values(values: Values, site: Values) -> Words:
    """What runs compare, by the names that the lock's drift part uses; what is not there has no value."""
    card, env = values.get("nvidia", {}), values.get("python", {})
    shipped = {name: text.partition(" ")[0] for name, text in env.get("distributions", {}).items()}
    versions = values.get("packages", {}).get("versions", {})
    slurmd = versions.get("slurmd") or versions.get("slurm-smd-slurmd") or versions.get("slurm-slurmd")
    fabric = _of(versions, "nvidia-fabricmanager") or _of(versions, "nvidia-fabric-manager")
    nccl = _of(shipped, "nvidia-nccl") or without_epoch(versions.get("libnccl2") or versions.get("libnccl"))
    said = {
        "os": values.get("system", {}).get("os"),
        "kernel": values.get("system", {}).get("kernel"),
        "nvidia.driver": card.get("driver"),
        "nvidia.model": card.get("model"),
        "nvidia.cuda": card.get("cuda") or _of(shipped, "nvidia-cuda-runtime"),
        "nvidia.nccl": nccl,
        "nvidia.fabricmanager": without_epoch(fabric),
        "rdma.version": values.get("rdma", {}).get("stack"),
        "gpfs.version": without_epoch(versions.get("gpfs.base")),
        "slurm.version": without_epoch(slurmd),
        "python.version": env.get("version"),
        "python.environment": "absent: " + env["path"] if env.get("absent") else env.get("environment"),
        "python.torch": shipped.get("torch"),
        "packages": digest_facts(versions)[:16] if versions else None,
        "site": ((site.get("derived") or {}).get("digest") or "")[:16],
    }
    return {name: value for name, value in said.items() if value}


def _of(versions: Words, head: str) -> str | None:
    return next((versions[name] for name in sorted(versions) if re.match(re.escape(head) + r"(-|$)", name)), None)


def without_epoch(version: str | None) -> str | None:
    return re.sub(r"^\d+:", "", version) if version else version


def digest_facts(facts: Values) -> str:
    """sha256 of facts' canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_site(path: str) -> Values:
    """site.json as a value; {} where there is none."""
    text = read_text(path)
    return json.loads(text) if text else {}


def fingerprint(site: Values, env: str, limit_s: float, short: bool) -> Values:
    """Everything, or what `short` is made of; never raises for what is on the node."""
    host = socket.gethostname().partition(".")[0]
    hosts = (site.get("derived") or {}).get("hosts") or {}
    classes = hosts.get(host)
    env = env or (site.get("python") or {}).get("env_path") or ""
    pinned = [each["name"] for each in site.get("packages") or () if _here(each, classes)]
    sections = {
        "system": system,
        "packages": packages,
        "nvidia": nvidia,
        "rdma": rdma,
        "python": lambda: python_environment(env),
    }
    if not short:
        sections.update(
            {
                "candidates": lambda: candidates(pinned),
                "files": lambda: files(site, classes),
                "sysctls": lambda: sysctls(sorted(site.get("sysctls") or {})),
                "units": lambda: units([each["name"] for each in site.get("units") or () if _here(each, classes)]),
                "modules": modules,
                "limits": limits,
                "gpfs": gpfs,
                "manifest": lambda: read_site(MANIFEST),
            }
        )
    values, silent, seconds = gather(sections, limit_s)
    short_ones = short_values(values, site)
    told = {name: value for name, value in values.items() if not short or name == "python"}
    return {
        "schema": SCHEMA,
        "host": host,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "classes": classes,
        "digest": digest_facts({"values": short_ones, **told}),
        "values": short_ones,
        "silent": silent,
        "seconds": seconds,
        **told,
    }


def record(path: str, site: Values, env: str, limit_s: float, accept: bool) -> str:
    """Write down what the roles have just made: the lock's own files, the environment, and (once) which packages there are.

    What the lock does not name is never taken in, so that applying the roles again does not make a stray file a rightful one.
    """
    old = read_site(path)
    seen = fingerprint(site, env, limit_s, short=False)
    wrong = [name for name in ("files", "packages", "python") if name in seen["silent"]]
    if wrong:
        raise RuntimeError(f"nothing is recorded: {wrong[0]}: {seen['silent'][wrong[0]]}")
    named = {each["path"] for each in (site.get("managed") or {}).get("files") or ()}
    new = {
        "schema": SCHEMA,
        "files": {name: each for name, each in sorted(seen["files"].items()) if name in named and name != path},
        "packages": seen["packages"]["manual"] if accept or "packages" not in old else old["packages"],
        "python": {name: seen["python"].get(name) for name in ("path", "environment", "distributions")},
    }
    before = old.get("python") or {}
    if before.get("path") == new["python"]["path"] and before.get("environment") and not accept:
        new["python"] = before  # a version's folder never changes: what was put there is what belongs there
    text = json.dumps(new, indent=1, sort_keys=True) + "\n"
    if read_text(path) == text.strip():
        return "unchanged"
    scratch = f"{path}.tmp-{os.getpid()}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(scratch, path)
    return "changed"


def main(argv: list[str]) -> int:
    """The command line; the exit code is 0, or 2 for wrong use and a site.json that is none."""
    options = {"--site": SITE, "--env": "", "--limit": str(LIMIT_S), "--record": ""}
    switches = {"--short": False, "--accept-packages": False}
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word in switches:
            switches[word] = True
        elif name in options and (equals or words):
            options[name] = value if equals else words.pop(0)
        else:
            known = ", ".join([*options, *switches])
            print(f"probe: {word}: no such option, or its value is missing; there are {known}", file=sys.stderr)
            return 2
    try:
        site = json.loads(GIVEN_SITE) if GIVEN_SITE else read_site(options["--site"])
        limit_s = float(options["--limit"])
        if options["--record"]:
            print(record(options["--record"], site, options["--env"], limit_s, switches["--accept-packages"]))
        else:
            print(json.dumps(fingerprint(site, options["--env"], limit_s, switches["--short"])))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
