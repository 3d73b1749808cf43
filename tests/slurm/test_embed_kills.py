"""kill -9 of processes of an array that embeds, drawn at random: every file is byte for byte that of an undisturbed run here.

Five kills here; `make soak` asks for fifty.  The first of a run meets a task that has hardly begun.  Each other comes when the run
has committed a plate since the one before and since the attempt began (two crashes at the same point stop a run, rightly), at a
moment of its own: as a rule in the middle of a plate.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from phenomhpc.jobs.embed import check_embeddings
from phenomhpc.jobs.steward import run_mark
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, read_outcome
from tests.cluster import Cluster
from tests.cluster.cluster import wait_until
from tests.slurm.killing import STEWARD_SHARE, Victim, kill, kill_steward, processes_of, story
from tests.slurm.provoking import Lab, of_kind
from tests.unit.embed_store import Screen, contents, make_screen

SOAK = bool(os.environ.get("PHENOMHPC_SOAK"))
KILLS = 50 if SOAK else 5
KILLS_OF_A_RUN = 7 if SOAK else KILLS
PLATES, TASKS = 12, 3
# About a second of work a plate, so that a kill meets it in the middle.
SETTINGS = {"blocks": ["all"], "batch": 16, "crops": "random", "crops_per_field": 400}
LIMIT_S = 240.0
SEED = 7
LONGEST_WAIT_S = 1.5


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    torch.set_num_threads(1)
    return make_screen(tmp_path_factory.mktemp("embed_kills"), plates_per_experiment=PLATES)


@pytest.fixture(scope="module")
def lab(cluster: Cluster, screen: Screen) -> Lab:
    made = Lab(cluster, screen.root)
    made.type("init", "--yes")
    return made


def submit(lab: Lab, screen: Screen, out: Path) -> RunPaths:
    settings = [f"{key}={value}".replace("'", "").replace(" ", "") for key, value in SETTINGS.items()]
    patient = ["cluster.max_attempts=1000", "cluster.hang_min_s=60", f"cluster.max_tasks={TASKS}"]
    words = ["embed", "--store", screen.store, "--checkpoint", screen.checkpoint.root, "--out", out, "device=cpu"]
    env = {"OMP_NUM_THREADS": "1"}  # the last bits of a vector depend on it
    return lab.leave(*map(str, words), "cluster.gpus_per_node=0", *settings, *patient, env=env)


def at_work(lab: Lab, run: RunPaths) -> list[Victim]:
    """The run's processes, but for Slurm's own between srun and a task: of its death Slurm tells srun nothing, which then waits
    for the time limit (a gang is ended by its other nodes)."""
    return [victim for victim in processes_of(lab, (run.id,)) if victim.kind != "slurmstepd of the task"]


def kill_at_start(lab: Lab, run: RunPaths, draw: random.Random) -> list[str]:
    """Kill the script of a task as soon as there is one, before the task's first word as a rule; what was killed."""
    scripts: list[Victim] = []

    def began() -> bool:
        scripts[:] = [victim for victim in at_work(lab, run) if victim.kind == "batch script"]
        return bool(scripts)

    wait_until(f"{run.id} begins", began, LIMIT_S)
    victim = kill(lab, scripts, draw)
    return [victim.kind] if victim else []


def disturb(lab: Lab, run: RunPaths, draw: random.Random, kills: int) -> list[str]:
    """Kill until so many are dead, or the run has ended; what was killed."""
    killed = kill_at_start(lab, run, draw)
    reached = run_mark(run)

    def moved() -> bool:
        attempts = [str(event["mark"]) for event in of_kind(run, "decided")]
        return read_outcome(run) is not None or run_mark(run) not in (reached, *attempts[-1:])

    while len(killed) < kills:
        wait_until(f"{run.id} goes on behind {reached} after {killed[-2:]}", moved, LIMIT_S)
        time.sleep(draw.uniform(0, LONGEST_WAIT_S))
        if read_outcome(run) is not None:
            break
        if not moved():  # a new attempt has begun meanwhile
            continue
        mark = run_mark(run)
        victim = kill(lab, at_work(lab, run), draw)
        if victim is None:
            continue
        reached = mark
        print(f"{run.id}: behind {mark}: {victim.kind} on n{victim.node}", flush=True)
        killed.append(victim.kind)
        if len(killed) < kills and draw.random() < STEWARD_SHARE:
            killed += kill_steward(lab, run, draw)
    return killed


@pytest.mark.timeout(3 * 3600 if SOAK else 900)
def test_whatever_is_killed_the_embeddings_are_those_of_an_undisturbed_run(lab: Lab, screen: Screen) -> None:
    calm = screen.root / "calm"
    screen.embed(out=str(calm), **SETTINGS)
    expected = contents(calm)
    assert len(expected) == 4 * PLATES + 5  # two blocks, two baselines; what each is bound to, and the proof
    draw = random.Random(SEED)
    killed: list[str] = []
    runs = 0
    while len(killed) < KILLS:
        out = screen.root / f"killed-{runs}"
        run = submit(lab, screen, out)
        runs += 1
        died = disturb(lab, run, draw, min(KILLS_OF_A_RUN, KILLS - len(killed)))
        outcome = lab.ended(run)
        if (outcome["state"], outcome["exit_code"]) != ("finished", 0):
            pytest.fail(f"{died}\n{outcome}\n{story(run)}")
        assert contents(out) == expected, died
        config = screen.embed_config(out=str(out), **SETTINGS)
        assert check_embeddings(config, silent()).exit_code == 0
        assert died, "it ended before anything was killed: give it more plates"
        killed += died
        print(*(f"{run.id}: {event['action']}: {event['reason']}" for event in of_kind(run, "decided")), sep="\n")
    print(f"{len(killed)} kills in {runs} runs: {dict(Counter(killed))}")
    lab.cluster.wait_idle()
