"""The processes below this one: who they are, what they hold in memory, and how they are ended.  Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
DUMP_LIMIT_S = 30
KILL_LIMIT_S = 20.0


def adopt_orphans() -> None:
    """Processes whose parents below this one die become this one's children, so that none is lost sight of."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_alive(pid: int) -> bool:
    """Does a process exist that is no zombie?"""
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"


def _stat(pid: int) -> list[str] | None:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(root: int) -> list[int]:
    """Living processes below `root`, parents first."""
    below = _children_by_parent()
    found = [root]
    for pid in found:
        found += below.get(pid, [])
    return found[1:]


def children(pid: int) -> list[int]:
    """Living processes that `pid` has started, or adopted."""
    return _children_by_parent().get(pid, [])


def _children_by_parent() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None and fields[0] != "Z":
                found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


def program_of(pid: int) -> str:
    """Name of the program that a process runs, at most 15 characters; empty where it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


# What a process cannot give back without swapping; "Pss" alone on kernels that do not tell kinds apart.
_OWN_KINDS = ("Pss_Anon", "Pss_Shmem")


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that processes hold together, bytes: pages that they share count once, those of files not at all."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
            known = [sizes[kind] for kind in _OWN_KINDS if kind in sizes]
            total += sum(known) if known else sizes.get("Pss", 0)
    return total


def kill_below(root: int) -> None:
    """Kill every process below `root` and wait until none is left, for KILL_LIMIT_S at most (a hung mount holds some)."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while pids := descendants(root):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def reap() -> dict[int, int]:
    """Collect ended children: wait status by pid."""
    ended = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended[pid] = status
    return ended


def dump_stacks(pids: Iterable[int]) -> str:
    """The Python stacks of processes, by py-spy; in its place the reason why there is none."""
    program = Path(sys.executable).with_name("py-spy")
    texts = []
    for pid in pids:
        command = [str(program), "dump", "--nonblocking", "--pid", str(pid)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DUMP_LIMIT_S)
            text = done.stdout if done.returncode == 0 else f"py-spy: {done.stderr.strip()}"
        except (OSError, subprocess.TimeoutExpired) as error:
            text = f"py-spy: {error}"
        fields = _stat(pid) or ["gone"]
        texts.append(f"--- stack of pid {pid}, state {fields[0]} ---\n{text.rstrip()}")
    return "\n".join(texts)


def oom_kills() -> int:
    """How many processes of this one's memory cgroup the kernel has killed for want of memory; 0 where nobody counts."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "memory":
                file = Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            elif not controllers and (Path(f"/sys/fs/cgroup{path}") / "memory.events").is_file():
                file = Path(f"/sys/fs/cgroup{path}/memory.events")
            else:
                continue
            counts = dict(entry.split() for entry in file.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0
