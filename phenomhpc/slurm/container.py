"""A job's ranks inside a container: which runtime, and what it is told.  Pure, but for `problem_of`.

The rendered commands are tested as text; they were never run in a container.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phenomhpc.config import ClusterConfig
from phenomhpc.errors import UnreachableError
from phenomhpc.slurm.programs import ProgramFailedError, run_program

Runtime = Literal["apptainer", "pyxis"]
# The image's own: it holds the libraries, and the code that was submitted comes first on its path.
PYTHON = "python3"


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """What goes between `srun` and a task's command: options of srun (Pyxis), or words before the command (Apptainer)."""

    srun: str = ""
    before: str = ""


def runtime_of(cluster: ClusterConfig) -> Runtime | None:
    """The runtime that an image asks for; None without an image."""
    if cluster.container is None:
        return None
    if cluster.container_runtime != "auto":
        return cluster.container_runtime
    return "pyxis" if cluster.container.endswith(".sqsh") else "apptainer"


def mounts_of(cluster: ClusterConfig, folders: Sequence[Path]) -> tuple[str, ...]:
    """HERE:THERE of what is seen inside: the run's folders, without those that lie in another, and those asked for."""
    unique = sorted(set(folders))
    outer = [path for path in unique if not any(other in path.parents for other in unique)]
    asked = [mount if ":" in mount else f"{mount}:{mount}" for mount in cluster.container_mounts]
    return (*(f"{path}:{path}" for path in outer), *asked)


def wrapping_of(cluster: ClusterConfig, folders: Sequence[Path]) -> Wrapping:
    """How a task's command is put into the container; nothing without one."""
    runtime = runtime_of(cluster)
    if runtime is None or cluster.container is None:
        return Wrapping()
    mounts = ",".join(mounts_of(cluster, folders))
    if runtime == "pyxis":
        words = [f"--container-image={cluster.container}", f"--container-mounts={mounts}", "--no-container-mount-home"]
        return Wrapping(srun=f"{shlex.join(words)} ")
    gpus = ["--nv"] if cluster.gpus_per_node else []
    return Wrapping(before=f"{shlex.join(['apptainer', 'exec', *gpus, '--bind', mounts, cluster.container])} ")


def problem_of(cluster: ClusterConfig) -> str | None:
    """Why the container cannot be used, as far as it can be seen from here, in one line."""
    runtime = runtime_of(cluster)
    if runtime is None or cluster.container is None:
        return None
    image = Path(cluster.container)
    if image.suffix in {".sif", ".sqsh"} and "://" not in cluster.container and not image.is_file():
        return f"cluster.container={cluster.container}: no such file; build or pull the image first"
    if runtime == "apptainer" and shutil.which("apptainer") is None:
        other = "; Pyxis is: cluster.container_runtime=pyxis" if has_pyxis() else "; nor is Pyxis"
        return f"cluster.container={cluster.container}: apptainer is not installed here{other}"
    if runtime == "pyxis" and not has_pyxis():
        other = "is: cluster.container_runtime=apptainer" if shutil.which("apptainer") else "is not installed either"
        return f"cluster.container={cluster.container}: this Slurm has no Pyxis (srun --container-image); apptainer {other}"
    return None


def has_pyxis() -> bool:
    """Does this Slurm's srun know --container-image?"""
    try:
        return "--container-image" in run_program(["srun", "--help"])
    except (ProgramFailedError, UnreachableError):
        return False
