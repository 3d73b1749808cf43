"""Somebody's runs on the cluster that the bundle made: with what python_env has installed, and the defaults of site.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phenomhpc.errors import TASK_GATE_REFUSED
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, read_events, read_outcome
from phenomhpc.store import Snapshot, open_store
from tests.cluster.processes import wait_for
from tests.nodes.site import ENVIRONMENT, HEAD, LAB, PERSON, Site

SPEC = SyntheticSpec(
    plate_rows=2, plate_columns=4, field_px=96, num_genes=6, genes_per_pathway=2, num_unexpressed=0, control_share=0.3
)
STEPS = 4
# What is trained, in settings; where, with what and on which data the site says.
TINY = [
    *("model=mae_vit_tiny", "optim=cpu", f"optim.steps={STEPS}", "optim.micro_batch=8"),
    *(f"checkpoint.every_steps={STEPS}", "log_every_steps=1"),
]
RUN_LIMIT_S = 240.0


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Raw plates and a home on the shared folder, and who submits from there."""

    site: Site
    folder: Path

    def submit(self, *words: str) -> RunPaths:
        """Submit, wait for the end of the run; the person may have logged out meanwhile."""
        done = self.site.type("submit", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        name = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("submitted:"))
        run = RunPaths(self.folder / "runs" / name)
        wait_for(f"run {name} has ended", lambda: read_outcome(run) is not None, RUN_LIMIT_S)
        return run

    def hosts(self, run: RunPaths) -> set[str]:
        return {event["host"] for event in read_events(run) if event["event"] == "started"}


@pytest.fixture(scope="module")
def lab(site: Site) -> Lab:
    shared = site.machines.root / "shared"
    folder = shared / Path(LAB).relative_to("/shared")
    write_plates(folder / "raw", SPEC, silent(), workers=1)
    owner = f"{PERSON['uid']}:{PERSON['gid']}"
    site.machines.run(HEAD, f"mkdir -p {PERSON['home']}; chown -R {owner} {PERSON['home']} {LAB}")
    return Lab(site=site, folder=folder)


@pytest.fixture(scope="module")
def converted(lab: Lab) -> RunPaths:
    return lab.submit("convert")


def outcome(run: RunPaths) -> tuple[str, str]:
    found = read_outcome(run)
    assert found is not None
    return found["state"], found["message"]


def test_what_nobody_says_is_the_sites(lab: Lab) -> None:
    shown = lab.site.type("config", "show", "convert", "--origin").stdout.splitlines()
    for key, value in {"runs": "runs", "store": "store", "plates": "raw"}.items():
        (line,) = [line for line in shown if line.split()[1:2] == [key]]
        assert f"{LAB}/{value}" in line and "/etc/phenomhpc/site.json" in line


def test_plates_are_converted(lab: Lab, converted: RunPaths) -> None:
    """Every field of every plate is in the store, and the tasks ran in the environment of the lock."""
    assert outcome(converted)[0] == "finished", outcome(converted)
    snapshot = Snapshot.open(open_store(lab.folder / "store"))
    assert snapshot.num_fields == SPEC.experiments * SPEC.plate_rows * SPEC.plate_columns
    assert lab.hosts(converted) <= set(lab.site.nodes)
    kept = [json.loads(file.read_bytes()) for file in converted.attempt(1).nodes.iterdir()]
    assert {each["node"] for each in kept} == lab.hosts(converted)
    made = lab.site.machines.run(HEAD, f"readlink -f {ENVIRONMENT}")
    assert {each["python"]["path"] for each in kept} == {made}
    assert {each["values"]["python.torch"] for each in kept} == {lab.site.ours.torch}
    assert not any(each["findings"] for each in kept)


def test_two_nodes_pretrain_together(lab: Lab, converted: RunPaths) -> None:
    """Steps are done by ranks on two machines, a checkpoint is committed, and accounting has the job."""
    assert converted
    run = lab.submit("pretrain", "--nodes", "2", *TINY)
    assert outcome(run)[0] == "finished", outcome(run)
    assert run.committed_step() == STEPS and run.report.is_file()
    assert len(lab.hosts(run)) == 2 and lab.hosts(run) <= set(lab.site.nodes)
    gates = [event for event in read_events(run) if event["event"] == "gate"]
    assert {event["node"] for event in gates} == lab.hosts(run) and not any(event["drift"] for event in gates)
    status = json.loads(lab.site.type("status", run.id, "--json").stdout)
    assert (status["state"], status["done"], status["total"]) == ("finished", STEPS, STEPS)
    job = status["jobs"][0]
    wait_for(
        "sacct has it",
        lambda: lab.site.machines.run(HEAD, f"sacct -n -X -P -o State,NNodes -j {job}") == "COMPLETED|2",
        30,
    )


@pytest.fixture
def drifted(site: Site) -> Iterator[str]:
    """A node on which somebody has begun an upgrade to the next release."""
    node = site.nodes[1]
    release = "/usr/lib/os-release"
    site.machines.run(node, f"cp -p {release} /root/before && sed -i 's/^VERSION_ID=.*/VERSION_ID=\"13\"/' {release}")
    yield node
    site.machines.run(node, f"mv /root/before {release}")
    site.type("node", "excluded", "clear", node)


def test_a_drifted_node_is_refused_and_named(lab: Lab, converted: RunPaths, drifted: str) -> None:
    """Nothing is trained on it; the outcome and `why` say which node it is, and what it has."""
    assert converted
    run = lab.submit("pretrain", "--nodes", "2", *TINY, "cluster.max_attempts=1")
    refused = [event for event in read_events(run) if event["event"] == "failed"]
    assert refused and all(event["exit_code"] == TASK_GATE_REFUSED for event in refused)
    said = f"{drifted}: drift: os is debian 13 where debian 12 is wanted (site.json)"
    assert all(event["node"] == drifted and said in event["message"] for event in refused)
    state, message = outcome(run)
    assert state == "failed" and drifted in message, message
    assert run.committed_step() == 0
    why = lab.site.type("why", run.id).stdout
    line = next(line for line in why.splitlines() if line.split()[:1] == ["drift"])
    assert said in line and "--allow-drift" in line
