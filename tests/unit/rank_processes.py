"""Ranks of one training as processes of their own, each after some lines of Python that change what it does."""

from __future__ import annotations

import os
import subprocess
import sys

from phenomhpc.nodes.interface import interface_of
from phenomhpc.runs import RunPaths, TaskContext
from tests.unit.test_train_loop import REPOSITORY
from tests.unit.test_train_mlflow import free_port

_RANK = """
import os, sys
from pathlib import Path
from phenomhpc.config import load_run_config
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, TaskContext
from phenomhpc.train.loop import train
paths = RunPaths(Path(sys.argv[1]))
exec(sys.argv[3])
ctx = TaskContext(paths=paths, attempt=1, task=0, token=sys.argv[2], units=(), progress=silent())
train(load_run_config(paths.run_yaml), ctx)
"""


def train_by_ranks(paths: RunPaths, ctx: TaskContext, first: str, world: int = 2) -> None:
    """Train to the end.  first: Python that every rank runs before; os.environ["RANK"] says which one it is."""
    together = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    network = {"GLOO_SOCKET_IFNAME": str(interface_of("127.0.0.1")), "PYTHONPATH": str(REPOSITORY)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(paths.root), ctx.token, first],
            env={**os.environ, **together, **network, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]
    try:
        assert [rank.wait(240) for rank in ranks] == [0] * world
    finally:
        for each in ranks:
            each.kill()
