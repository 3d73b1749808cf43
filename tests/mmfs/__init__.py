"""A simulator of Storage Scale's mm commands.  Verified against itself only: never compared with Storage Scale."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMANDS = (
    "mmlsconfig",
    "mmchconfig",
    "mmgetstate",
    "mmhealth",
    "mmstartup",
    "mmshutdown",
    "mmmount",
    "mmumount",
    "mmlscluster",
)
STATE = "PHENOMHPC_MMFS_STATE"


def install(folder: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Put the commands into a folder, with the state file beside them; returns the environment they want."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "state.json"
    file.write_text(json.dumps(state))
    program = Path(__file__).with_name("simulator.py").read_bytes()
    for name in COMMANDS:
        (folder / name).write_bytes(program)
        (folder / name).chmod(0o755)
    return {**os.environ, STATE: str(file), "PHENOMHPC_MMFS": str(folder)}


def cluster(nodes: int = 3) -> dict[str, Any]:
    """A cluster of clients n1, n2 ..., all active, one file system mounted on each."""
    names = [f"n{number}" for number in range(1, nodes + 1)]
    return {
        "cluster": "gpfs1",
        "host": "n1",
        "nodes": {name: {"state": "active", "mounts": ["fs1"]} for name in names},
        "classes": {"clients": names},
        "file_systems": ["fs1"],
        "config": {"default": {"pagepool": "1G", "maxFilesToCache": "4000"}, "clients": {"workerThreads": "48"}},
        "health": {},
        "slow_s": {},
        "calls": [],
    }
