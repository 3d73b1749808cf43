"""Processes that outlive the one that started them, known by id and start time: an id alone may be another's by now."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class ClusterError(RuntimeError):
    """A step of bringing the cluster up or down failed; the message holds the log's tail."""


def start_time(pid: int) -> int | None:
    """Start of a living process in clock ticks since boot; None when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


class Processes:
    """The record of a cluster's processes: one JSON line each, in the order they were started."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, name: str, pid: int) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"name": name, "pid": pid, "start": start_time(pid)}) + "\n")

    def living(self, name: str | None = None) -> list[tuple[str, int]]:
        """(name, pid) of the others that still run, oldest first; `name` may end in `*`."""
        if not self._path.is_file():
            return []
        found = []
        for line in self._path.read_text().splitlines():
            entry = json.loads(line)
            fits = name is None or entry["name"] == name or (name.endswith("*") and entry["name"].startswith(name[:-1]))
            fits = fits and entry["pid"] != os.getpid()
            if fits and start_time(entry["pid"]) == entry["start"] is not None:
                found.append((entry["name"], entry["pid"]))
        return found

    def end(self, name: str, number: signal.Signals, limit_s: float = 10.0) -> None:
        """Signal every living process of this name and wait for its end; SIGKILL when it takes too long."""
        for _, pid in self.living(name):
            _signal(pid, number)
        deadline = time.monotonic() + limit_s
        while self.living(name):
            if time.monotonic() > deadline:
                for _, pid in self.living(name):
                    _signal(pid, signal.SIGKILL)
                deadline = time.monotonic() + limit_s
            _reap()
            time.sleep(0.02)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> None:
    """Zombies of our own children would look like processes that will not die."""
    for process in list(_STARTED):
        if process.poll() is not None:
            _STARTED.remove(process)


_STARTED: list[subprocess.Popen[bytes]] = []


def daemon(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, its output appended to `log`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd="/"
        )
    _STARTED.append(process)
    return process


def wait_for(what: str, condition: Callable[[], bool], limit_s: float, log: Path | None = None) -> None:
    """Poll until `condition`; ClusterError with the log's tail after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            tail = (
                "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log and log.is_file() else "(no log)"
            )
            raise ClusterError(f"{what}: not after {limit_s:g} s; the end of {log}:\n{tail}")
        _reap()
        time.sleep(0.03)
