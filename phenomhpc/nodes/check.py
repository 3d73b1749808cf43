"""The node check that slurmd runs as root (HealthCheckProgram), with the site's lock inside: standard library only.

`phenomhpc node check --write PATH` puts probe.py, this file and the lock into one file.  Each check runs in a child with a
limit of its own, so that a mount or a driver that hangs is named instead of holding up the rest; all end within Slurm's 60 s.
It drains with REASON and what is wrong, resumes only what it drained itself, and touches no node that anybody else drained.

Written from the manuals of Slurm, NVIDIA and Storage Scale; GPUs and Storage Scale were never there when it was tested.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

from phenomhpc.nodes.probe import GIVEN_SITE, MMFS, Values, gather, limits, parse_colons, read_text, tell

# Who drained: nothing else of ours begins so, and no person's reason should.
REASON = "phenomhpc: check: "
_NO_VALUE = ("", "N/A", "[N/A]", "[Not Supported]", "Not Supported", "[Unknown Error]")
_LONGEST_REASON = 200
SCONTROL_S = 8.0
_KMSG_BYTES = 1 << 22


# -- pure: what to do -------------------------------------------------------------------------------------------------


def parse_node(text: str) -> tuple[set[str], str]:
    """(states, reason) of `scontrol show node -o`: State=IDLE+DRAIN ... Reason=words [root@2026-01-31T12:00:00]."""
    state = re.search(r"\bState=(\S+)", text)
    reason = re.search(r"\bReason=(.*?)(?: \[[^\]]*@[^\]]*\])?(?: Comment=.*)?\s*$", text, re.MULTILINE)
    states = {word.rstrip("*~#!%$@^-") for word in (state[1] if state else "").split("+")}
    return states, reason[1] if reason else ""


def decide(states: set[str], reason: str, problems: list[str]) -> tuple[str, str]:
    """("drain" | "resume" | "", reason) from the node's states and reason in Slurm, and what is wrong with it now."""
    words = (REASON + "; ".join(problems))[:_LONGEST_REASON]
    ours = reason.startswith(REASON)
    drained = bool(states & {"DRAIN", "DRAINED", "DRAINING"})
    if problems:
        if not drained and "DOWN" not in states:
            return "drain", words
        return ("drain", words) if drained and ours and reason != words else ("", "")
    # A node that is down besides, or being rebooted, is somebody else's, whatever the reason says.
    away = any(state.startswith(("DOWN", "FAIL", "REBOOT", "MAINT", "NOT_RESPONDING", "UNKNOWN")) for state in states)
    return ("resume", "") if drained and ours and not away else ("", "")


def xids(text: str, ignored: list[int]) -> list[str]:
    """Xid errors of the kernel's log that are not the application's: `GPU 0000:17:00: Xid 79`."""
    found = re.findall(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d+)", text)
    return list(dict.fromkeys(f"GPU {place}: Xid {number}" for place, number in found if int(number) not in ignored))


def rows_of(text: str) -> list[list[str]]:
    """Rows of nvidia-smi's csv,noheader,nounits; what it does not tell is empty."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]
    return [["" if word in _NO_VALUE else word for word in row] for row in rows]


def number(text: str) -> float:
    """The number that a text begins with; 0 where it does not."""
    found = re.match(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", text.strip())
    return float(found[0]) if found else 0.0


def is_ours(path: str) -> str:
    """Why root must not run a file: what of it, or of a folder above it, others may write; "" where nobody else may."""
    path = os.path.realpath(path)
    while True:
        seen = os.stat(path)
        sticky = stat.S_ISDIR(seen.st_mode) and seen.st_mode & stat.S_ISVTX
        if seen.st_uid != 0 or (seen.st_mode & 0o022 and not sticky):
            return f"{path} may be written by others than root"
        if path == "/":
            return ""
        path = os.path.dirname(path)


# -- checks: each returns what is wrong, one phrase each ----------------------------------------------------------------


def smi(fields: str, query: str = "gpu") -> list[list[str]]:
    """Rows of nvidia-smi."""
    return rows_of(tell("nvidia-smi", f"--query-{query}={fields}", "--format=csv,noheader,nounits"))


def check_gpus(wanted: Values, count: int) -> list[str]:
    """Driver, number and model."""
    rows = smi("index,name,driver_version")
    said = [] if len(rows) == count else [f"{len(rows)} GPUs where {count} belong"]
    said += [f"driver {row[2]}, not {wanted['driver']}" for row in rows[:1] if row[2] != wanted["driver"]]
    model = wanted.get("model")
    return said + [f"GPU {row[0]}: {row[1]}, not {model}" for row in rows if model and row[1] != model]


def check_gpu_memory() -> list[str]:
    """Uncorrected errors, and pages or rows that await a reset."""
    said = []
    for index, errors, pages in smi("index,ecc.errors.uncorrected.volatile.total,retired_pages.pending"):
        if errors not in ("", "0"):
            said.append(f"GPU {index}: {errors} uncorrected memory errors")
        if pages not in ("", "0", "No"):
            said.append(f"GPU {index}: memory pages wait for a reset")
    try:
        rows = smi("gpu_bus_id,remapped_rows.pending,remapped_rows.failure", "remapped-rows")
    except RuntimeError:  # cards that remap no rows say so by failing
        return said
    for place, pending, failure in rows:
        if pending not in ("", "0", "No"):
            said.append(f"GPU {place}: memory rows wait for a reset")
        if failure not in ("", "0", "No"):
            said.append(f"GPU {place}: no spare memory rows are left")
    return said


def check_pcie(least: Values) -> list[str]:
    """Each GPU's link.  The generation falls when a GPU idles, so the one that it can reach here counts."""
    said = []
    for index, generation, width in smi("index,pcie.link.gen.max,pcie.link.width.current"):
        if generation and number(generation) < least["generation"]:
            said.append(f"GPU {index}: PCIe generation {generation}, not {least['generation']}")
        if width and number(width) < least["width"]:
            said.append(f"GPU {index}: {width} PCIe lanes, not {least['width']}")
    return said


def check_xid(ignored: list[int]) -> list[str]:
    """The kernel's log since the boot, as far as it is kept."""
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    parts, size = [], 0
    while size < _KMSG_BYTES:
        try:
            data = os.read(descriptor, 8192)
        except BrokenPipeError:  # overwritten while it was read; the next one is there
            continue
        except BlockingIOError:
            break
        parts.append(data)
        size += len(data)
    return xids(b"".join(parts).decode(errors="replace"), ignored)


def check_rdma(devices: list[str], rate_gbps: float | None) -> list[str]:
    """Ports that are down or slow."""
    said = []
    for device in devices:
        port = "/sys/class/infiniband/" + device + "/ports/1"
        state, rate = read_text(port + "/state"), read_text(port + "/rate")
        if state is None:
            said.append(f"{device} is not there")
        elif "ACTIVE" not in state:
            said.append(f"{device} is {state}")
        elif rate_gbps and number(rate or "") < rate_gbps:
            said.append(f"{device} at {rate}, not {rate_gbps:g} Gb/sec")
    return said


def check_gpfs(folder: str) -> list[str]:
    """The daemon's state."""
    rows = parse_colons(tell(os.path.join(folder, "mmgetstate"), "-Y"))
    state = rows[0].get("state", "?") if rows else "?"
    return [] if state == "active" else [f"is {state}, not active"]


def check_mount(path: str) -> list[str]:
    """It is mounted, and answers."""
    if not os.path.ismount(path):
        return ["is not mounted"]
    os.listdir(path)
    os.statvfs(path)
    return []


def check_free(path: str, least_mb: int) -> list[str]:
    """Space left for root's own files."""
    seen = os.statvfs(path)
    free = seen.f_bavail * seen.f_frsize / 2**20
    return [] if free >= least_mb else [f"{free:.0f} MiB free, not {least_mb}"]


def check_clock(most_s: float) -> list[str]:
    """chronyd's offset (chronyc(1), tracking: the fifth value is the system's time against NTP's, the last the leap status)."""
    words = tell("chronyc", "-c", "tracking").strip().split(",")
    if words[-1].startswith("Not synch"):
        return ["not synchronised"]
    offset = number(words[4])
    return [] if abs(offset) <= most_s else [f"{offset:+.3f} s off, more than {most_s:g}"]


def check_unit(name: str) -> list[str]:
    """systemd's word."""
    state = tell("systemctl", "show", "--property=ActiveState", "--value", "--", name).strip()
    return [] if state == "active" else [f"is {state or 'not known'}, not active"]


def check_memlock() -> list[str]:
    """slurmd's own limit, which jobs that use RDMA inherit."""
    limit = limits().get("locked_memory")
    return [] if limit in (None, "unlimited unlimited") else [f"slurmd's limit is {limit}, not unlimited"]


def check_kernel(release: str) -> list[str]:
    """The running one."""
    found = os.uname().release
    return [] if found == release else [f"{found} is running, not {release}"]


def checks_of(site: Values, host: str) -> dict[str, Callable[[], list[str]]]:
    """The checks of a host by name, from the lock; none that its parts do not ask for."""
    asked, card, links, gpfs = site["checks"], site.get("nvidia"), site.get("rdma"), site.get("gpfs")
    found: dict[str, Callable[[], list[str]]] = {}
    gpus = gpus_of(site, host)
    if card and gpus:
        found["gpu"] = lambda: check_gpus(card, gpus)
        found["gpu memory"] = check_gpu_memory
        found["xid"] = lambda: check_xid(asked["ignore_xid"])
        if asked.get("pcie"):
            found["pcie"] = lambda: check_pcie(asked["pcie"])
    if links and links["devices"]:
        found["rdma"] = lambda: check_rdma(links["devices"], links.get("rate_gbps"))
    if gpfs:
        found["gpfs"] = lambda: check_gpfs(MMFS)
    for path in [*(each["path"] for each in (gpfs["mounts"] if gpfs else ())), *asked["mounts"]]:
        found["mount " + path] = lambda path=path: check_mount(path)  # type: ignore[misc]
    for path, least in asked["free_mb"].items():
        found["space " + path] = lambda path=path, least=least: check_free(path, least)  # type: ignore[misc]
    for name in asked["units"]:
        found["unit " + name] = lambda name=name: check_unit(name)  # type: ignore[misc]
    if site["time"]["servers"]:
        found["clock"] = lambda: check_clock(site["time"]["max_offset_s"])
    if asked["memlock"]:
        found["memlock"] = check_memlock
    if site.get("kernel"):
        found["kernel"] = lambda: check_kernel(site["kernel"]["release"])
    return found


def gpus_of(site: Values, host: str) -> int:
    """GPUs that belong into a host."""
    count = site["derived"]["gpus"].get(host, 0)
    return int(count)


def problems_on(site: Values, host: str) -> list[str]:
    """What is wrong with this host: `NAME: words`; a check that did not answer is wrong by its name."""
    asked = site["checks"]
    values, silent, _ = gather(checks_of(site, host), asked["each_s"])
    said = {**{name: [why] for name, why in silent.items()}, **values}
    return [f"{name}: {words}" for name in sorted(said) for words in said[name]]


# -- Slurm ------------------------------------------------------------------------------------------------------------


def slurm(*words: str) -> str:
    """scontrol's words; raises RuntimeError when it does not answer."""
    values, silent, _ = gather({"scontrol": lambda: tell("scontrol", *words)}, SCONTROL_S)
    if silent:
        raise RuntimeError("scontrol: " + silent["scontrol"])
    return str(values["scontrol"])


def act(host: str, problems: list[str]) -> str:
    """Drain or resume where that is ours to do; what was done, in words."""
    todo, reason = decide(*parse_node(slurm("show", "node", "-o", host)), problems)
    if todo == "drain":
        slurm("update", "NodeName=" + host, "State=DRAIN", "Reason=" + reason)
    elif todo == "resume":
        slurm("update", "NodeName=" + host, "State=RESUME")
    return {"drain": "drained", "resume": "resumed"}.get(todo, "")


def run_check(site: Values, host: str, dry_run: bool) -> int:
    """Look, say, act: 0 fit, 1 not fit or Slurm does not answer."""
    began = time.monotonic()
    problems = problems_on(site, host)
    for words in problems:
        print("node_check: " + words)
    done = ""
    if not dry_run:
        try:
            done = act(host, problems)
        except RuntimeError as error:
            print(f"node_check: nothing is changed: {error}")
            return 1
    said = "not fit" if problems else "fit"
    print(f"node_check: {host}: {said}{', ' + done if done else ''}; {time.monotonic() - began:.1f} s")
    return 1 if problems else 0


def check_main(argv: list[str]) -> int:
    """The program: no word, or --dry-run, which only looks and says."""
    if argv not in ([], ["--dry-run"]):
        print("node_check: takes no word but --dry-run", file=sys.stderr)
        return 2
    site: dict[str, Any] = json.loads(GIVEN_SITE)
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ["PATH"] = ":".join(site["checks"]["path"])
    why = is_ours(__file__) if os.geteuid() == 0 else ""
    if why:
        print(f"node_check: nothing is done: {why}", file=sys.stderr)
        return 2
    return run_check(site, socket.gethostname().partition(".")[0], dry_run=bool(argv))


if __name__ == "__main__":
    sys.exit(check_main(sys.argv[1:]))
