"""The site lock: what is refused, with which words; what site.json says to those who read no lock."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from phenomhpc.config.defaults import site_defaults
from phenomhpc.errors import UsageError
from phenomhpc.nodes.hostlist import expand
from phenomhpc.nodes.lock import HOST_CLASSES
from phenomhpc.nodes.lock_file import find_lock, lock_from, read_lock, site_json
from phenomhpc.nodes.lock_rules import says

EXAMPLE = Path(__file__).with_name("site.lock.yml")
PLAIN = """\
schema: 1
name: plain
slurm:
  cluster: plain
  controller: ctl
  node_types: [{name: n, nodes: "n[1-3]", cpus: 2, memory_mb: 1000}]
  partitions: [{name: all, nodes: "n[1-3]", default: true}]
"""


def example() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    return value


def changed(**values: Any) -> dict[str, Any]:
    """The example with values at dotted keys (`__` for a dot, numbers for places in lists; ... takes away)."""
    whole = copy.deepcopy(example())
    for key, value in values.items():
        part: Any = whole
        *way, last = (int(word) if word.isdigit() else word for word in key.split("__"))
        for word in way:
            part = part[word]
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return whole


def test_the_example_is_right_and_complete() -> None:
    """Every key of the schema is in it, so that it can be copied from."""
    lock = read_lock(EXAMPLE)
    given, whole = example(), site_json(lock)
    assert set(given) == set(whole) - {"derived"}
    for name in (
        "nvidia",
        "rdma",
        "gpfs",
        "python",
        "paths",
        "checks",
        "drift",
        "managed",
        "slurm",
        "time",
        "containers",
    ):
        assert set(given[name]) == set(whole[name]), name
    assert lock.classes()["dgx16"] == ("compute",) and len(lock.classes()) == 19
    assert lock.classes()["head1"] == ("controller", "database")
    assert whole["derived"]["real_memory_mb"] == {"dgx": 2063000 - 32768 - 65536}
    assert whole["derived"]["gpus"]["dgx07"] == 8


def test_site_json_is_a_lock_and_holds_the_defaults_of_the_command_line() -> None:
    whole = json.loads(json.dumps(site_json(read_lock(EXAMPLE))))
    assert lock_from(whole, "site.json") == read_lock(EXAMPLE)
    paths = {"store": "/gpfs/fs1/stores/phenom", "runs": "/gpfs/fs1/runs", "raw": "/gpfs/fs1/raw"}
    assert site_defaults(whole) == {**paths, "partition": "train", "gpus_per_node": 8}


def test_a_site_of_plain_machines_needs_nothing_but_slurm(tmp_path: Path) -> None:
    file = tmp_path / "site.lock.yml"
    file.write_text(PLAIN)
    lock = read_lock(file)
    assert lock.nvidia is lock.gpfs is lock.rdma is lock.python is None
    assert site_json(lock)["derived"]["hosts"] == {
        "ctl": ["controller"],
        "n1": ["compute"],
        "n2": ["compute"],
        "n3": ["compute"],
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nvidia__fabricmanager": "570.1"}, "nvidia.fabricmanager=570.1: the fabric manager runs with its own driver only"),
        ({"nvidia__cuda": "13.0"}, "nvidia.cuda=13.0: needs a driver of 580 or newer, not 570.133.20"),
        ({"gpfs__gplbin": "5.15.0-1"}, "gpfs.gplbin=5.15.0-1: GPFS's module does not load into kernel.release="),
        ({"kernel": ...}, "gpfs.gplbin=5.15.0-1063-nvidia: is built for one kernel; pin it: kernel.release is missing"),
        ({"slurm__node_types__0__real_memory_mb": 2063000}, "real_memory_mb=2063000: reserved_mb=32768 and GPFS's pagepool"),
        ({"gpfs__pagepool_mb": 3_000_000}, "memory_mb=2063000: reserved_mb=32768 and GPFS's pagepool_mb=3000000 leave nothing"),
        ({"slurm__node_types__0__cpus": 100}, "slurm.node_types.dgx.cpus=100: is not sockets=2 x cores_per_socket=56"),
        ({"slurm__partitions__0__default": False}, "slurm.partitions.default=none: one partition is the default, not 0"),
        ({"slurm__partitions__1__default": True}, "slurm.partitions.default=train,debug: one partition is the default, not 2"),
        ({"slurm__partitions__1__nodes": "dgx[16-18]"}, "slurm.partitions.debug.nodes=dgx[16-18]: dgx17, dgx18: in no node type"),
        ({"slurm__partitions__1__gpus_per_node": 9}, "slurm.partitions.debug.gpus_per_node=9: dgx01, dgx02: has fewer GPUs"),
        ({"slurm__settings": {"clustername": "x"}}, "slurm.settings.clustername=x: is written from slurm.cluster"),
        ({"gpfs__delegate": "head9"}, "gpfs.delegate=head9: is no host of slurm's"),
        ({"gpfs__attributes__clients": {"pagepool": "1G"}}, "gpfs.attributes.clients.pagepool=1G: is gpfs.pagepool_mb"),
        ({"gpfs__attributes__other": {"a": "1"}}, "gpfs.attributes=other: is no node class; there are default, clients"),
        ({"checks__total_s": 58}, "checks.total_s=58: Slurm kills the check after 60 s; give at most 55"),
        ({"checks__each_s": 51}, "checks.each_s=51: is more than checks.total_s=50"),
        ({"managed__files__7__mode": "0644"}, "managed.files.mode=0644: /etc/munge/munge.key is secret"),
        ({"drift__ignore": ["nvidia.nccl"]}, "drift.must=nvidia.nccl: is in drift.ignore, too"),
        ({"paths__env": "/opt/env"}, "paths.env=/opt/env: is not python.env_path="),
        ({"nvidia__packages": ["x"]}, "nvidia.packages=x: has no exact version; add it to packages"),
        ({"packages__2__version": "569.1-1"}, "nvidia-fabricmanager-570=569.1-1: is not of nvidia.fabricmanager=570.133.20"),
        ({"packages__4__version": "24.05.5-1"}, "packages.slurm-smd-slurmd=24.05.5-1: is not of slurm.version=24.11.5; change one"),
        ({"users__1__uid": 981}, "users.uid=981: is there 2 times; leave one"),
        ({"rdma__stack": "inbox"}, "rdma.version=24.10: stack=inbox has the kernel's version; leave it out"),
        ({"python__lock_sha256": "12ab"}, "python.lock_sha256=12ab: is no sha256"),
        ({"nvidia__driver": 570.133}, 'nvidia.driver=570.133: quote it: "570.133"'),
        ({"slurm__partitions__1__max_time": 3600}, 'slurm.partitions.1.max_time=3600: quote it: "3600"'),
        ({"slurm__partitions__1__max_time": "1 day"}, "slurm.partitions.1.max_time=1 day: is no time of Slurm's"),
        ({"slurm__nodes": 3}, "slurm.nodes=3: no such key; keys here: version, cluster, controller"),
        ({"slurm__node_types__0__gpu": 3}, "slurm.node_types.0.gpu=3: no such key; keys here: name, nodes, cpus"),
        ({"slurm__node_types__0__nodes": "dgx[9-1]"}, "slurm.node_types.0.nodes=dgx[9-1]: 'dgx[9-1]': '9-1' goes backwards"),
        ({"slurm__controller": ...}, "slurm.controller: is missing"),
        ({"schema": 2}, "schema=2: input should be 1"),
        ({"gpfs__mounts__0__path": "gpfs"}, "gpfs.mounts.0.path=gpfs: is no absolute path"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        lock_from(changed(**values), "site.lock.yml")
    said = str(refused.value)
    assert words in said and said.startswith("site.lock.yml: ") and "\n" not in said


def test_a_node_of_two_types_and_a_pin_twice_are_named() -> None:
    whole = example()
    whole["slurm"]["node_types"].append({"name": "other", "nodes": "dgx16", "cpus": 2, "memory_mb": 100_000})
    with pytest.raises(UsageError, match="dgx16 is in node type dgx, too"):
        lock_from(whole, "x")
    whole = example()
    whole["packages"].append({"name": "slurm-smd-client", "version": "24.11.5-2", "hosts": ["login"]})
    with pytest.raises(
        UsageError, match=r"packages=slurm-smd-client \(24.11.5-2\): is there twice for one class of hosts"
    ):
        lock_from(whole, "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "line 2: is no YAML: a is there twice"),
        ("a: [1\n", "is no YAML"),
        ("- 1\n", "is no lock: wants keys such as schema, name, slurm"),
        ("", "is no lock"),
        (PLAIN.replace('cpus: 2', 'cpus: 2, cpus: 3'), "cpus is there twice"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_lock_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "site.lock.yml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_lock(file)
    assert words in str(refused.value) and str(file) in str(refused.value)
    with pytest.raises(UsageError, match="not readable"):
        read_lock(tmp_path / "gone")


def test_the_hosts_own_lock_is_found_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHENOMHPC_SITE", str(tmp_path / "site.json"))
    assert find_lock(None) is None
    (tmp_path / "site.json").write_text(json.dumps(site_json(read_lock(EXAMPLE))))
    found = find_lock(None)
    assert found is not None and found.name == "dgx16"


def test_versions_say_each_other() -> None:
    assert says("1:24.11.5-1", "24.11.5") and says("24.11.5", "24.11.5") and says("12.8.1", "12.8")
    assert not says("24.11.50", "24.11.5") and not says("124.11.5", "24.11.5")


def test_host_lists() -> None:
    assert expand("dgx[01-03,07],head1") == ("dgx01", "dgx02", "dgx03", "dgx07", "head1")
    assert expand("r[1-2]n[1-2]") == ("r1n1", "r1n2", "r2n1", "r2n2")
    assert expand("a, a,b") == ("a", "b")
    for wrong in ("", "a,,b", "n[1-", "n[a-b]", "n[3-1]", "n[1-999999]", "-n", "n[1]]", "a b"):
        with pytest.raises(ValueError, match=r"host|number|backwards"):
            expand(wrong)


def test_the_classes_of_hosts_are_those_of_the_schema() -> None:
    assert HOST_CLASSES == ("controller", "database", "login", "compute")
