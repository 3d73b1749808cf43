"""Slurm's own services fail: the controller is killed and comes back, the accounting database is away all the time."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from phenomhpc.runs import RunPaths, read_outcome
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.provoking import LIMIT_S, Lab, make_lab, of_kind

STEPS, EVERY = 60, 5
# A state that nobody can know is called unknown, never an end.
HONEST = {"queued", "running", "unknown", "finished"}


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(cluster, tmp_path_factory.mktemp("services"))


def watched(lab: Lab, run: RunPaths, seen: list[dict[str, Any]]) -> bool:
    """One look at `status`, noted; has the run ended?"""
    ended = read_outcome(run) is not None
    done = lab.type("status", run.id, "--json", check=False)
    assert done.returncode in (0, 4), done.stderr  # 4: Slurm does not answer, and it says so
    told = json.loads(done.stdout)
    assert told["state"] in HONEST, told
    assert told["state"] != "finished" or read_outcome(run) is not None, "finished before it was"
    seen.append(told)
    return ended


def test_the_controller_is_killed_and_comes_back_during_a_run(lab: Lab, cluster: Cluster) -> None:
    gang = lab.pretrain("--nodes", "2", steps=STEPS, every=EVERY)
    array = lab.convert("cluster.max_tasks=4")
    lab.event(gang, "checkpoint")
    cluster.kill_controller()
    try:
        seen: list[dict[str, Any]] = []
        step = gang.committed_step()
        for run in (gang, array, gang):
            watched(lab, run, seen)
        blind = [told for told in seen if told["id"] == gang.id]
        assert {told["state"] for told in blind} == {"unknown"}, "nobody can know"
        assert all("last known: " in told["message"] for told in blind), blind[0]["message"]
        wait_until("the gang goes on without it", lambda: gang.committed_step() > step, LIMIT_S)
    finally:
        cluster.start_controller()
    for run in (gang, array):
        wait_until(f"{run.id} has ended", lambda run=run: watched(lab, run, seen), LIMIT_S)
        outcome = read_outcome(run)
        assert outcome is not None and outcome["state"] == "finished", outcome
    assert gang.committed_step() == STEPS and len(of_kind(gang, "started")) == 2, "nothing was started again"
    assert lab.status(array)["done"] == 4
    cluster.wait_idle()


def test_without_the_accounting_database_and_without_sacct_a_run_goes_its_way(
    lab: Lab, cluster: Cluster, tmp_path: Path
) -> None:
    """From before the submission to after the end, with a task that is preempted in between."""
    cluster.kill_slurmdbd()
    try:
        run = lab.pretrain("cluster.exclude=[n1,n2,n3]", "--partition", "low", steps=STEPS, every=EVERY)
        lab.event(run, "checkpoint")
        job = lab.job_of(run)
        cluster.run(["scontrol", "requeue", job])  # as a preemption does: without a word to the task
        seen: list[dict[str, Any]] = []
        wait_until("it has ended", lambda: watched(lab, run, seen), LIMIT_S)
        outcome = read_outcome(run)
        assert outcome is not None and outcome["state"] == "finished", outcome
        assert run.committed_step() == STEPS and len(of_kind(run, "started")) == 2
        assert "unknown" not in {told["state"] for told in seen}, "the controller answers all the time"
        # No sacct at all: the programs of Slurm that there are, and nothing else.
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("squeue", "scontrol", "sinfo", "sbatch", "scancel"):
            found = shutil.which(name)
            assert found is not None
            (programs / name).symlink_to(found)
        path = f"PATH={programs}:{Path(sys.executable).parent}"
        told = cluster.run(["env", path, "phenomhpc", "why", run.id], cwd=lab.folder, timeout=LIMIT_S)
        assert "finished" in told.stdout and "start(s) that Slurm repeated" in told.stdout
    finally:
        cluster.start_slurmdbd()
    cluster.wait_idle()


def test_a_stage_that_fails_ends_the_pipeline_and_is_named(lab: Lab) -> None:
    """The steward starts the next stage only behind one that is whole; nothing waits for what never comes."""
    words = ["--plates", "raw", "--store", "store-p", "--annotations", "raw/annotations", "--gpus-per-node", "1"]
    settings = ["pretrain.model.recipe=mae_vit_tiny", "pretrain.optim.recipe=cpu", "pretrain.optim.steps=4"]
    # Crops larger than the fields: no reader can give them, and only the task finds out.
    run = lab.leave("pipeline", *words, *settings, "pretrain.model.crop_px=128", "pretrain.model.patch_px=16")
    wait_until("the pipeline has ended", lambda: read_outcome(run) is not None, LIMIT_S)
    status = lab.status(run)
    assert status["state"] == "failed"
    assert [(stage, state) for stage, _, state in status["stages"]][:2] == [
        ("convert", "finished"),
        ("pretrain", "failed"),
    ]
    told = json.loads(lab.type("why", run.id, "--json").stdout)
    assert "pretrain" in told["stage"] and told["failure"]
    wait_until("no job is left", lambda: not lab.cluster.run(["squeue", "-h"]).stdout.strip(), LIMIT_S)
