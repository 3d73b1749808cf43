"""The test cluster itself: it schedules, it can be harmed, and it leaves nothing behind."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.cluster import Cluster, ClusterSpec
from tests.cluster.cluster import wait_until
from tests.cluster.processes import start_time


def test_a_step_runs_on_four_hosts_with_gpus_of_its_own(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N4", "--gpus-per-node=2", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"])
    assert sorted(done.stdout.splitlines()) == [f"n{number} 0,1" for number in (1, 2, 3, 4)]


def test_accounting_knows_a_finished_job(cluster: Cluster) -> None:
    job = cluster.run(["sbatch", "--parsable", "--output=/dev/null", "--wrap", "exit 3"]).stdout.strip()

    def recorded() -> bool:
        done = cluster.run(["sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode"])
        return done.stdout.strip() == "FAILED|3:0"

    wait_until("sacct knows the exit code", recorded, 20)


def test_a_power_cut_is_noticed_and_a_node_comes_back(cluster: Cluster) -> None:
    cluster.power_cut(4)
    wait_until("the node is down", lambda: cluster.node_state(4).startswith("down"), 40)
    cluster.power_on(4)
    cluster.wait_idle(40)


def test_a_partitioned_node_is_down_while_its_task_runs_on(cluster: Cluster, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    loop = f"while :; do echo tick >> {ticks}; sleep 0.2; done"
    job = cluster.run(
        ["sbatch", "--parsable", "--no-requeue", "--output=/dev/null", "-w", "n3", "--wrap", loop]
    ).stdout.strip()
    wait_until("the task runs", ticks.exists, 30)
    cluster.partition(3)
    try:
        wait_until("the node is down", lambda: cluster.node_state(3).startswith("down"), 40)
        size = ticks.stat().st_size
        wait_until("the cut-off task still writes", lambda: ticks.stat().st_size > size, 5)
    finally:
        cluster.heal(3)
        cluster.run(["scancel", job])
    cluster.wait_idle(60)


def test_a_crashed_cluster_is_finished_off_by_the_next_and_leaves_nothing(cluster: Cluster) -> None:
    small = Cluster(cluster.root.parent / "d", ClusterSpec(nodes=1))
    small.up()
    crashed = [pid for _, pid in small.leftovers()]
    small._processes.end("slurmctld", signal.SIGKILL)  # as a crash would: some are gone, some are not
    again = Cluster(small.root, ClusterSpec(nodes=1))
    again.up()
    assert not [pid for pid in crashed if start_time(pid)]
    living = [pid for _, pid in again.leftovers()]
    again.down()
    assert living and not [pid for pid in living if start_time(pid)]
    assert not small.root.exists()
