"""The gate and the exclusion ledger on the real cluster: a sick node and a slow one are named, excluded, and done without."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.errors import TASK_GATE_REFUSED
from phenomhpc.runs import Event, RunPaths, read_events, read_provenance
from tests.cluster import Cluster
from tests.slurm.test_jobs import TINY, Shell
from tests.unit import train_store

STEPS = 4
NODES = 3


@pytest.fixture(scope="module")
def shell(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("gate")
    train_store.write_plate(folder / "raw")
    train_store.convert(folder / "raw", folder / "store", folder / "made")
    made = Shell(cluster, folder)
    made.type("init", "--yes")
    return made


def train(shell: Shell, *words: str) -> RunPaths:
    sizes = [f"optim.steps={STEPS}", "checkpoint.every_steps=4", "model.crop_px=64", "cluster.gate_wait_s=40"]
    return shell.submit(
        "pretrain", "--store", "store", "--nodes", str(NODES), "--gpus-per-node", "1", *TINY, *sizes, *words
    )


def of(run: RunPaths, name: str) -> list[Event]:
    return [event for event in read_events(run) if event["event"] == name]


def excluded(shell: Shell) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads(shell.type("node", "excluded", "list", "--json").stdout)
    return value


def on_node(cluster: Cluster, number: int, script: str) -> None:
    """Run a script on a node, in its own mounts and network."""
    init = next(pid for name, pid in cluster.leftovers() if name == f"init-{cluster.spec.node_name(number)}")
    argv = ["nsenter", "-t", str(init), "-m", "-n", "--", "sh", "-ec", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


@contextmanager
def harmed(cluster: Cluster, number: int, harm: str, cure: str) -> Iterator[None]:
    on_node(cluster, number, harm)
    try:
        yield
    finally:
        on_node(cluster, number, cure)


def read_only(folder: Path) -> tuple[str, str]:
    return f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}", f"umount {folder}"


def test_fit_nodes_pass_and_their_network_is_on_record(shell: Shell) -> None:
    run = train(shell)
    passed = of(run, "gate")
    assert sorted(event["node"] for event in passed) == ["n1", "n2", "n3"]
    for event in passed:
        print(
            "gate", event["node"], event["seconds"], "network", event["network_s"], event["allreduce"], event["pairs"]
        )
        assert event["backend"] == "gloo" and event["allreduce"][0]["busbw_gbps"] > 0
        assert len(event["pairs"]) == 3
    assert excluded(shell) == []


def test_without_the_gate_none_is_run(shell: Shell) -> None:
    run = train(shell, "cluster.gate=false", "cluster.nodes=1")
    assert not of(run, "gate") and not list(run.attempt(1).root.glob("gate-*"))


def test_a_node_whose_shared_folder_is_read_only_is_done_without(shell: Shell, cluster: Cluster) -> None:
    with harmed(cluster, 2, *read_only(shell.folder)):
        run = train(shell)
    assert run.last_attempt() == 2
    refused = [event for event in of(run, "failed") if event["attempt"] == 1]
    assert refused and all(event["exit_code"] == TASK_GATE_REFUSED and event["node"] == "n2" for event in refused)
    (entry,) = excluded(shell)
    assert (entry["node"], entry["cluster"]) == ("n2", "phenom")
    assert "no word from it" in entry["reason"] and entry["evidence"]["attempt"] == 1 and entry["evidence"]["job"]
    assert sorted(event["node"] for event in of(run, "gate") if event["attempt"] == 2) == ["n1", "n3", "n4"]
    assert "n2" in shell.type("node", "excluded", "list").stdout
    assert "may be used again on phenom: n2" in shell.type("node", "excluded", "clear", "n2").stdout
    assert excluded(shell) == []


def test_a_node_that_has_not_mounted_the_store_is_done_without(shell: Shell, cluster: Cluster) -> None:
    store = shell.folder / "store"
    with harmed(cluster, 3, f"mount -t tmpfs none {store}", f"umount {store}"):
        run = train(shell)
    (entry,) = excluded(shell)
    assert entry["node"] == "n3" and "is its file system mounted?" in entry["reason"]
    assert entry["evidence"]["facts"]["facts"]["hostname"] == "n3"
    assert sorted(event["node"] for event in of(run, "gate")) == ["n1", "n2", "n4"]
    assert "n3" in shell.type("why", run.id).stdout


def test_a_slow_node_is_found_by_the_all_reduce(shell: Shell, cluster: Cluster) -> None:
    slow = "tc qdisc add dev eth0 root tbf rate 20mbit burst 32kbit latency 400ms"
    with harmed(cluster, 1, slow, "tc qdisc del dev eth0 root"):
        run = train(shell)
    assert run.last_attempt() == 2
    (entry,) = excluded(shell)
    print(entry)
    assert entry["node"] == "n1" and "its best link to another node carries" in entry["reason"]
    assert len(entry["evidence"]["pairs"]) == 3
    assert sorted(event["node"] for event in of(run, "gate") if event["attempt"] == 2) == ["n2", "n3", "n4"]
    cluster.wait_idle()


# -- drift ------------------------------------------------------------------------------------------------------------


@contextmanager
def other_python(shell: Shell, cluster: Cluster, number: int) -> Iterator[None]:
    """One package of the Python environment has other files on one node, as after an upgrade in place."""
    files = importlib.metadata.distribution("tifffile").files
    assert files is not None
    info = next(Path(str(file.locate())).parent for file in files if file.name == "RECORD")
    other = shell.folder / "info"
    shutil.copytree(info, other, dirs_exist_ok=True)
    (other / "RECORD").write_text(
        (info / "RECORD").read_text().replace("tifffile.py,sha256=", "tifffile.py,sha256=other")
    )
    with harmed(cluster, number, f"mount --bind {other} {info}", f"umount {info}"):
        yield


def fingerprints(run: RunPaths, attempt: int) -> dict[str, dict[str, Any]]:
    folder = run.attempt(attempt).node("any").parent
    return {path.stem: json.loads(path.read_bytes()) for path in folder.glob("*.json")}


def test_nodes_that_are_alike_are_on_record(shell: Shell) -> None:
    run = train(shell)
    seen = fingerprints(run, 1)
    assert set(seen) == {"n1", "n2", "n3"} and len({each["digest"] for each in seen.values()}) == 1
    assert all(each["values"]["python.environment"] and not each["silent"] for each in seen.values())
    assert all(event["digest"] == seen[event["node"]]["digest"] and not event["drift"] for event in of(run, "gate"))
    assert "allow_drift" not in read_provenance(run)
    assert "drift" not in shell.type("why", run.id).stdout


def test_a_drifted_node_is_refused_and_named(shell: Shell, cluster: Cluster) -> None:
    with other_python(shell, cluster, 2):
        run = train(shell)
    assert run.last_attempt() == 2
    refused = [event for event in of(run, "failed") if event["attempt"] == 1]
    assert refused and all(event["exit_code"] == TASK_GATE_REFUSED and event["node"] == "n2" for event in refused)
    assert all("n2: drift: python.environment is " in event["message"] for event in refused)
    (entry,) = excluded(shell)
    assert entry["node"] == "n2" and "tifffile" in entry["reason"] and "has other files" in entry["reason"]
    assert sorted(event["node"] for event in of(run, "gate") if event["attempt"] == 2) == ["n1", "n3", "n4"]
    said = shell.type("why", run.id).stdout
    line = next(line for line in said.splitlines() if line.strip().startswith("drift"))
    assert "n2: drift: python.environment" in line and "--allow-drift" in line
    shell.type("node", "excluded", "clear", "n2")


def test_drift_that_is_allowed_is_on_record(shell: Shell, cluster: Cluster) -> None:
    with other_python(shell, cluster, 2):
        run = train(shell, "--allow-drift")
    assert run.last_attempt() == 1 and excluded(shell) == []
    (told,) = [event for event in of(run, "gate") if event["drift"]]
    assert told["node"] == "n2" and "python.environment" in told["drift"][0] and told["allow_drift"]
    assert read_provenance(run)["allow_drift"] is True
    cluster.wait_idle()
