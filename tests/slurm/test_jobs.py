"""Jobs on the real cluster, from a shell as a user would have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, read_events
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until

STEPS = 12
TINY = ["model=mae_vit_tiny", "optim=cpu", "optim.global_batch=16", "optim.micro_batch=8", "log_every_steps=1"]
LIMIT_S = 400


class Shell:
    """A folder on the shared file system, and the commands typed in it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def type(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(["phenomhpc", *words], cwd=self.folder, timeout=LIMIT_S, check=check)

    def submit(self, *words: str, wait: bool = True) -> RunPaths:
        """Submit; the run, which has ended well when `wait`."""
        done = self.type("submit", *words, *(["--wait"] if wait else []))
        name = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("submitted:"))
        return RunPaths(self.folder / "runs" / name)

    def status(self, run: RunPaths) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.type("status", run.id, "--json").stdout)
        return value

    def accounted(self, run: RunPaths) -> list[str]:
        """sacct's states of the newest attempt's jobs, one per array element."""
        jobs = ",".join(self.status(run)["jobs"])
        return self.cluster.run(["sacct", "-n", "-X", "-P", "-j", jobs, "-o", "State"]).stdout.split()


def make_shell(cluster: Cluster, folder: Path) -> Shell:
    """Two experiments of two small plates, and defaults written by `init` on a cluster without any site.json."""
    spec = SyntheticSpec(
        plate_rows=2, plate_columns=4, field_px=96, num_genes=6, genes_per_pathway=2, num_unexpressed=0, control_share=0.3,
        plates_per_experiment=2,
    )  # fmt: skip
    write_plates(folder / "raw", spec, silent(), workers=1)
    made = Shell(cluster, folder)
    made.type("init", "--yes")
    assert "partition: main" in (folder / "phenomhpc.yaml").read_text()
    return made


@pytest.fixture(scope="module")
def shell(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return make_shell(cluster, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def converted(shell: Shell) -> RunPaths:
    return shell.submit("convert", "--plates", "raw", "--store", "store", "shard_mb=1", "cluster.max_tasks=3")


def pretrain_words(steps: int = STEPS, every: int = 4) -> list[str]:
    sizes = [f"optim.steps={steps}", f"checkpoint.every_steps={every}"]
    return ["pretrain", "--store", "store", "--nodes", "2", "--gpus-per-node", "1", *TINY, *sizes]


@pytest.fixture(scope="module")
def pretrained(shell: Shell, converted: RunPaths) -> RunPaths:
    return shell.submit(*pretrain_words())


def test_an_array_of_three_converts_and_sacct_agrees(shell: Shell, converted: RunPaths) -> None:
    status = shell.status(converted)
    assert (status["state"], status["done"], status["total"], status["attempt"]) == ("finished", 4, 4, 1)
    wait_until("sacct has them", lambda: shell.accounted(converted) == ["COMPLETED"] * 3, LIMIT_S)
    nodes = list(converted.attempt(1).node("any").parent.iterdir())
    assert nodes and all(json.loads(file.read_bytes())["values"]["python.environment"] for file in nodes)
    for task in range(3):
        assert "fields" in shell.type("logs", converted.id, "--task", str(task)).stdout
    assert converted.id in shell.type("runs").stdout
    assert (converted.code / "phenomhpc" / "__init__.py").is_file()


def test_a_gang_of_two_nodes_pretrains(shell: Shell, pretrained: RunPaths) -> None:
    status = shell.status(pretrained)
    assert (status["state"], status["done"], status["total"]) == ("finished", STEPS, STEPS)
    hosts = {event["host"] for event in read_events(pretrained) if event["event"] == "started"}
    assert len(hosts) == 2
    assert "2 rank(s)" in shell.type("logs", pretrained.id).stdout
    wait_until("sacct has it", lambda: shell.accounted(pretrained) == ["COMPLETED"], LIMIT_S)
    assert pretrained.report.is_file() and pretrained.reconstructions.is_file()


def test_wells_are_embedded_and_scored(shell: Shell, pretrained: RunPaths) -> None:
    embedded = shell.submit("embed", "--store", "store", "--checkpoint", pretrained.id, "cluster.gpus_per_node=0")
    assert sorted(path.stem for path in embedded.embeddings.glob("*.parquet")) == [
        f"SYN-0{experiment}__Plate{plate}" for experiment in (1, 2) for plate in (1, 2)
    ]
    scored = shell.submit("evaluate", "--embeddings", "last", "--annotations", "raw/annotations")
    assert scored.report.is_file()
    assert shell.status(scored)["state"] == "finished"


def test_a_pipeline_goes_its_way_after_the_shell_is_gone(shell: Shell, cluster: Cluster) -> None:
    words = [
        "--plates",
        "raw",
        "--store",
        "store-2",
        "--annotations",
        "raw/annotations",
        "--nodes",
        "2",
        "--gpus-per-node",
        "1",
    ]
    settings = ["pretrain.model=mae_vit_tiny", "pretrain.optim.recipe=cpu", "pretrain.optim.global_batch=16"]
    settings += ["pretrain.optim.micro_batch=8", "pretrain.optim.steps=4", "embed.cluster.gpus_per_node=0"]
    run = shell.submit("pipeline", *words, *settings, wait=False)  # returns at once: this shell's process has ended
    wait_until("the pipeline has ended", lambda: run.outcome.is_file(), LIMIT_S)
    status = shell.status(run)
    assert status["state"] == "finished", status
    assert [(stage, state) for stage, _, state in status["stages"]] == [
        (stage, "finished") for stage in ("convert", "pretrain", "embed", "evaluate")
    ]
    assert "evaluate" in shell.type("logs", run.id).stdout


def losses(run: RunPaths) -> dict[int, tuple[float, str]]:
    """Loss and index digest by step; a repeated step counts as it was computed last."""
    found: dict[int, tuple[float, str]] = {}
    for path in sorted(run.metrics.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns):
        table: pa.Table = pq.read_table(path)
        for row in table.select(["step", "loss", "index_digest"]).to_pylist():
            found[row["step"]] = (row["loss"], row["index_digest"])
    return found


def test_a_power_cut_in_mid_training_changes_no_loss_at_any_step(
    shell: Shell, converted: RunPaths, cluster: Cluster
) -> None:
    steps = 120  # enough that a fast machine has not finished when the cut comes
    calm = shell.submit(*pretrain_words(steps=steps, every=4))
    cut = shell.submit(*pretrain_words(steps=steps, every=4), wait=False)

    def checkpoints() -> int:
        return sum(event["event"] == "checkpoint" for event in read_events(cut))

    wait_until("it has a checkpoint", lambda: checkpoints() >= 2, LIMIT_S)
    nodes = cluster.run(["squeue", "-h", "-j", ",".join(shell.status(cut)["jobs"]), "-o", "%N"]).stdout.strip()
    victim = int(cluster.run(["scontrol", "show", "hostnames", nodes]).stdout.split()[-1].removeprefix("n"))
    cluster.power_cut(victim)
    try:
        wait_until("it has ended by itself", lambda: cut.outcome.is_file(), LIMIT_S)
    finally:
        cluster.power_on(victim)
    assert shell.status(cut)["state"] == "finished"
    events = read_events(cut)
    assert sum(event["event"] == "resumed" for event in events) >= 1
    assert losses(cut) == losses(calm)
    assert len(losses(calm)) == steps
    cluster.wait_idle()


def test_more_nodes_than_there_are_is_one_line_and_nothing_is_made(shell: Shell, converted: RunPaths) -> None:
    before = sorted(path.name for path in (shell.folder / "runs").iterdir())
    done = shell.type("submit", "pretrain", "--store", "store", "--nodes", "5", *TINY, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "phenomhpc: --nodes 5: partition main has 4 node(s)"
    assert sorted(path.name for path in (shell.folder / "runs").iterdir()) == before


def test_a_cancelled_run_leaves_no_job_and_stays_cancelled(shell: Shell, converted: RunPaths, cluster: Cluster) -> None:
    run = shell.submit(*pretrain_words(steps=100000), wait=False)
    wait_until("it runs", lambda: shell.status(run)["state"] == "running", LIMIT_S)
    assert "is cancelled" in shell.type("cancel", run.id).stdout
    wait_until("no job is left", lambda: not cluster.run(["squeue", "-h"]).stdout.strip(), LIMIT_S)
    assert shell.status(run)["state"] == "cancelled"


def test_a_failure_is_named_and_returned(shell: Shell, tmp_path: Path) -> None:
    plate = tmp_path / "BAD-01" / "Plate1"
    plate.mkdir(parents=True)
    for channel in (1, 2):
        good = (shell.folder / "raw" / "SYN-01" / "Plate1" / f"A01_s1_w{channel}.png").read_bytes()
        (plate / f"A01_s1_w{channel}.png").write_bytes(good)
        (plate / f"A02_s1_w{channel}.png").write_bytes(good[:500])
    done = shell.type("submit", "convert", "--plates", str(tmp_path), "--store", "store-bad", "--wait", check=False)
    assert done.returncode == 1
    assert "1 of 2 fields were set aside" in done.stdout and "truncated" in done.stdout
    assert "failed" in shell.type("status", "last").stdout


def test_a_run_after_another_starts_when_that_has_finished(shell: Shell) -> None:
    first = shell.submit("convert", "--plates", "raw", "--store", "store-3", wait=False)
    second = shell.submit("convert", "--plates", "raw", "--store", "store-4", "--after", first.id)
    ended, started = (read_events(run) for run in (first, second))
    assert ended[-1]["time"] < started[0]["time"]
    assert shell.status(second)["state"] == "finished"


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_without_slurm_a_dry_run_works_and_a_submission_says_how_to_run_here(
    shell: Shell, words: Sequence[str]
) -> None:
    command = [sys.executable, "-m", "phenomhpc", "submit", "convert", "--plates", "raw", "--store", "store-5", *words]
    empty = shell.folder / "empty-path"
    empty.mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": str(empty)}
    done = subprocess.run(command, cwd=shell.folder, env=environment, capture_output=True, text=True, timeout=60)
    if words:
        assert done.returncode == 0, done.stderr
        assert "#SBATCH --array=0-" in done.stdout and "srun" in done.stdout
    else:
        assert done.returncode == 4
        assert "to run the same here and now: phenomhpc convert --plates raw --store store-5" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
