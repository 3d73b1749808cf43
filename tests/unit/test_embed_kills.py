"""embed killed at random moments: what it ends with is what an undisturbed run gives, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phenomhpc.jobs.embed import check_embeddings
from phenomhpc.progress import silent
from tests.unit.embed_store import Screen, contents, make_screen

KILLS = 50 if os.environ.get("PHENOMHPC_SOAK") else 5
LIMIT_S = 300
KINDS = ("--blocks", "all", "batch=7", "device=cpu")


def _command(screen: Screen, out: Path) -> list[str]:
    words = ("embed", "--store", screen.store, "--checkpoint", screen.checkpoint.root, "--runs", out / "runs")
    return [sys.executable, "-m", "phenomhpc", *map(str, words), "--out", str(out / "emb"), *KINDS]


@pytest.mark.timeout(7200 if KILLS > 5 else 900)
def test_kills_at_random_moments_leave_the_embeddings_of_an_undisturbed_run(tmp_path: Path) -> None:
    """As in a power cut; then the same command again.  A kill counts when it fell into the embedding of some plate."""
    screen = make_screen(tmp_path, plates_per_experiment=12)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    began = time.monotonic()
    subprocess.run(_command(screen, calm), check=True, timeout=LIMIT_S, env=environment, stderr=subprocess.DEVNULL)
    whole = time.monotonic() - began
    moments = random.Random(20261127)
    kills = tries = 0
    while kills < KILLS:
        had = len(list(killed.glob("emb/.progress/*.json")))
        if had > 9:  # nearly done: begin anew, so that there is work to be killed
            shutil.rmtree(killed)
            had = 0
        process = subprocess.Popen(
            _command(screen, killed),
            start_new_session=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Starting up is most of it: wait for the first new table, then some part of what is left.
        while process.poll() is None and time.monotonic() - began < 20 * whole * KILLS:
            if len(list(killed.glob("emb/*.parquet"))) > had or len(list(killed.glob("emb/.progress/*.json"))) > had:
                break
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02) * whole)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        tries += 1
        assert tries < 6 * KILLS, f"{kills} kills in {tries} tries"
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("emb/.progress/*.json")}
    subprocess.run(_command(screen, killed), check=True, timeout=LIMIT_S, env=environment, stderr=subprocess.DEVNULL)
    assert contents(killed / "emb") == contents(calm / "emb")
    assert all((killed / "emb" / ".progress" / name).stat().st_mtime_ns == since for name, since in before.items())
    config = screen.embed_config(out=str(killed / "emb"), blocks=["all"], batch=7)
    assert check_embeddings(config, silent()).exit_code == 0
