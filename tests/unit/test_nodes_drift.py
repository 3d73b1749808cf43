"""What drift is called: one change is one finding, of the right class, on the right node, and nothing else is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from phenomhpc.errors import UsageError
from phenomhpc.nodes.drift import Report, find_drift
from phenomhpc.nodes.facts import changed_distributions, check_fingerprint, level_of
from phenomhpc.nodes.lock import Drift
from phenomhpc.nodes.majority import divergent
from tests.unit.fingerprints import file, healthy, lock, short

Tamper = Callable[[dict[str, Any]], None]
NODES = ("n1", "n2", "n3")


def drift_of(tamper: Tamper, *, with_lock: bool = True) -> Report:
    """The report of three nodes, the second of which was tampered with."""
    nodes = {name: healthy(name) for name in NODES}
    tamper(nodes["n2"])
    return find_drift(nodes, lock() if with_lock else None)


def upgrade(seen: dict[str, Any]) -> None:
    seen["packages"]["versions"]["slurmd"] = seen["values"]["slurm.version"] = "22.05.9-1"


def unhold(seen: dict[str, Any]) -> None:
    seen["packages"]["held"] = []


def rogue_sysctl(seen: dict[str, Any]) -> None:
    path = "/etc/sysctl.d/zz-rogue.conf"
    seen["files"][path] = file("d" * 64)
    for name in ("net.core.somaxconn", "net.ipv4.ip_forward"):
        seen["sysctls"]["live"][name] = "1"
        seen["sysctls"]["files"][name] = {"value": "1", "path": path}


def rogue_sysctl_of_the_next_boot(seen: dict[str, Any]) -> None:
    rogue_sysctl(seen)
    seen["sysctls"]["live"] = dict(healthy()["sysctls"]["live"])


def rogue_preference(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/apt/preferences.d/00-rogue"] = file("d" * 64)
    seen["candidates"]["slurmd"] = "23.11.1-1"


def extra_package(seen: dict[str, Any]) -> None:
    seen["packages"]["versions"]["nmap"] = "7.93"
    seen["packages"]["manual"].append("nmap")


def file_mode(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/slurm/slurm.conf"]["mode"] = "0666"


def disabled(seen: dict[str, Any]) -> None:
    seen["units"]["slurmd.service"] = {"enabled": "disabled", "active": "active"}


def stray(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/slurm/job_submit.lua"] = file("d" * 64)


def python_in_place(seen: dict[str, Any]) -> None:
    seen["python"]["environment"] = seen["values"]["python.environment"] = "1" * 32
    seen["python"]["distributions"]["numpy"] = "2.2.0 cccc"


def munge_key(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/munge/munge.key"]["sha256"] = "keyed:" + "9" * 32


def slurm_conf(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/slurm/slurm.conf"]["sha256"] = "9" * 64


def limits(seen: dict[str, Any]) -> None:
    seen["limits"]["locked_memory"] = "8388608 8388608"


def live_sysctl(seen: dict[str, Any]) -> None:
    seen["sysctls"]["live"]["net.core.somaxconn"] = "128"


def gone(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/slurm/slurm.conf"] = None


def packaged_file(seen: dict[str, Any]) -> None:
    seen["files"]["/etc/sysctl.d/protect.conf"] |= {"sha256": "d" * 64, "changed": True}


def library(seen: dict[str, Any]) -> None:
    seen["packages"]["versions"]["libc6"] = "2.36-9"


def other_unit(seen: dict[str, Any]) -> None:
    seen["units"]["ssh.service"] = {"enabled": "disabled"}


def old_kernel(seen: dict[str, Any]) -> None:
    seen["values"]["kernel"] = "6.0.0-9"


def old_module(seen: dict[str, Any]) -> None:
    seen["modules"]["mlx5_core"] = {"loaded": "24.07", "file": "24.10"}


def recorded_anew(seen: dict[str, Any]) -> None:
    """An edited file that was written down as if the roles had made it."""
    slurm_conf(seen)
    seen["manifest"]["files"]["/etc/slurm/slurm.conf"] = dict(seen["files"]["/etc/slurm/slurm.conf"])


def edited_record(seen: dict[str, Any]) -> None:
    seen["manifest"]["files"]["/etc/slurm/slurm.conf"]["sha256"] = "9" * 64


def python_recorded_anew(seen: dict[str, Any]) -> None:
    python_in_place(seen)
    seen["manifest"]["python"] = json.loads(json.dumps(seen["python"]))


def no_record(seen: dict[str, Any]) -> None:
    seen["manifest"] = {}


@pytest.mark.parametrize(
    ("tamper", "kind", "fact", "words"),
    [
        (upgrade, "managed", "package:slurmd", "22.05.9-1 where 22.05.8-4 is wanted"),
        (unhold, "managed", "hold:slurmd", "not held where held"),
        (rogue_sysctl, "unmanaged", "file:/etc/sysctl.d/zz-rogue.conf", "net.core.somaxconn is 1, not 4096"),
        (rogue_sysctl_of_the_next_boot, "unmanaged", "file:/etc/sysctl.d/zz-rogue.conf", "net.core.somaxconn is 1, not 4096"),
        (rogue_preference, "unmanaged", "file:/etc/apt/preferences.d/00-rogue", "slurmd is 23.11.1-1, not 22.05.8-4"),
        (extra_package, "unmanaged", "package:nmap", "7.93"),
        (file_mode, "managed", "file:/etc/slurm/slurm.conf", "0666 root:root aaaaaaaaaaaa where 0644"),
        (disabled, "managed", "unit:slurmd.service", "disabled, active where enabled, active"),
        (stray, "unmanaged", "file:/etc/slurm/job_submit.lua", "0644 root:root"),
        (python_in_place, "managed", "python.environment", "numpy 2.2.0, not 2.1.0"),
        (munge_key, "managed", "file:/etc/munge/munge.key", "999999999999 where 0400 munge:munge eeeeeeeeeeee"),
        (slurm_conf, "managed", "file:/etc/slurm/slurm.conf", "999999999999 where 0644 root:root aaaaaaaaaaaa"),
        (limits, "managed", "limit:locked_memory", "inside slurmd"),
        (live_sysctl, "managed", "sysctl:net.core.somaxconn", "128 where 4096"),
        (gone, "managed", "file:/etc/slurm/slurm.conf", "absent where present"),
        (packaged_file, "unmanaged", "file:/etc/sysctl.d/protect.conf", "changed; procps brought another"),
        (library, "divergent", "package:libc6", "2.36-9, the others 2.36"),
        (other_unit, "divergent", "unit:ssh.service", "disabled, the others enabled"),
        (old_kernel, "divergent", "kernel", "6.0.0-9, the others 6.1.0-1"),
        (old_module, "managed", "module:mlx5_core", "reboot"),
        (recorded_anew, "divergent", "record:file:/etc/slurm/slurm.conf", "999999999999, the others 0644 root:root aaaaaaaaaaaa"),
        (edited_record, "divergent", "record:file:/etc/slurm/slurm.conf", "999999999999, the others 0644 root:root aaaaaaaaaaaa"),
        (python_recorded_anew, "divergent", "record:python.environment", "1111, the others f"),
        (no_record, "divergent", "record", "absent, the others present"),
    ],
)  # fmt: skip
def test_one_change_is_one_finding(tamper: Tamper, kind: str, fact: str, words: str) -> None:
    report = drift_of(tamper)
    assert [(each.node, each.kind, each.fact) for each in report.findings] == [("n2", kind, fact)], report
    assert words in str(report.findings[0]), str(report.findings[0])
    assert report.exit_code == 1 and report.verdict == "drift" and not report.silent


def test_nodes_that_are_as_the_lock_says_are_clean() -> None:
    report = drift_of(lambda seen: None)
    assert report.findings == () and report.exit_code == 0 and report.nodes == NODES


def test_where_most_nodes_have_drifted_the_right_one_is_not_blamed() -> None:
    nodes = {name: healthy(name) for name in NODES}
    upgrade(nodes["n1"])
    upgrade(nodes["n3"])
    assert {(each.node, each.kind) for each in find_drift(nodes, lock()).findings} == {
        ("n1", "managed"),
        ("n3", "managed"),
    }


def test_without_a_lock_the_others_say_what_is_right() -> None:
    found = [(each.node, each.kind, each.fact) for each in drift_of(stray, with_lock=False).findings]
    assert found == [("n2", "divergent", "file:/etc/slurm/job_submit.lua")]
    found = [(each.node, each.kind, each.fact) for each in drift_of(recorded_anew, with_lock=False).findings]
    assert found == [("n2", "divergent", "file:/etc/slurm/slurm.conf")], "not the record of it, too"
    assert drift_of(lambda seen: None, with_lock=False).exit_code == 0
    alone = find_drift({"n1": healthy()}, None)
    assert alone.exit_code == 4 and "no other node to compare with" in alone.silent["n1"][0]


def test_a_tie_blames_both_and_says_so() -> None:
    nodes = {name: healthy(name) for name in ("n1", "n2")}
    library(nodes["n2"])
    found = find_drift(nodes, lock()).findings
    assert [(each.node, each.found, each.expected) for each in found] == [
        ("n1", "2.36", "2.36-9"),
        ("n2", "2.36-9", "2.36"),
    ]
    assert all(each.words == "no value is that of most nodes" for each in found)


def test_a_changed_file_without_a_record_is_left_to_the_other_nodes() -> None:
    nodes = {name: healthy(name) for name in NODES}
    for seen in nodes.values():
        seen["manifest"] = {}
    slurm_conf(nodes["n2"])
    found = [(each.node, each.kind, each.fact) for each in find_drift(nodes, lock()).findings]
    assert found == [("n2", "divergent", "file:/etc/slurm/slurm.conf")]


def test_what_could_not_be_told_is_no_drift_and_not_clean() -> None:
    def silent(seen: dict[str, Any]) -> None:
        del seen["units"]
        seen["silent"] = {"units": "no answer within 20 s"}

    report = drift_of(silent)
    assert report.exit_code == 4 and report.silent == {"n2": ("units: no answer within 20 s",)} and not report.findings
    nodes = {name: healthy(name) for name in NODES}
    nodes["n2"]["files"]["/etc/munge/munge.key"] = {"error": "Permission denied"}
    report = find_drift(nodes, lock())
    assert (
        report.exit_code == 4 and "/etc/munge/munge.key: not readable" in report.silent["n2"][0] and not report.findings
    )
    assert find_drift({"n1": healthy()}, lock(), {"n2": "no route to host"}).exit_code == 4
    assert find_drift({}, lock()).exit_code == 4
    upgrade(nodes["n1"])
    assert find_drift(nodes, lock()).exit_code == 1, "drift that was seen counts"


def test_a_host_that_the_lock_does_not_know_is_named() -> None:
    nodes = {name: healthy(name) for name in (*NODES, "m7")}
    report = find_drift(nodes, lock())
    assert report.silent == {"m7": ("the lock knows no host of this name",)}


def test_hosts_of_other_classes_are_not_compared() -> None:
    controller = healthy("ctl")
    controller["classes"] = ["controller"]
    controller["packages"]["versions"]["slurmctld"] = "22.05.8-4"
    controller["packages"]["manual"].append("slurmctld")
    controller["manifest"]["packages"].append("slurmctld")
    assert find_drift({**{name: healthy(name) for name in NODES}, "ctl": controller}, lock()).findings == ()


def test_the_lock_decides_what_a_difference_means() -> None:
    report = drift_of(python_in_place)
    assert report.findings[0].level == "must"
    policy = {"must": ["unit:*"], "ignore": ["package:lib*"]}
    nodes = {name: healthy(name) for name in NODES}
    library(nodes["n2"])
    assert find_drift(nodes, lock(drift=policy)).exit_code == 0
    disabled(nodes["n2"])
    assert [each.level for each in find_drift(nodes, lock(drift=policy)).findings] == ["must"]
    assert level_of("nvidia.driver", None) == "must" and level_of("kernel", None) == "warn"
    assert level_of("nvidia.driver", Drift(ignore=("nvidia.*",), must=())) is None


def test_an_upgraded_library_of_the_environment_is_named_once() -> None:
    def torch(seen: dict[str, Any]) -> None:
        python_in_place(seen)
        seen["python"]["distributions"]["torch"] = "2.14.0 dddd"
        seen["values"]["python.torch"] = "2.14.0"

    nodes = {name: healthy(name) for name in NODES}
    torch(nodes["n2"])
    python = {"version": "3.11", "env_path": "/opt/env/current", "torch": "2.13.0"}
    found = find_drift(nodes, lock(python=python)).findings
    assert [each.fact for each in found] == ["python.environment"]
    assert found[0].words == "numpy 2.2.0, not 2.1.0, torch 2.14.0, not 2.13.0"


def test_what_differs_between_two_environments_in_words() -> None:
    assert changed_distributions({"a": "1 x"}, {"a": "1 x"}) == ""
    assert changed_distributions({"a": "1 x"}, {"a": "1 y"}) == "a 1 has other files"
    assert (
        changed_distributions({"a": "1 x", "b": "1 x"}, {"c": "2 x"})
        == "a 1, not absent, b 1, not absent, c absent, not 2"
    )
    many = {f"p{number}": "1 x" for number in range(9)}
    assert changed_distributions(many, {}).endswith("and 6 more")


def test_short_ones_are_compared_by_their_values() -> None:
    nodes = {"n1": short(), "n2": short(packages="other"), "n3": short()}
    assert [(each.node, each.fact) for each in divergent(nodes, None)] == [("n2", "packages")]


def test_what_is_no_fingerprint_is_refused() -> None:
    for value in ([], {}, {"schema": 2, "values": {}}, {"schema": 1}):
        with pytest.raises(UsageError, match=r"a.json: is no fingerprint of schema 1"):
            check_fingerprint(value, "a.json")
