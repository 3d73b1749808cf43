"""Sharded training (FSDP2, on CPUs): the numbers of DDP, and checkpoints that any other way of training goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from phenomhpc.config import PretrainConfig
from phenomhpc.errors import StopRequested, UsageError
from phenomhpc.models.checkpoint import load_encoder, newest_committed, read_meta
from phenomhpc.runs import RunPaths, read_events
from phenomhpc.train.launch import launch
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.probe import ENCODER, read_probes
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import num_shards
from phenomhpc.train.validation import read_validations
from tests.unit.rank_processes import train_by_ranks
from tests.unit.test_train_loop import ask_to_stop, final, losses, new_run, node, open_gang, start
from tests.unit.test_train_probe import EVAL, store
from tests.unit.train_store import settings

__all__ = ["store"]

# AdamW, since Lion's sign could hide a wrong scale.  Two ranks take two micro-batches each, and one of four ranks two.
SETTINGS = {
    "optim__name": "adamw",
    "optim__ema": 0.9,
    "optim__clip_grad_norm": 0.5,
    "optim__micro_batch": 1,
    "ranks_per_node": 2,
    "eval__every_steps": 6,
    "eval__crops": 5,
    "eval__shown": 2,
}


def two(store: Path, runs: Path, **changes: Any) -> PretrainConfig:
    return settings(store, runs, **(EVAL | SETTINGS | changes))


def ended(config: PretrainConfig) -> RunPaths:
    paths = new_run(config)
    launch(config, start(paths))
    return paths


def last(paths: RunPaths) -> Path:
    folder = newest_committed(paths.checkpoints, pytest.fail)
    assert folder is not None
    return folder


def norms(paths: RunPaths) -> np.ndarray:
    return read_metrics(paths.metrics)["grad_norm"].to_numpy()


def assert_agree(paths: RunPaths, other: RunPaths, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(losses(paths), losses(other), rtol=rtol)
    np.testing.assert_allclose(norms(paths), norms(other), rtol=10 * rtol)


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return ended(two(store, tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def sharded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    return ended(two(store, tmp_path_factory.mktemp("sharded"), sharding="full"))


def test_losses_norms_validations_and_probes_are_those_of_ddp(whole: RunPaths, sharded: RunPaths) -> None:
    assert_agree(sharded, whole)
    names = ("val_loss", "val_mse", "val_fourier")
    tables = [read_validations(paths.validation) for paths in (sharded, whole)]
    assert tables[0]["step"].to_pylist() == [0, 6, 12]
    for name in names:
        np.testing.assert_allclose(*(table[name].to_numpy() for table in tables), rtol=1e-5)
    probes = [read_probes(paths.probe).to_pylist() for paths in (sharded, whole)]
    assert [(row["step"], row["source"]) for row in probes[0]][-1] == (12, ENCODER)
    assert [(row["step"], row["accuracy"]) for row in probes[0]] == [
        (row["step"], row["accuracy"]) for row in probes[1]
    ]


def test_each_rank_holds_and_writes_its_part_of_every_tensor(sharded: RunPaths) -> None:
    stored = FileSystemReader(last(sharded)).read_metadata().state_dict_metadata
    checked = []
    for name, entry in stored.items():
        assert isinstance(entry, TensorStorageMetadata)
        if entry.size and entry.size[0] >= 32:
            half = entry.size[0] // 2
            assert sorted((chunk.offsets[0], chunk.sizes[0]) for chunk in entry.chunks) == [(0, half), (half, half)], (
                name
            )
            checked.append(name)
    for name in ("model.patch_embed.weight", "ema.patch_embed.weight", "optimiser.patch_embed.weight.exp_avg_sq"):
        assert name in checked
    assert len(checked) > 4 * 12
    # A tensor with one row is the first rank's.
    assert [tuple(chunk.sizes) for chunk in stored["model.class_token"].chunks] == [(1, 1, 32)]  # type: ignore[union-attr]
    sizes = [path.stat().st_size for path in last(sharded).glob("*.distcp")]
    assert len(sizes) == 2 and max(sizes) < 1.2 * min(sizes)


def test_a_stopped_run_goes_on_bit_for_bit(store: Path, tmp_path: Path, sharded: RunPaths) -> None:
    config = two(store, tmp_path, sharding="full")
    paths = new_run(config)
    ctx = start(paths)
    ask_to_stop(ctx)
    with pytest.raises(StopRequested, match="stopped as asked after step 1"):
        launch(config, ctx)
    launch(config, start(paths))
    assert np.array_equal(losses(paths), losses(sharded)) and np.array_equal(norms(paths), norms(sharded))
    assert final(paths) == final(sharded)
    assert read_meta(last(paths)).ema_weights == read_meta(last(sharded)).ema_weights


def further(store: Path, runs: Path, origin: RunPaths, **changes: Any) -> RunPaths:
    """Three steps further than the other run, from its checkpoint."""
    paths = RunPaths(runs / "-".join(map(str, changes.values())))
    shutil.copytree(origin.root, paths.root)
    launch(two(store, runs, optim__steps=15, **changes), start(paths))
    return paths


def test_a_checkpoint_goes_on_with_any_sharding_and_number_of_ranks(
    store: Path, tmp_path: Path, whole: RunPaths, sharded: RunPaths
) -> None:
    same = further(store, tmp_path / "sharded", sharded, sharding="full")
    others = [
        further(store, tmp_path / "sharded", sharded, sharding="none", ranks_per_node=1),
        further(store, tmp_path / "sharded", sharded, sharding="full", ranks_per_node=3),
        further(store, tmp_path / "whole", whole, sharding="full"),
    ]
    for other in others:
        digests = [read_metrics(paths.metrics)["index_digest"].to_pylist() for paths in (same, other)]
        assert len(digests[0]) == 15 and digests[0] == digests[1]
        assert_agree(other, same)


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_an_encoder_is_loaded_from_parts(whole: RunPaths, sharded: RunPaths, weights: str) -> None:
    """Against the digest that the run gave them, too.  AdamW moves a weight by the rate, however small its gradient."""
    of_parts, of_whole = (
        dict(load_encoder(last(paths), weights=weights)[0].named_parameters()) for paths in (sharded, whole)
    )
    for name, parameter in of_parts.items():
        torch.testing.assert_close(parameter, of_whole[name], rtol=1e-3, atol=2e-4)


def test_a_run_begins_with_the_weights_of_another(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    short = {"optim__steps": 2, "init_from": str(last(whole)), "optim__ema": None}
    alone, parts = (
        ended(two(store, tmp_path / kind, sharding=kind, ranks_per_node=world, **short))
        for kind, world in (("none", 1), ("full", 2))
    )
    assert_agree(parts, alone)
    assert abs(losses(parts)[0] - losses(whole)[0]) > 1e-3


def test_bf16_is_that_of_ddp_up_to_rounding(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    changes = {"precision": "bf16", "activation_checkpointing": True}
    assert_agree(ended(two(store, tmp_path, sharding="full", **changes)), whole, 1e-2)


def test_hybrid_on_two_nodes_of_two_ranks(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    """The parts lie within a node; the two nodes hold the same, and share the writing.  Blocks are recomputed, too."""
    paths = new_run(two(store, tmp_path, sharding="hybrid", activation_checkpointing=True))
    open_gang(paths)
    nodes = [node(paths, tmp_path, task, ("127.0.0.1", "127.0.0.1")) for task in (1, 0)]
    try:
        assert [process.wait(240) for process in nodes] == [0, 0]
    finally:
        for process in nodes:
            process.kill()
    assert_agree(paths, whole)
    assert read_meta(last(paths)).world_size == 4
    sizes = [path.stat().st_size for path in last(paths).glob("*.distcp")]
    assert len(sizes) == 4 and max(sizes) < 1.5 * min(sizes)
    stored = FileSystemReader(last(paths)).read_metadata().state_dict_metadata
    assert len(stored["model.patch_embed.weight"].chunks) == 2  # type: ignore[union-attr]
    assert load_encoder(last(paths), weights="ema")[1].step == 12


# The crops of step 33 have a loss that is fifty times what it should be.
LEAP = """
import phenomhpc.train.loop as loop
from dataclasses import replace
usual = loop.run_step
def step(state, replica, micro, *rest):
    micro = list(micro)
    def forward(*args):
        output = replica.forward(*args)
        return output._replace(loss=output.loss * 50)
    bad = any(264 <= index < 272 for part in micro for index in part.drop_key.tolist())
    return usual(state, replace(replica, forward=forward) if bad else replica, micro, *rest)
loop.run_step = step
"""


def test_a_leap_of_the_loss_rolls_all_parts_back(store: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optim__steps": 40, "checkpoint__every_steps": 10, "log_every_steps": 5, "eval__every_steps": None,
        "faults__spike_mads": 12.0, "faults__spike_window": 20,
    }  # fmt: skip
    runs = {}
    for sharding in ("none", "full"):
        paths = new_run(two(store, tmp_path, sharding=sharding, **changes))
        train_by_ranks(paths, start(paths), LEAP)
        (back,) = (event for event in read_events(paths) if event["event"] == "rollback")
        assert (back["step"], back["reached"], back["skip_ledger"]) == (30, 35, [[264, 272]])
        rows = read_metrics(paths.metrics)
        assert rows["first_index"].to_pylist() == [8 * (step + (step >= 33)) for step in range(40)]
        runs[sharding] = paths
    assert_agree(runs["full"], runs["none"])


def test_into_how_many_parts() -> None:
    def ranks(world: int, local_world: int) -> Ranks:
        return Ranks(rank=0, world=world, local_rank=0, device=torch.device("cpu"), local_world=local_world)

    assert [num_shards(kind, ranks(8, 4)) for kind in ("none", "full", "hybrid")] == [1, 8, 4]
    assert [num_shards(kind, ranks(1, 1)) for kind in ("none", "full", "hybrid")] == [1, 1, 1]
    with pytest.raises(UsageError, match=r"sharding=hybrid: 6 ranks are no multiple of the 4 of this node; give"):
        num_shards("hybrid", ranks(6, 4))
