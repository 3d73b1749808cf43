"""What a cluster refuses, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from phenomhpc.config import ClusterConfig
from phenomhpc.slurm.accounts import Accounting, is_enforced, parse_associations
from phenomhpc.slurm.facts import ClusterFacts, parse_partitions, with_policies
from phenomhpc.slurm.refuse import problems_of

SINFO = "main|4|1:00:00|n/a|gpu:8|8|16000|main*\nold|9|infinite|n/a|(null)|64|64000|old"
SCONTROL = (
    "PartitionName=main AllowGroups=ALL DenyAccounts=guests AllowQos=normal,high QoS=small MaxNodes=3 MinNodes=2 State=UP\n"
    "PartitionName=old AllowGroups=ALL AllowAccounts=lab,staff AllowQos=ALL QoS=N/A MaxNodes=UNLIMITED MinNodes=0 State=DRAIN\n"
)


def facts() -> ClusterFacts:
    found = Accounting(
        associations=parse_associations("lab|normal,high\nguests|normal\n"),
        qos=("normal", "high", "small"),
        default_account="lab",
    )
    partitions = with_policies(parse_partitions(SINFO), SCONTROL)
    return ClusterFacts(name="x", version="", partitions=partitions, max_array_size=1001, accounting=found)


def test_every_problem_is_named_and_not_the_first_only() -> None:
    asked = ClusterConfig(partition="main", account="gests", qos="hihg", time_minutes=90, gpus_per_node=9, mem_mb=99999)
    found = problems_of(asked, 5, facts())
    assert [line.split()[0] for line in found] == [
        "--account", "--qos", "--qos", "--nodes", "--nodes", "--gpus-per-node", "cluster.mem_mb", "--time",
    ]  # fmt: skip
    assert all("\n" not in line for line in found)


def test_a_mistyped_partition_does_not_hide_the_rest() -> None:
    found = problems_of(ClusterConfig(partition="mian", mem_mb=70000), 10, facts())
    assert found == [
        "--partition mian: x has main, old; did you mean main?",
        "--nodes 10: the largest partition has 9 node(s)",
        "cluster.mem_mb 70000: the largest partition has 64000 MiB per node",
    ]


@pytest.mark.parametrize(
    ("cluster", "num_nodes", "said"),
    [
        ({"account": "guests"}, 2, "--account guests: partition main denies it"),
        ({"qos": "small"}, 2, "--qos small: you may use normal, high"),
        ({}, 4, "--nodes 4: partition main has 3 node(s) per job at most"),
        ({}, 1, "--nodes 1: partition main has 2 node(s) per job at least"),
        ({"partition": "old"}, 2, "--partition old: its state is DRAIN, it takes no jobs"),
        ({"partition": "old", "account": "guests"}, 2, "--account guests: partition old allows lab, staff"),
    ],
)
def test_policies_of_a_partition_are_told(cluster: dict[str, str], num_nodes: int, said: str) -> None:
    found = problems_of(ClusterConfig.model_validate(cluster), num_nodes, facts())
    assert any(line.startswith(said) for line in found), found


def test_what_is_allowed_is_not_refused() -> None:
    assert problems_of(ClusterConfig(account="lab", qos="high", time_minutes=60, gpus_per_node=8), 3, facts()) == []


def test_without_accounting_no_account_is_refused() -> None:
    unknown = replace(facts(), accounting=None)
    assert problems_of(ClusterConfig(account="lab", qos="normal"), 2, unknown) == []


@pytest.mark.parametrize(
    ("enforce", "insists"),
    [("none", False), ("associations", True), ("associations,limits,qos,safe", True), ("", False)],
)
def test_only_what_slurm_enforces_counts(enforce: str, insists: bool) -> None:
    assert is_enforced(enforce) == insists
