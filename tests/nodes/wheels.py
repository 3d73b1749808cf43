"""Two projects that python_env installs offline: this one, and a small one for what would take its 1.5 GB too long."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.nodes import images

# The small one's dependency at the version that its lock names, and a later one, for somebody to upgrade in place.
LOCKED, LATER = "1.0", "1.1"
_SMALL = f"""[project]
name = "phenomhpc"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["tiny=={LOCKED}"]
"""
_LIMIT_S = 120


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the lock's part `python` says of a project.  source: on the control machine; wheelhouse: on the machines."""

    source: Path
    wheelhouse: str
    torch: str | None = None

    @property
    def lock_sha256(self) -> str:
        return hashlib.sha256((self.source / "uv.lock").read_bytes()).hexdigest()


def ours(folder: Path, there: str, kept_there: str) -> Project:
    """This project: a wheel of it in `folder`, which machines see as `there`, beside links to the kept ones, as they see them."""
    kept = images.wheels()
    folder.mkdir(parents=True)
    build = ["pip", "wheel", "-q", "--no-deps", "--no-index", "-f", str(kept), "--wheel-dir", str(folder)]
    argv = [sys.executable, "-m", *build, str(images.REPOSITORY)]
    subprocess.run(argv, check=True, timeout=_LIMIT_S)
    for wheel in kept.glob("*.whl"):
        (folder / wheel.name).symlink_to(f"{kept_there}/{wheel.name}")
    (torch,) = (wheel.name.split("-")[1] for wheel in kept.glob("torch-*.whl"))
    return Project(source=images.REPOSITORY, wheelhouse=there, torch=torch)


def small(source: Path, folder: Path, there: str) -> Project:
    """A project without code, its lock and its wheels."""
    for version in (LOCKED, LATER):
        _wheel(folder, "tiny", version)
    _wheel(folder, "phenomhpc", "0.1")
    source.mkdir(parents=True)
    (source / "pyproject.toml").write_text(_SMALL)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment["UV_FIND_LINKS"] = str(folder)
    argv = [str(images.UV), "lock", "--offline", "--no-index"]
    subprocess.run(argv, cwd=source, env=environment, check=True, capture_output=True, timeout=_LIMIT_S)
    return Project(source=source, wheelhouse=there)


def _wheel(folder: Path, name: str, version: str) -> None:
    """A wheel (PyPA's binary distribution format) of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
