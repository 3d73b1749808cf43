"""Stand-in packages: the names and versions of packages that cannot be installed here, and nothing else of them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.nodes import images
from tests.nodes.site import NEWER, OLDER, TOOLKIT

PACKAGES = (
    (TOOLKIT, OLDER),
    (TOOLKIT, NEWER),
    ("phenomhpc-stray", "1.0"),
)


def build(folder: Path) -> None:
    """A flat repository of the stand-ins."""
    for name, version in PACKAGES:
        with tempfile.TemporaryDirectory() as scratch:
            control = Path(scratch) / "DEBIAN" / "control"
            control.parent.mkdir()
            lines = [
                f"Package: {name}",
                f"Version: {version}",
                "Architecture: all",
                "Maintainer: the tests <root@localhost>",
            ]
            lines += [f"Description: stand-in for {name}", " It has the real one's name and version, and no files."]
            control.write_text("\n".join(lines) + "\n")
            archive = folder / f"{name}_{version}_all.deb"
            subprocess.run(["dpkg-deb", "--build", scratch, str(archive)], check=True, capture_output=True, timeout=60)
    images.index(folder)
