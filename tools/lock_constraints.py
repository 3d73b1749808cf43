"""Turn uv.lock into pip constraints: NAME==VERSION, one per line.

pip installs, because it honours a machine's own wheel folder (a CPU build of torch, say), which uv does not; the versions
are the lock's.  Usage: python tools/lock_constraints.py uv.lock > constraints.txt
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def constraints(lock: str) -> list[str]:
    """Lines of a constraints file for every package of the lock but the project itself.

    Raises ValueError when the lock holds two versions of one package: a constraint cannot say which.
    """
    versions: dict[str, str] = {}
    for package in tomllib.loads(lock)["package"]:
        if "registry" not in package["source"]:
            continue
        name, version = package["name"], package["version"]
        if versions.setdefault(name, version) != version:
            raise ValueError(
                f"uv.lock: {name} has the versions {versions[name]} and {version}; narrow tool.uv.environments"
            )
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


if __name__ == "__main__":
    print("\n".join(constraints(Path(sys.argv[1]).read_text())))
