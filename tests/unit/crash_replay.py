"""Replays the traced system calls of a program up to a cut, and enumerates what a disk may hold after the crash.

The model is the worst that POSIX allows: data of a file counts from its fsync on; before it, none, a torn half or all
of it may be there.  Entries of a folder count from the folder's fsync on; before it, any prefix of the changes made
since may be there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRACED = "openat,write,pwrite64,fsync,rename,mkdir,unlink,ftruncate,lseek"
_CALL = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+=\s+(-?\d+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")


@dataclass(frozen=True)
class Call:
    """One successful system call inside the traced folder."""

    name: str
    path: str
    other: str = ""
    data: bytes = b""
    truncates: bool = False


@dataclass
class _Disk:
    """What is durable and what is pending."""

    contents: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    durable_entries: dict[str, int] = field(default_factory=dict)
    pending: dict[str, list[tuple[str, int | None]]] = field(default_factory=dict)

    def change(self, path: str, inode: int | None) -> None:
        if inode is None:
            self.entries.pop(path, None)
        else:
            self.entries[path] = inode
        self.pending.setdefault(str(Path(path).parent), []).append((path, inode))


def _decode(text: str) -> bytes:
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def trace(program: str, folder: Path) -> list[Call]:
    """Run a Python program (its argument: the folder) under strace; its calls inside the folder, in order."""
    log = folder.parent / "trace.txt"
    command = ["strace", "-f", "-y", "-s", "1000000", "-e", f"trace={TRACED}", "-o", str(log)]
    subprocess.run([*command, sys.executable, "-c", program, str(folder)], check=True, timeout=60)
    calls = []
    for line in log.read_text(encoding="latin-1").splitlines():
        match = _CALL.match(line)
        if match and int(match[3]) >= 0 and str(folder) in match[2]:
            calls.append(_call(match[1], match[2]))
    return [call for call in calls if call.name]


def _call(name: str, arguments: str) -> Call:
    strings = _STRING.findall(arguments)
    if name == "openat":
        return Call("open" if "O_CREAT" in arguments else "", strings[0], truncates="O_TRUNC" in arguments)
    if name in {"rename", "mkdir", "unlink"}:
        return Call(name, strings[0], strings[1] if len(strings) > 1 else "")
    if name == "lseek" and arguments.endswith(", 0, SEEK_CUR"):
        return Call("", "")  # only asks where it is
    descriptor = _DESCRIPTOR.match(arguments)
    path = descriptor[1] if descriptor else ""
    if name == "write":
        return Call("write", path, data=_decode(strings[0]))
    assert name == "fsync", f"the replay does not model {name}({arguments})"
    return Call("fsync", path)


def _apply(disk: _Disk, call: Call, number: int) -> None:
    if call.name == "open":
        if call.path not in disk.entries:
            disk.contents[number], disk.durable[number] = b"", b""
            disk.change(call.path, number)
        elif call.truncates:
            inode = disk.entries[call.path]
            disk.contents[inode] = disk.durable[inode] = b""
    elif call.name == "write":
        disk.contents[disk.entries[call.path]] += call.data
    elif call.name == "fsync":
        if call.path in disk.entries:
            disk.durable[disk.entries[call.path]] = disk.contents[disk.entries[call.path]]
        for path, inode in disk.pending.pop(call.path, []):
            if inode is None:
                disk.durable_entries.pop(path, None)
            else:
                disk.durable_entries[path] = inode
    elif call.name == "rename":
        inode = disk.entries[call.path]
        disk.change(call.path, None)
        disk.change(call.other, inode)
    elif call.name == "unlink":
        disk.change(call.path, None)


def crashes(calls: list[Call]) -> Iterator[dict[str, bytes]]:
    """Every disk (path -> content) that a crash after all of `calls` may leave."""
    disk = _Disk()
    for number, call in enumerate(calls):
        _apply(disk, call, number)
    changes = [change for folder in sorted(disk.pending) for change in disk.pending[folder]]
    for kept in range(len(changes) + 1):
        entries = dict(disk.durable_entries)
        for path, inode in changes[:kept]:
            if inode is None:
                entries.pop(path, None)
            else:
                entries[path] = inode
        for share in (0.0, 0.5, 1.0):
            yield {path: _survives(disk, inode, share) for path, inode in entries.items()}


def _survives(disk: _Disk, inode: int, share: float) -> bytes:
    whole, durable = disk.contents[inode], disk.durable[inode]
    return whole[: len(durable) + int((len(whole) - len(durable)) * share)]
