"""The generated node check on the real cluster: what it does to a node in Slurm, and what it leaves alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.nodes.check import REASON, parse_node
from phenomhpc.nodes.check_program import check_program
from phenomhpc.nodes.lock_file import lock_from
from tests.cluster import Cluster

NODE = "n3"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Root's own, in a folder where nobody else may take its place."""
    made = Path(tempfile.mkdtemp(prefix="node-check-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(autouse=True)
def resumed(cluster: Cluster) -> Iterator[None]:
    yield
    if parse_node(shown(cluster))[1]:
        update(cluster, "State=RESUME")


def lock(mount: Path) -> Any:
    scontrol = shutil.which("scontrol")
    assert scontrol is not None
    nodes = [{"name": "n", "nodes": "n[1-4]", "cpus": 2, "memory_mb": 1000}]
    partitions = [{"name": "main", "nodes": "n[1-4]", "default": True}]
    slurm = {"cluster": "phenom", "controller": "ctl", "node_types": nodes, "partitions": partitions}
    checks = {"mounts": [str(mount)], "path": [str(Path(scontrol).parent), "/usr/bin", "/bin"], "each_s": 5}
    return lock_from({"schema": 1, "name": "phenom", "slurm": slurm, "checks": checks}, "site.lock.yml")


def on_node(cluster: Cluster, *argv: str) -> subprocess.CompletedProcess[str]:
    """A program on the node, in its mounts, network and name, as slurmd would start it there."""
    init = next(pid for name, pid in cluster.leftovers() if name == f"init-{NODE}")
    words = ["nsenter", "-t", str(init), "-m", "-n", "-u", "--", *argv]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=cluster.environment())


def shown(cluster: Cluster) -> str:
    return cluster.run(["scontrol", "show", "node", "-o", NODE]).stdout


def update(cluster: Cluster, *words: str) -> None:
    cluster.run(["scontrol", "update", f"NodeName={NODE}", *words])


def test_a_node_is_drained_with_the_culprit_and_resumed_and_an_administrators_stays(
    cluster: Cluster, folder: Path
) -> None:
    mount, program = folder / "scratch", folder / "node_check"
    mount.mkdir()
    program.write_text(check_program(lock(mount)))
    program.chmod(0o755)
    assert "nothing is changed" not in on_node(cluster, str(program)).stdout
    states, reason = parse_node(shown(cluster))
    assert "DRAIN" in states and reason == f"{REASON}mount {mount}: is not mounted"
    assert "drained" not in on_node(cluster, str(program)).stdout, "it says so once"

    assert on_node(cluster, "mount", "-t", "tmpfs", "none", str(mount)).returncode == 0
    done = on_node(cluster, str(program))
    assert done.returncode == 0 and f"{NODE}: fit, resumed" in done.stdout, done.stderr + done.stdout
    assert "DRAIN" not in parse_node(shown(cluster))[0]

    update(cluster, "State=DRAIN", "Reason=fans, by an administrator")
    assert on_node(cluster, str(program)).returncode == 0
    assert on_node(cluster, "umount", str(mount)).returncode == 0
    assert on_node(cluster, str(program)).returncode == 1
    states, reason = parse_node(shown(cluster))
    assert "DRAIN" in states and reason == "fans, by an administrator", "sick or well, it is somebody else's"
