"""The test cluster itself: it schedules, it can be harmed, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from tests.cluster import Cluster, ClusterSpec
from tests.cluster.cluster import wait_until
from tests.cluster.memory import MemoryGroups
from tests.cluster.processes import start_time

# Of what takes a second on an idle machine.
LIMIT_S = 180


def test_a_step_runs_on_four_hosts_with_gpus_of_its_own(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N4", "--gpus-per-node=2", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"])
    assert sorted(done.stdout.splitlines()) == [f"n{number} 0,1" for number in (1, 2, 3, 4)]


def test_accounting_knows_a_finished_job(cluster: Cluster) -> None:
    job = cluster.run(["sbatch", "--parsable", "--output=/dev/null", "--wrap", "exit 3"]).stdout.strip()

    def recorded() -> bool:
        done = cluster.run(["sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode"])
        return done.stdout.strip() == "FAILED|3:0"

    wait_until("sacct knows the exit code", recorded, LIMIT_S)


def test_a_power_cut_is_noticed_and_a_node_comes_back(cluster: Cluster) -> None:
    cluster.power_cut(4)
    wait_until("the node is down", lambda: cluster.node_state(4).startswith("down"), LIMIT_S)
    cluster.power_on(4)
    cluster.wait_idle()


def test_a_partitioned_node_is_down_while_its_task_runs_on(cluster: Cluster, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    loop = f"while :; do echo tick >> {ticks}; sleep 0.2; done"
    job = cluster.run(
        ["sbatch", "--parsable", "--no-requeue", "--output=/dev/null", "-w", "n3", "--wrap", loop]
    ).stdout.strip()
    wait_until("the task runs", ticks.exists, LIMIT_S)
    cluster.partition(3)
    try:
        wait_until("the node is down", lambda: cluster.node_state(3).startswith("down"), LIMIT_S)
        size = ticks.stat().st_size
        wait_until("the cut-off task still writes", lambda: ticks.stat().st_size > size, LIMIT_S)
    finally:
        cluster.heal(3)
        cluster.run(["scancel", job])
    cluster.wait_idle()


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


ALLOCATE = "block = bytearray({mb} << 20); block[::4096] = bytes(len(block[::4096])); print('allocated')"


def test_memory_is_limited_and_slurm_says_so(cluster: Cluster) -> None:
    words = ["srun", "--mem=200", sys.executable, "-c"]
    assert "allocated" in cluster.run([*words, ALLOCATE.format(mb=100)]).stdout
    script = f'exec {sys.executable} -c "{ALLOCATE.format(mb=400)}; import time; time.sleep(20)"'
    job = cluster.run(["sbatch", "--parsable", "--mem=200", "--output=/dev/null", "--wrap", script]).stdout.strip()

    def state() -> str:
        return cluster.run(["sacct", "-n", "-X", "-P", "-j", job, "-o", "State"]).stdout.strip()

    wait_until("the job is killed", lambda: state() not in {"", "PENDING", "RUNNING", "COMPLETING"}, LIMIT_S)
    if MemoryGroups(cluster.root).exist:
        assert state() == "OUT_OF_MEMORY"
    else:
        assert state() != "COMPLETED"


def test_slurmd_alone_dies_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    script = tmp_path / "tick.sh"
    script.write_text(f"while :; do echo tick >> {ticks}; sleep 0.2; done\n")
    asked = ["--no-requeue", "--output=/dev/null", "-w", "n2", "--wrap", f"exec bash {script}"]
    job = cluster.run(["sbatch", "--parsable", *asked])
    wait_until("the task runs", ticks.exists, LIMIT_S)
    cluster.kill_slurmd(2)
    size = ticks.stat().st_size
    wait_until("the task still writes", lambda: ticks.stat().st_size > size, LIMIT_S)
    cluster.start_slurmd(2)
    cluster.run(["scancel", job.stdout.strip()])
    cluster.wait_idle()
    # The controller may call a node idle a moment before the last process of a job is gone.
    wait_until("its task is gone", lambda: all(str(script) not in p.argv for p in cluster.processes_on(2)), LIMIT_S)
    size = ticks.stat().st_size
    cluster.run(["srun", "-w", "n2", "sleep", "1"])
    assert ticks.stat().st_size == size


def test_a_process_on_a_node_is_stopped_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    script = tmp_path / "tick.sh"
    script.write_text(f"while :; do echo tick >> {ticks}; sleep 0.1; done\n")
    job = cluster.run(["sbatch", "--parsable", "--output=/dev/null", "-w", "n1", "--wrap", f"exec bash {script}"])
    wait_until("the task runs", ticks.exists, LIMIT_S)
    pid = next(process.pid for process in cluster.processes_on(1) if process.argv[-1] == str(script))
    cluster.signal_on(1, pid, signal.SIGSTOP)
    size = ticks.stat().st_size
    cluster.run(["srun", "-w", "n1", "sleep", "1"])
    assert ticks.stat().st_size - size <= len("tick\n")  # one may have been on its way
    cluster.signal_on(1, pid, signal.SIGCONT)
    size = ticks.stat().st_size
    wait_until("it writes again", lambda: ticks.stat().st_size > size, LIMIT_S)
    cluster.run(["scancel", job.stdout.strip()])
    cluster.wait_idle()


def test_a_second_cluster_limits_what_a_user_may_queue(cluster: Cluster) -> None:
    spec = ClusterSpec(nodes=1, max_submit_jobs=5, overrides={"MaxArraySize": 101})
    with Cluster(cluster.root.parent / f"{cluster.root.name}-limited", spec) as limited:
        words = ["sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 30"]
        limited.run([*words, "--array=0-4"])
        refused = limited.run(words, check=False)
        assert refused.returncode and "AssocMaxSubmitJobLimit" in refused.stderr
        assert limited.run(["srun", "--version"]).stdout == cluster.run(["srun", "--version"]).stdout
        assert not cluster.run(["squeue", "-h"]).stdout  # the other one's jobs are not here
    assert not MemoryGroups(limited.root).exist


def test_without_accounting_jobs_run_and_nobody_remembers(cluster: Cluster) -> None:
    spec = ClusterSpec(nodes=1, accounting=False)
    with Cluster(cluster.root.parent / f"{cluster.root.name}-forgetful", spec) as forgetful:
        assert forgetful.run(["srun", "hostname"]).stdout == "n1\n"
        assert forgetful.run(["sacct", "-n"], check=False).stdout == ""
        assert "mariadbd" not in [name for name, _ in forgetful.leftovers()]


OWNER = """
import sys, time
from pathlib import Path
from tests.cluster import Cluster, ClusterSpec
cluster = Cluster(Path(sys.argv[1]), ClusterSpec(nodes=1, accounting=False))
cluster.up()
cluster.popen(["tail", "-f", str(cluster.root / "slurm.conf")], log=cluster.root / "tail.log")
print("up", flush=True)
time.sleep(1000)
"""


def test_a_cluster_whose_owner_was_killed_takes_itself_down(tmp_path: Path) -> None:
    root = tmp_path / "c"
    argv = [sys.executable, "-c", OWNER, str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "up\n"
        pids = [pid for _, pid in Cluster(root).leftovers()]
        wait_until("the orphan runs", lambda: _running("tail", "-f", f"{root}/slurm.conf"), LIMIT_S)
        pids += _running("tail", "-f", f"{root}/slurm.conf")
        owner.kill()
    wait_until("its folder is gone", lambda: not root.exists(), LIMIT_S)
    assert len(pids) >= 6
    wait_until("the watcher, which removed it, has ended too", lambda: not any(map(start_time, pids)), LIMIT_S)
    assert not MemoryGroups(root).exist


def _running(*argv: str) -> list[int]:
    """Ids of the processes with exactly this command."""
    wanted, found = b"\0".join(word.encode() for word in argv) + b"\0", []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                found += [int(folder.name)] if (folder / "cmdline").read_bytes() == wanted else []
    return found
