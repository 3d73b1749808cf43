"""What the real cluster would refuse is refused in one go, before anything is made; and what it takes is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenomhpc.runs import RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.test_jobs import LIMIT_S, Shell, make_shell

JOB = ["submit", "convert", "--plates", "raw", "--store"]


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = make_shell(cluster, tmp_path_factory.mktemp("preflight"))
    wait_until("nobody else's job is left", lambda: jobs_of(cluster) == [], LIMIT_S)
    return made


def jobs_of(cluster: Cluster) -> list[str]:
    return cluster.run(["squeue", "-h", "-o", "%i"]).stdout.split()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_every_problem_is_told_at_once_and_nothing_is_made(lab: Shell, cluster: Cluster, words: list[str]) -> None:
    settings = ["cluster.mem_mb=99999999", "cluster.cpus_per_task=999", "--gpus-per-node", "99"]
    done = lab.type(
        "submit",
        "pretrain",
        "--store",
        "no-store",
        "--partition",
        "mian",
        "--nodes",
        "9",
        *settings,
        *words,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    told = [
        "--partition mian: phenom has",
        "--nodes 9: ",
        "--gpus-per-node 99: ",
        "cluster.cpus_per_task 999: ",
        "cluster.mem_mb 99999999: ",
        *([] if words else ["no-store"]),  # a dry run does not read what takes torch
    ]
    for problem in told:
        assert sum(problem in line for line in lines) == 1, (problem, lines)
    assert "did you mean main?" in done.stderr
    assert not (lab.folder / "runs").exists() or not list((lab.folder / "runs").iterdir())
    assert jobs_of(cluster) == []


def test_what_only_slurm_itself_knows_is_asked_of_it(lab: Shell, cluster: Cluster) -> None:
    # Each limit alone is within what the nodes have; a name in --exclude that is no node is sbatch's to refuse.
    done = lab.type(*JOB, "store-x", "--exclude", "n1,n77", check=False)
    assert done.returncode == 2 and "Slurm refuses the job" in done.stderr and "ode" in done.stderr, done.stderr
    assert jobs_of(cluster) == []
    assert not (lab.folder / "store-x").exists()


def test_a_dry_run_tells_hours_space_and_the_script_and_submits_nothing(lab: Shell, cluster: Cluster) -> None:
    done = lab.type(*JOB, "store-d", "--time", "30", "cluster.max_tasks=2", "cluster.cpus_per_task=2", "--dry-run")
    head = "\n".join(line for line in done.stdout.splitlines() if line.startswith("# "))
    assert "2 task(s) in 1 array(s) of Slurm" in head and "2 CPU hours asked for at most" in head
    assert "of output" in head and "are free in" in head
    assert jobs_of(cluster) == []
    assert not (lab.folder / "store-d").exists()


def test_leaked_variables_of_a_job_change_nothing(lab: Shell, cluster: Cluster, tmp_path: Path) -> None:
    poison = {
        "SLURM_JOB_ID": "424242", "SLURM_CPU_BIND": "cores", "SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "1",
        "SBATCH_PARTITION": "nowhere", "SBATCH_TIMELIMIT": "1", "SBATCH_ARRAY_INX": "0-99", "SRUN_CPUS_PER_TASK": "64",
        "PMIX_RANK": "3", "PMI_RANK": "3",
    }  # fmt: skip
    environment = [f"{name}={value}" for name, value in poison.items()]
    seen = lab.folder / "seen.txt"
    script = lab.folder / "look.sh"
    script.write_text(f"#!/bin/bash\nenv > {seen}\n")
    script.chmod(0o755)
    words = [
        "phenomhpc",
        "submit",
        "run",
        "--partition",
        "high",
        "--time",
        "7",
        "cluster.gate=false",
        "--wait",
        "--",
        "./look.sh",
    ]
    done = cluster.run(["env", *environment, *words], cwd=lab.folder, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert found["SLURM_JOB_PARTITION"] == "high"
    assert found["SLURM_JOB_ID"] != "424242" and "SLURM_CONF" in found
    assert not {"SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SRUN_CPUS_PER_TASK"} & set(found)
    assert not {(name, found.get(name)) for name in poison} & set(poison.items())
    job = found["SLURM_JOB_ID"]
    assert "TimeLimit=00:07:00 " in cluster.run(["scontrol", "-o", "show", "job", job]).stdout
    cluster.wait_idle()


def test_the_end_is_told_once_by_a_command_and_by_mail(lab: Shell, cluster: Cluster) -> None:
    told = lab.folder / "told.txt"
    words = [*JOB[1:], "store-told", "cluster.max_tasks=3", "--mail-type", "END", "--mail-user", "root"]
    run = lab.submit(*words, f'cluster.on_end=echo "$PHENOMHPC_RUN $PHENOMHPC_STATE" >> {told}')
    wait_until("the command was run", told.exists, LIMIT_S)
    wait_until("both are written down", lambda: len(announced(run)) == 2, LIMIT_S)
    assert told.read_text() == f"{run.id} finished\n"
    assert announced(run) == [("on_end", None), ("mail", None)]
    names = cluster.run(["squeue", "-h", "-t", "all", "-o", "%j"]).stdout.split()
    assert names.count(f"{run.id}-finished") == 1
    cluster.wait_idle()


def announced(run: RunPaths) -> list[tuple[str, str | None]]:
    return [(event["how"], event["problem"]) for event in read_events(run) if event["event"] == "announced"]


def test_cancel_leaves_nothing_behind(lab: Shell, cluster: Cluster) -> None:
    seconds = "98765"
    run = lab.submit("run", "--nodes", "2", "cluster.gate=false", "--", "sleep", seconds, wait=False)

    def at_work() -> int:
        found = [process for number in range(1, 5) for process in cluster.processes_on(number)]
        return sum(seconds in process.argv for process in found)

    wait_until("the script runs on both nodes", lambda: at_work() >= 2, LIMIT_S)
    assert f"{run.id} is cancelled" in lab.type("cancel", run.id).stdout
    wait_until("no process is left", lambda: at_work() == 0, LIMIT_S)
    wait_until("no job of the run is left", lambda: jobs_of(cluster) == [], LIMIT_S)
    cluster.wait_idle()
    assert lab.status(run)["state"] == "cancelled"
    assert not list(run.root.rglob("*.tmp-*")) and not list(run.root.rglob("*.partial"))
