"""kill -9 of processes of a run on two nodes, drawn at random: nothing is lost, and the weights are those of a calm run.

Three kills here; `make soak` asks for a hundred.  Each comes when the run has committed something since the one before (two
crashes at the same point stop a run, rightly), at a moment of its own: in a step, or in the writing of a checkpoint.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import numpy as np
import pytest
import torch

from phenomhpc.models.checkpoint import (
    COMMITTED,
    damage,
    damaged_bytes,
    load_encoder,
    read_meta,
    step_folder,
    step_folders,
)
from phenomhpc.runs import RunPaths, read_outcome
from phenomhpc.train.metrics import read_metrics
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.killing import STEWARD_SHARE, kill, kill_steward, processes_of, story
from tests.slurm.provoking import Lab, make_lab

SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
KILLS = 100 if SOAK else 3
# Of one run: so many kills and no more, so that many runs are disturbed at their beginnings and at their ends.
KILLS_OF_A_RUN = 12 if SOAK else KILLS
STEPS, EVERY = (300, 3) if SOAK else (90, 3)
LIMIT_S = 240.0
SEED = 20
LONGEST_WAIT_S = 1.5


@pytest.fixture(scope="module")
def lab(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return make_lab(cluster, tmp_path_factory.mktemp("kills"))


def pretrain(lab: Lab) -> RunPaths:
    small = ("model.depth=2", "model.dim=48", "model.decoder_depth=1", "model.crop_px=32", "optim.global_batch=8")
    patient = ("cluster.max_attempts=1000", "cluster.hang_min_s=60", "checkpoint.keep=20")
    return lab.pretrain("--nodes", "2", *small, *patient, steps=STEPS, every=EVERY)


def check_readable(run: RunPaths) -> int:
    """Read every committed checkpoint to its last byte; how many there are.  One that is being removed loses its mark first."""
    read = 0
    for folder in reversed(step_folders(run.checkpoints).values()):
        try:
            if not (folder / COMMITTED).exists():
                continue
            wrong = damage(folder) or damaged_bytes(folder)
            assert wrong is None, wrong
            load_encoder(folder)
            read += 1
        except Exception as error:
            assert not (folder / COMMITTED).exists(), f"{folder} was committed and cannot be read: {error}"
    return read


def disturb(lab: Lab, run: RunPaths, draw: random.Random, kills: int) -> list[str]:
    """Kill until so many are dead, or the run has ended; what was killed."""
    killed: list[str] = []
    reached = 0

    def moved() -> bool:
        return read_outcome(run) is not None or run.committed_step() > reached

    while len(killed) < kills:
        wait_until(f"{run.id} goes on behind step {reached} after {killed[-2:]}", moved, LIMIT_S)
        reached = run.committed_step()
        time.sleep(draw.uniform(0, LONGEST_WAIT_S))
        if read_outcome(run) is not None:
            break
        reached = run.committed_step()
        victim = kill(lab, processes_of(lab, (run.id,)), draw)
        assert check_readable(run) > 0
        if victim is None:
            continue
        print(f"{run.id}: behind step {reached}: {victim.kind} on n{victim.node}", flush=True)
        killed.append(victim.kind)
        if len(killed) < kills and draw.random() < STEWARD_SHARE:
            killed += kill_steward(lab, run, draw)
    return killed


def weights_at(run: RunPaths, step: int) -> str:
    return read_meta(step_folder(run.checkpoints, step)).weights


@pytest.mark.timeout(3 * 3600 if SOAK else 900)
def test_whatever_is_killed_the_weights_are_those_of_a_calm_run(lab: Lab) -> None:
    torch.set_num_threads(1)
    calm = pretrain(lab)
    assert lab.ended(calm)["state"] == "finished"
    assert (
        check_readable(calm) > 0
    )  # (And what reads is imported: a first look must not last until all it saw is superseded.)
    draw = random.Random(SEED)
    killed: list[str] = []
    while len(killed) < KILLS:
        run = pretrain(lab)
        died = disturb(lab, run, draw, min(KILLS_OF_A_RUN, KILLS - len(killed)))
        outcome = lab.ended(run)
        if (outcome["state"], outcome["exit_code"]) != ("finished", 0):
            pytest.fail(f"{died}\n{outcome}\n{story(run)}")
        assert check_readable(run) > 0
        assert weights_at(run, STEPS) == weights_at(calm, STEPS), died
        disturbed, undisturbed = (read_metrics(which.metrics) for which in (run, calm))
        for name in ("step", "index_digest"):
            assert disturbed[name].to_pylist() == undisturbed[name].to_pylist(), died
        assert np.array_equal(disturbed["loss"].to_numpy(), undisturbed["loss"].to_numpy()), died
        assert died, "it ended before anything was killed: give it more steps"
        killed += died
    print(dict(Counter(killed)))
    lab.cluster.wait_idle()
