"""Roles for what cannot be had here, over stand-in packages and a simulator: never run on NVIDIA's hardware or Storage Scale."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import mmfs
from tests.nodes.site import Site
from tests.nodes.stand_ins import DRIVER, GPFS, NVIDIA, SCALE

WANTED = {"default": {"maxFilesToCache": "100000"}, "clients": {"workerThreads": "512"}}


def state_of(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((site.machines.root / "shared" / "mmfs" / "state.json").read_text())
    return found


@pytest.fixture
def scale(site: Site) -> Iterator[None]:
    """A lock with a driver and a GPFS cluster, of which one client is down and attributes are other ones."""
    cluster = {**mmfs.cluster(len(site.nodes)), "host": ""}
    cluster["nodes"][site.nodes[-1]]["state"] = "down"
    mmfs.install(site.machines.root / "shared" / "mmfs", cluster)
    kernel = os.uname().release
    pins = [*((name, f"{DRIVER}-1") for name in NVIDIA), *((name, SCALE) for name in GPFS)]
    before = dict(site.lock)
    site.lock |= {
        "kernel": {"release": kernel},
        "nvidia": {"driver": DRIVER, "fabricmanager": DRIVER, "packages": list(NVIDIA)},
        "gpfs": {
            "version": SCALE,
            "gplbin": kernel,
            "delegate": site.nodes[0],
            "pagepool_mb": 1024,
            "mounts": [{"name": "fs1", "path": "/shared"}],
            "attributes": WANTED,
            "node_classes": {"clients": ",".join(site.nodes)},
        },
        "packages": [
            *site.lock["packages"],
            *({"name": name, "version": version, "hosts": ["compute"]} for name, version in pins),
        ],
    }
    yield
    site.lock = before


@pytest.mark.usefixtures("scale")
def test_the_roles_make_what_the_lock_says_once(site: Site) -> None:
    """Pinned and held packages; attributes changed by one delegate; the daemon that was down is started; then nothing changes."""
    played = site.play("site.yml", "--tags", "repo_pins,nvidia,gpfs_client")
    assert played.code == 0, played.changes
    for node in site.nodes:
        asked = f"dpkg-query -W -f '${{Package}} ${{Version}}\\n' {' '.join((*NVIDIA, *GPFS))}"
        shown = dict(line.split() for line in site.machines.run(node, asked).splitlines())
        assert shown == dict.fromkeys(NVIDIA, f"{DRIVER}-1") | dict.fromkeys(GPFS, SCALE)
        assert {*NVIDIA, *GPFS} <= set(site.machines.run(node, "apt-mark showhold").split())
    state = state_of(site)
    assert {name: state["config"]["default"][name] for name in WANTED["default"]} == WANTED["default"]
    assert {name: state["config"]["clients"][name] for name in WANTED["clients"]} == WANTED["clients"]
    assert all(each["state"] == "active" for each in state["nodes"].values())
    calls = [each[0] for each in state["calls"]]
    assert calls.count("mmlsconfig") == 1 and calls.count("mmstartup") == 1
    changes = calls.count("mmchconfig")
    again = site.play("site.yml", "--tags", "repo_pins,nvidia,gpfs_client")
    assert (again.code, sum(again.changed.values())) == (0, 0), again.changes
    assert [each[0] for each in state_of(site)["calls"]].count("mmchconfig") == changes > 0


def test_what_the_lock_no_longer_names_is_removed_although_it_was_held(site: Site) -> None:
    """Packages that the test before has installed, pinned and held."""
    played = site.play("site.yml", "--tags", "repo_pins")
    assert played.code == 0, played.changes
    for node in site.nodes:
        installed = site.machines.run(node, "dpkg-query -W -f '${Package}\n'").split()
        assert not {*NVIDIA, *GPFS} & set(installed)
