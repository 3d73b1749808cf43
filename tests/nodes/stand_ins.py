"""Stand-in packages: the names and versions of packages that cannot be installed here, and nothing else of them.

gpfs.base alone has files: links to the simulator of Storage Scale's commands (tests/mmfs), which lies on the shared folder, so
that all machines see one state.  What passes with these was never seen to work with the real things.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests import mmfs
from tests.nodes import images

# Two versions of one, for pins to choose from.
TOOLKIT, OLDER, NEWER = "nvidia-container-toolkit", "1.17.4-1", "1.17.5-1"
STRAY = "phenomhpc-stray"
DRIVER, SCALE = "570.133.20", "5.2.2-1"
NVIDIA = ("nvidia-driver-570-server-open", "nvidia-fabricmanager-570")
GPFS = ("gpfs.base", "gpfs.gpl", "gpfs.msg.en-us", f"gpfs.gplbin-{os.uname().release}")
PACKAGES = (
    (TOOLKIT, OLDER),
    (TOOLKIT, NEWER),
    (STRAY, "1.0"),
    *((name, f"{DRIVER}-1") for name in NVIDIA),
    *((name, SCALE) for name in GPFS),
)
SIMULATOR = "/shared/mmfs"
LINKS = {"gpfs.base": {f"usr/lpp/mmfs/bin/{name}": f"{SIMULATOR}/{name}" for name in mmfs.COMMANDS}}


def build(folder: Path) -> None:
    """A flat repository of the stand-ins."""
    for name, version in PACKAGES:
        _build(folder, name, version, LINKS.get(name, {}))
    images.index(folder)


def _build(folder: Path, name: str, version: str, links: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        control = Path(scratch) / "DEBIAN" / "control"
        control.parent.mkdir()
        lines = [
            f"Package: {name}",
            f"Version: {version}",
            "Architecture: all",
            "Maintainer: the tests <root@localhost>",
        ]
        lines += [
            f"Description: stand-in for {name}",
            " It has the real one's name and version, and nothing else of it.",
        ]
        control.write_text("\n".join(lines) + "\n")
        for path, target in links.items():
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / path).symlink_to(target)
        archive = folder / f"{name}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--build", scratch, str(archive)], check=True, capture_output=True, timeout=60)
