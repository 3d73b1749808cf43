"""Sharded training (FSDP2, on CPUs): the numbers of DDP, and checkpoints that any other way of training goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from phenomhpc.models.checkpoint import load_encoder, newest_committed
from phenomhpc.runs import RunPaths
from phenomhpc.train.launch import launch
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.test_train_loop import ask_to_stop, final, losses, new_run, start, store
from tests.unit.train_store import settings

__all__ = ["store"]

ADAMW = {"optim__name": "adamw", "optim__ema": 0.9, "optim__clip_grad_norm": 0.5}


def run(store: Path, runs: Path, world: int, **changes: object) -> RunPaths:
    config = settings(store, runs, ranks_per_node=world, **changes)
    paths = new_run(config)
    launch(config, start(paths))
    return paths


def norms(paths: RunPaths) -> np.ndarray:
    return read_metrics(paths.metrics)["grad_norm"].to_numpy()


@pytest.mark.parametrize("changes", [{"optim__name": "lion"}, ADAMW], ids=["lion", "adamw"])
def test_sharded_is_ddp(store: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = run(store, tmp_path, 2, **changes)
    parts = run(store, tmp_path, 2, sharding="full", **changes)
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(norms(parts), norms(whole), rtol=1e-4)
