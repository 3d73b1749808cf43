"""Storage Scale against the lock.  Verified against a simulator (tests/mmfs), never run on Storage Scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.nodes.check import check_gpfs
from phenomhpc.nodes.gpfs import (
    change_commands,
    compare_config,
    not_active,
    parse_config,
    parse_health,
    parse_states,
    same_value,
    unwell,
    wanted_config,
)
from phenomhpc.nodes.lock import Gpfs
from tests import mmfs

WANTED = {
    "version": "5.2.2-1",
    "pagepool_mb": 65536,
    "pagepool_class": "clients",
    "attributes": {"default": {"maxFilesToCache": "100000"}, "clients": {"workerThreads": "512"}},
    "node_classes": {"clients": "n[1-3]"},
}


class Simulated:
    """A folder of mm commands and their state."""

    def __init__(self, folder: Path, **state: Any) -> None:
        self.folder = folder / "bin"
        self.environment = mmfs.install(self.folder, {**mmfs.cluster(), **state})

    def run(self, *words: str, code: int = 0) -> str:
        argv = [sys.executable, str(self.folder / words[0]), *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def calls(self, name: str) -> list[list[str]]:
        value: list[list[str]] = json.loads((self.folder / "state.json").read_text())["calls"]
        return [each for each in value if each[0] == name]


@pytest.fixture
def scale(tmp_path: Path) -> Simulated:
    return Simulated(tmp_path)


def test_what_differs_is_changed_once_on_one_delegate_and_then_nothing_does(scale: Simulated) -> None:
    wanted = wanted_config(Gpfs(**WANTED))
    differences = compare_config(parse_config(scale.run("mmlsconfig", "-Y")), wanted)
    assert [str(each) for each in differences] == [
        "pagepool of clients is not set, not 65536M",
        "workerThreads of clients is 48, not 512",
        "maxFilesToCache is 4000, not 100000",
    ]
    commands = change_commands(differences)
    assert commands == (
        ("mmchconfig", "pagepool=65536M,workerThreads=512", "-N", "clients"),
        ("mmchconfig", "maxFilesToCache=100000"),
    )
    for words in commands:
        scale.run(*words)
    assert compare_config(parse_config(scale.run("mmlsconfig", "-Y")), wanted) == ()
    assert len(scale.calls("mmchconfig")) == 2


def test_an_override_that_the_lock_does_not_have_is_taken_back(scale: Simulated) -> None:
    scale.run("mmchconfig", "maxFilesToCache=9", "-N", "clients")
    wanted = {("maxFilesToCache", "default"): "4000"}
    (only,) = compare_config(parse_config(scale.run("mmlsconfig", "-Y")), wanted)
    assert str(only) == "maxFilesToCache of clients is 9, which overrides the lock's value for all nodes"
    scale.run(*change_commands([only])[0])
    assert compare_config(parse_config(scale.run("mmlsconfig", "-Y")), wanted) == ()
    assert compare_config({("verbsRdma", "other"): "enable"}, wanted)[0].found is None, (
        "what it does not name is left alone"
    )


def test_sizes_are_the_same_in_any_unit_and_words_in_any_case() -> None:
    assert same_value("64G", "65536M") and same_value("68719476736", "64G") and same_value("Enable", "enable")
    assert not same_value("64G", "64M") and not same_value(None, "x") and not same_value("yes", "no")
    assert compare_config({("PagePool", "default"): "1G"}, {("pagepool", "default"): "1024M"}) == ()


def test_daemons_that_are_not_active_are_named(scale: Simulated) -> None:
    assert not_active(parse_states(scale.run("mmgetstate", "-a", "-Y")), ["n1", "n2", "n3"]) == {}
    scale.run("mmshutdown", "-N", "n2")
    states = parse_states(scale.run("mmgetstate", "-a", "-Y"))
    assert not_active(states, ["n1", "n2", "n9"]) == {"n2": "down", "n9": "not told"}
    assert not_active(states) == {"n2": "down"}


def test_components_that_are_unwell_are_named(scale: Simulated) -> None:
    assert unwell(parse_health(scale.run("mmhealth", "node", "show", "-N", "all", "-Y"))) == ()
    scale.run("mmumount", "fs1", "-N", "n3")
    assert unwell(parse_health(scale.run("mmhealth", "node", "show", "-N", "all", "-Y"))) == (
        "n3: FILESYSTEM fs1 is FAILED",
    )
    scale.run("mmmount", "fs1", "-N", "n3")
    assert unwell(parse_health(scale.run("mmhealth", "node", "show", "-N", "all", "-Y"))) == ()
    assert unwell({("n1", "NODE", "n1"): "DEGRADED"}) == ("n1: NODE is DEGRADED",)


def test_the_simulator_refuses_what_it_does_not_know(scale: Simulated) -> None:
    assert "not valid" in scale.run("mmchconfig", "noSuchThing=1", code=1)
    assert "Incorrect node" in scale.run("mmchconfig", "pagepool=1G", "-N", "others", code=1)
    assert "not running" in (scale.run("mmshutdown", "-N", "n1"), scale.run("mmmount", "fs1", "-N", "n1", code=1))[1]


@pytest.mark.parametrize("parse", [parse_config, parse_states, parse_health])
def test_other_text_is_refused(parse: Any) -> None:
    with pytest.raises(ValueError, match=r"no .*line of mm|no State line of mmhealth"):
        parse("mmlsconfig: This node does not belong to a GPFS cluster.\n")


def test_the_node_check_knows_the_daemons_state(scale: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mmfs.STATE, scale.environment[mmfs.STATE])
    assert check_gpfs(str(scale.folder)) == []
    scale.run("mmshutdown", "-N", "n1")
    assert check_gpfs(str(scale.folder)) == ["is down, not active"]
