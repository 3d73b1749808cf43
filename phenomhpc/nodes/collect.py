"""Gathers a node's facts.  Whatever may hang (a mount, a driver) is asked in a child that is killed, and not waited for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from phenomhpc.nodes.gate import (
    GPU_FIELDS,
    PROCESS_FIELDS,
    ROW_FIELDS,
    FolderFacts,
    Gpu,
    NodeFacts,
    parse_gpus,
    parse_processes,
)

FOLDER_LIMIT_S = 20.0
GPU_LIMIT_S = 20.0
_GRACE_S = 0.5
MEBIBYTE = 2**20

# What the child does, with the standard library alone: this interpreter's own files may lie on the mount that hangs.
_USE_FOLDER = """
import json, os, sys, time

def write(path, said):
    data = os.urandom(65536)
    began = time.time()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
    os.write(descriptor, data)
    os.fsync(descriptor)
    ended, stamp = time.time(), os.fstat(descriptor).st_mtime
    # Nothing to say while the file's time lies between the two moments: a slow fsync is no wrong clock.
    said["clock_skew_s"] = min(max(stamp, began), ended) - stamp
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, 0)
    same = os.read(descriptor, 2 * len(data)) == data
    os.close(descriptor)
    os.unlink(path)
    if not same:
        sys.exit("what was written is not what is read")

def read(folder):
    with os.scandir(folder) as entries:
        entry = next((entry for entry in entries if entry.is_file()), None)
    if entry is None and not os.listdir(folder):
        sys.exit("it is empty: is its file system mounted?")
    if entry is not None:
        with open(entry.path, "rb") as file:
            file.read(4096)

folder, name = sys.argv[1:]
said = {}
try:
    write(os.path.join(folder, name), said) if name else read(folder)
    room = os.statvfs(folder)
except OSError as error:
    sys.exit(error.strerror)
said["free_mb"] = room.f_bavail * room.f_frsize / 2**20
print(json.dumps(said))
"""


def use_folder(folder: Path, *, probe: str = "", limit_s: float = FOLDER_LIMIT_S) -> FolderFacts:
    """Write, fsync and read back the file `probe` in a folder; without a name only list it and read one of its files."""
    began = time.monotonic()
    argv = [sys.executable, "-I", "-S", "-c", _USE_FOLDER, str(folder), probe]
    out, words = ask(argv, limit_s)
    act = "not writable" if probe else "not readable"
    said = json.loads(out) if words is None else {}
    return FolderFacts(
        path=str(folder),
        written=bool(probe),
        words=None if words is None else f"{folder}: {act} ({words})",
        seconds=time.monotonic() - began,
        **said,
    )


def ask(argv: Sequence[str], limit_s: float) -> tuple[str, str | None]:
    """(stdout, None), or what was printed and why it failed: its last line, or that it did not answer in time."""
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
    except OSError as error:
        return "", f"{argv[0]}: {error.strerror}"
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        abandon(child)
        return "", f"no answer within {limit_s:g} s"
    if child.returncode:
        return out, (err.strip() or out.strip() or f"exit code {child.returncode}").splitlines()[-1]
    return out, None


def abandon(child: subprocess.Popen[str]) -> None:
    """Kill a child; one that hangs in the kernel is left to it."""
    child.kill()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.returncode = -9  # it cannot be reaped yet; init will


def memory_mb() -> int:
    """Memory of this machine, MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEBIBYTE


def query_gpus() -> tuple[tuple[Gpu, ...] | None, str | None, tuple[tuple[str, str], ...]]:
    """GPUs and what runs on them by nvidia-smi; (None, None, ()) where there is none, with words where it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None, ()
    form = "--format=csv,noheader,nounits"
    cards, words = ask([program, f"--query-gpu={','.join(GPU_FIELDS)}", form], GPU_LIMIT_S)
    if words is not None:
        return None, words, ()
    # Cards and drivers that know nothing of row remapping say so by failing.
    rows, no_rows = ask([program, f"--query-remapped-rows={','.join(ROW_FIELDS)}", form], GPU_LIMIT_S)
    apps, words = ask([program, f"--query-compute-apps={','.join(PROCESS_FIELDS)}", form], GPU_LIMIT_S)
    if words is not None:
        return None, words, ()
    try:
        return parse_gpus(cards, "" if no_rows else rows), None, parse_processes(apps)
    except ValueError as error:
        return None, f"unexpected answer: {error}", ()


def collect(folders: Sequence[FolderFacts], *, want_gpus: bool) -> NodeFacts:
    """This node's facts; the folders were looked at before."""
    gpus, words, processes = query_gpus() if want_gpus else (None, None, ())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return NodeFacts(
        hostname=socket.gethostname(),
        cpus=os.cpu_count() or 1,
        mem_mb=memory_mb(),
        folders=tuple(folders),
        visible_gpus=None if visible is None else tuple(name for name in visible.split(",") if name),
        gpus=gpus,
        gpu_words=words,
        gpu_processes=processes,
    )
