"""Where a run came from: the command, the code, the machine."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
GIT_LIMIT_S = 10
# Of untracked files: how many are named, whose content is kept, and how much of it.
UNTRACKED_FILES = 200
UNTRACKED_SUFFIXES = frozenset({".py", ".sh", ".yaml", ".yml", ".toml", ".json", ".txt", ".cfg", ".md"})
UNTRACKED_FILE_BYTES = 64 * 1024
UNTRACKED_BYTES = 512 * 1024
_LIBRARIES = ("torch", "zarr", "numcodecs", "numpy", "submitit", "hydra-core")


def git(folder: Path, *words: str) -> str | None:
    """What git says of the tree that a folder lies in; None where there is none, or no git."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _code() -> dict[str, Any]:
    """Commit and diff of the checkout the package lies in; nothing where it is installed from a wheel."""
    if not (PACKAGE.parent / ".git").exists():
        return {}
    commit = git(PACKAGE.parent, "rev-parse", "HEAD")
    return {
        "commit": commit.strip() if commit else None,
        "diff": git(PACKAGE.parent, "diff", "HEAD"),
        "untracked": untracked_files(PACKAGE.parent),
    }


def untracked_files(root: Path) -> dict[str, str | None]:
    """What git neither tracks nor ignores in a tree, by name; of small texts (code, settings) the content, else None."""
    found: dict[str, str | None] = {}
    room = UNTRACKED_BYTES
    for name in (git(root, "ls-files", "-z", "--others", "--exclude-standard") or "").split("\0")[:UNTRACKED_FILES]:
        if not name:
            continue
        found[name] = None
        file = root / name
        try:
            size = file.stat().st_size
            if file.suffix in UNTRACKED_SUFFIXES and size <= min(room, UNTRACKED_FILE_BYTES):
                found[name] = file.read_text()
                room -= size
        except (OSError, UnicodeDecodeError):
            continue
    return found


def changed_files(root: Path) -> list[str]:
    """Names in a tree that differ from its last commit: changed, staged, removed or untracked; none where there is no git."""
    fields = (git(root, "status", "--porcelain", "-z", "--no-renames") or "").split("\0")
    return [field[3:] for field in fields if field]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect_provenance(command: Sequence[str]) -> dict[str, Any]:
    """What provenance.json says of this moment: JSON values only, no secret, no environment variables."""
    return {
        "command": list(command),
        "folder": str(Path.cwd()),
        "user": getpass.getuser() if os.environ.get("USER") or os.getuid() == 0 else str(os.getuid()),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "package": str(PACKAGE),
        "versions": {name: _version(name) for name in _LIBRARIES},
        **_code(),
    }
