"""A small project with a lock and its wheels, in place of ours: python_env installs it offline as it would ours of 1.5 GB."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# The dependency at the version that the lock names, and a later one, for somebody to upgrade in place.
LOCKED, LATER = "1.0", "1.1"
_PROJECT = f"""[project]
name = "phenomhpc"
version = "0.1"
requires-python = ">=3.11"
dependencies = ["tiny=={LOCKED}"]
"""


def make(project: Path, wheelhouse: Path) -> str:
    """Project and wheelhouse; sha256 of its uv.lock."""
    for version in (LOCKED, LATER):
        _wheel(wheelhouse, "tiny", version)
    _wheel(wheelhouse, "phenomhpc", "0.1")
    for name in ("phenomhpc", "jobs"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").touch()
    (project / "pyproject.toml").write_text(_PROJECT)
    (project / "README.md").write_text("A stand-in.\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment["UV_FIND_LINKS"] = str(wheelhouse)
    argv = [str(Path(sys.executable).parent / "uv"), "lock", "--offline", "--no-index"]
    subprocess.run(argv, cwd=project, env=environment, check=True, capture_output=True, timeout=60)
    return hashlib.sha256((project / "uv.lock").read_bytes()).hexdigest()


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
