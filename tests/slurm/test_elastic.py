"""Elastic gangs: --nodes 2:4 on the real cluster, whose nodes lose their power or their network in mid-training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.runs import RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import LIMIT_S, TINY, Shell, losses, make_shell

STEPS, EVERY = 120, 10
# The losses of other numbers of ranks agree to so much (fp32; sums of gradients in another order).
SAME = 1e-3


@pytest.fixture(scope="module")
def shell(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = make_shell(cluster, tmp_path_factory.mktemp("elastic"))
    made.submit("convert", "--plates", "raw", "--store", "store", "shard_mb=1", "cluster.max_tasks=1")
    return made


def words(nodes: str, *more: str) -> list[str]:
    sizes = [f"optim.steps={STEPS}", f"checkpoint.every_steps={EVERY}"]
    # The machine is shared with tests that compute: no node is called lost because it was slow.
    sizes.append("cluster.lost_after_s=6")
    return ["pretrain", "--store", "store", "--nodes", nodes, "--gpus-per-node", "1", *TINY, *sizes, *more]


@pytest.fixture(scope="module")
def calm(shell: Shell) -> RunPaths:
    """Never disturbed, on a gang of a fixed size."""
    return shell.submit(*words("2"))


@pytest.fixture
def mended(cluster: Cluster) -> Iterator[list[Callable[[], None]]]:
    """What is to be done to have all nodes again."""
    repairs: list[Callable[[], None]] = []
    yield repairs
    for repair in repairs:
        repair()
    cluster.wait_idle()


def of(run: RunPaths, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run) if event["event"] == name]


def begun(shell: Shell) -> tuple[RunPaths, list[int]]:
    """A run that has committed something, submitted by a shell that is gone; its nodes' numbers by rank."""
    shell.cluster.wait_idle()  # a node that still clears up after a steward would not be given
    run = shell.submit(*words("2:4"), wait=False)
    wait_until("it has two checkpoints", lambda: len(of(run, "checkpoint")) >= 2, LIMIT_S)
    hosts = {event["task"]: event["host"] for event in of(run, "started")}
    assert len(hosts) == 4, "a range of nodes takes as many as there are"
    return run, [int(hosts[rank].removeprefix("n")) for rank in range(4)]


def ended_well(run: RunPaths, calm: RunPaths) -> None:
    """The run is whole, as if nothing had happened: every step once in the weights, every loss as in the calm run."""
    wait_until("it has ended by itself", lambda: run.outcome.is_file(), LIMIT_S)
    assert '"state":"finished"' in run.outcome.read_text(), run.outcome.read_text()
    disturbed, undisturbed = losses(run), losses(calm)
    assert sorted(disturbed) == list(range(STEPS))
    assert {step: digest for step, (_, digest) in disturbed.items()} == {
        step: digest for step, (_, digest) in undisturbed.items()
    }, "another order of the data"
    apart = [abs(loss - undisturbed[step][0]) / undisturbed[step][0] for step, (loss, _) in disturbed.items()]
    assert statistics.median(apart) < SAME and max(apart) < 100 * SAME
    # Each round goes on exactly where a committed checkpoint of the one before stands: no step is in the weights twice.
    committed = {0} | {event["step"] for event in of(run, "checkpoint")}
    assert {event["step"] for event in of(run, "resumed")} <= committed
    newest = newest_committed(run.checkpoints, lambda text: None)
    assert newest is not None and read_meta(newest).step == STEPS


def last_words(run: RunPaths, rank: int) -> list[dict[str, Any]]:
    """What the first start of a task wrote after a round had begun without it."""
    own = [event for event in read_events(run, attempt=1) if event["task"] == rank]
    began = of(run, "round")[0]["time"]
    return [event for event in own if event["token"] == own[0]["token"] and event["time"] > began]


@pytest.mark.parametrize("rank", [2, 0], ids=["a node", "the head"])
def test_after_a_power_cut_training_goes_on_in_the_same_job(
    shell: Shell, cluster: Cluster, calm: RunPaths, mended: list[Callable[[], None]], rank: int
) -> None:
    run, nodes = begun(shell)
    mended.append(lambda: cluster.power_on(nodes[rank]))
    cluster.power_cut(nodes[rank])
    wait_until("a round without it", lambda: of(run, "round"), LIMIT_S)
    ended_well(run, calm)
    (second,) = of(run, "round")
    assert second["lost"] == [f"n{nodes[rank]}"]
    assert len(second["nodes"]) == 3
    assert {event["job_id"] for event in of(run, "started")} == {second["job_id"]}
    assert len(of(run, "started")) == 4, "started anew: not in place"
    # (A fast machine may be done before Slurm, too, calls the node sick.)
    assert [event["node"] for event in of(run, "excluded")] in ([f"n{nodes[rank]}"], [])
    assert f"after losing n{nodes[rank]}" in shell.type("why", run.id).stdout


@pytest.mark.parametrize("rank", [1, 0], ids=["a node", "the head"])
def test_a_node_that_is_cut_off_writes_nothing_and_leaves(
    shell: Shell, cluster: Cluster, calm: RunPaths, mended: list[Callable[[], None]], rank: int
) -> None:
    """It still reaches the shared file system, which only the fence keeps it from."""
    run, nodes = begun(shell)
    mended.append(lambda: cluster.heal(nodes[rank]))
    cluster.partition(nodes[rank])
    wait_until("a round without it", lambda: of(run, "round"), LIMIT_S)
    wait_until("Slurm has noticed", lambda: cluster.node_state(nodes[rank]).startswith("down"), LIMIT_S)
    assert ours(cluster, nodes[rank]), "it should still run, cut off"
    cluster.heal(nodes[rank])
    # The head's srun comes back with it, and takes the step down: the same job, or the next, goes on from a checkpoint.
    ended_well(run, calm)
    assert of(run, "round")[0]["lost"] == [f"n{nodes[rank]}"]
    assert last_words(run, rank) == []
    wait_until("it runs nothing more", lambda: not ours(cluster, nodes[rank]), LIMIT_S)


def ours(cluster: Cluster, number: int) -> list[object]:
    return [process for process in cluster.processes_on(number) if "phenomhpc.jobs.slurm_task" in process.argv]


def test_with_fewer_than_the_least_the_job_waits_for_nodes(
    shell: Shell, cluster: Cluster, calm: RunPaths, mended: list[Callable[[], None]]
) -> None:
    run, nodes = begun(shell)
    for rank in (1, 2, 3):
        mended.append(lambda rank=rank: cluster.power_on(nodes[rank]))
        cluster.power_cut(nodes[rank])
    wait_until("the last one has left", lambda: of(run, "ended"), LIMIT_S)
    assert [event["code"] for event in of(run, "ended")] == [75]
    assert "at least 2 are needed" in of(run, "failed")[0]["message"]
    for repair in mended:
        repair()
    mended.clear()
    ended_well(run, calm)
    assert max(event["start"] for event in of(run, "started")) == 1
