"""The moving average of the weights: its arithmetic, its place in checkpoints, and who takes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from phenomhpc.config import PretrainConfig, validate
from phenomhpc.config.training import CheckpointConfig
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.train_estimate import estimate_train
from phenomhpc.models.checkpoint import (
    COMMITTED,
    average_key,
    checkpoint_digest,
    load_encoder,
    load_tensors,
    model_key,
    newest_committed,
    read_meta,
)
from phenomhpc.models.export import export_weights
from phenomhpc.models.mae import build_mae
from phenomhpc.models.standardise import Standardiser
from phenomhpc.runs import RunPaths, TaskContext
from phenomhpc.train.checkpoints import Checkpoints
from phenomhpc.train.data import CropSource
from phenomhpc.train.ema import Average, measured
from phenomhpc.train.launch import launch
from phenomhpc.train.loop import train
from phenomhpc.train.optim import make_optimiser
from phenomhpc.train.probe import ENCODER, LinearProbe, read_probes, wells_of
from phenomhpc.train.state import Replica, TrainState
from phenomhpc.train.step import StepSettings, run_step
from phenomhpc.train.validation import Validation, read_validations
from tests.unit import embed_store
from tests.unit.test_cli_checkpoints import phenomhpc
from tests.unit.test_train_checkpoints import ctx, describe, state_after
from tests.unit.test_train_faults import ALONE, bad_crops, batches, poisoned, rolling, state_of, told
from tests.unit.test_train_loop import ask_to_stop, new_run, start
from tests.unit.train_store import convert, settings, write_plate

__all__ = ["ctx"]

DECAY = 0.9
EVAL = {"data__holdout": {"wells": ["A05", "A06"]}, "eval__every_steps": 6, "eval__crops": 7, "eval__shown": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ema")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


def averaged(store: Path, runs: Path, **changes: Any) -> PretrainConfig:
    return settings(store, runs, **{"optim__ema": DECAY, **EVAL, **changes})


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """12 steps of one rank, undisturbed."""
    config = averaged(store, tmp_path_factory.mktemp("whole"))
    paths = new_run(config)
    train(config, start(paths))
    return paths


def last(paths: RunPaths) -> Path:
    folder = newest_committed(paths.checkpoints, lambda text: None)
    assert folder is not None
    return folder


def given(global_batch: int = 8) -> StepSettings:
    return StepSettings(
        global_batch=global_batch,
        standardise=Standardiser(torch.full((2,), 255.0)),
        precision="fp32",
        clip_grad_norm=1.0,
    )


def state_with_average(name: str, decay: float = DECAY) -> TrainState:
    state = state_of(name)
    state.ema = Average.of(state.model, decay)
    return state


def numpy_of(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}


@pytest.mark.parametrize("decay", [0.25, 0.9, 0.9999])
def test_it_is_that_of_a_numpy_loop(decay: float) -> None:
    state = state_with_average("adamw", decay)
    assert state.ema is not None
    expected = numpy_of(state.weights())
    first = {name: tensor.clone() for name, tensor in state.weights().items()}
    assert all(torch.equal(tensor, first[name]) for name, tensor in state.ema.weights.items())
    replica = Replica(forward=state.model, ddp=None)
    for step in range(5):
        run_step(state, replica, batches(2 * step, 2 * step + 1), 2, 1e-2, given(), ALONE)
        now = numpy_of(state.weights())
        expected = {name: decay * mean + (1 - decay) * now[name] for name, mean in expected.items()}
    for name, mean in state.ema.weights.items():
        assert mean.dtype == torch.float32
        np.testing.assert_allclose(mean.numpy(), expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert any(not torch.equal(mean, first[name]) for name, mean in state.ema.weights.items())


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_a_step_that_is_left_out_leaves_it_as_it_is(name: str) -> None:
    state = state_with_average(name)
    assert state.ema is not None
    plain = Replica(forward=state.model, ddp=None)
    run_step(state, plain, batches(0, 1), 2, 1e-2, given(), ALONE)
    before = {key: tensor.clone() for key, tensor in state.tensors().items()}
    # The average is not where the weights are: an update that were taken would move it.
    assert any(not torch.equal(mean, state.weights()[key]) for key, mean in state.ema.weights.items())
    hook = list(state.model.parameters())[3].register_hook(lambda gradient: gradient * math.nan)
    run_step(state, plain, batches(2, 3), 2, 1e-2, given(), ALONE)
    hook.remove()
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.tensors().items())
    run_step(state, plain, batches(2, 3), 2, 1e-2, given(), ALONE)
    assert any(not torch.equal(mean, before[average_key(key)]) for key, mean in state.ema.weights.items())


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_parameters_have_one_too(one_process: None) -> None:
    """DTensors, as FSDP2 makes parameters: the same numbers as of plain ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    plain, sharded = (nn.Linear(6, 4) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    for key, tensor in list(sharded.named_parameters()):
        setattr(sharded, key, nn.Parameter(distribute_tensor(tensor.detach(), mesh, [Shard(0)])))
    both = [Average.of(module, DECAY) for module in (plain, sharded)]
    with torch.no_grad():
        for module, average in zip((plain, sharded), both, strict=True):
            assert average is not None
            for parameter in module.parameters():
                parameter.mul_(2.0)
            average.update(torch.tensor(False))
            average.update(torch.tensor(True))
            own = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
            with measured(average) as weights:
                assert weights == "ema"
                for key, parameter in module.named_parameters():
                    assert torch.equal(_plain(parameter), _plain(average.weights[key]))
                    assert not torch.equal(_plain(parameter), _plain(own[key]))
            assert all(torch.equal(_plain(p), _plain(own[key])) for key, p in module.named_parameters())
    assert both[0] is not None and both[1] is not None
    for key, mean in both[1].weights.items():
        assert isinstance(mean, DTensor)
        assert torch.equal(_plain(mean), both[0].weights[key])


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


def test_the_model_has_its_own_weights_again_even_after_an_error() -> None:
    state = state_with_average("lion")
    run_step(state, Replica(forward=state.model, ddp=None), batches(0, 1), 2, 1e-2, given(), ALONE)
    before = {key: tensor.clone() for key, tensor in state.tensors().items()}
    with pytest.raises(WorkError), measured(state.ema):
        raise WorkError("in the midst")
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.tensors().items())
    with measured(None) as weights:
        assert weights == "model"


def test_training_is_bit_for_bit_what_it_is_without(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    config = averaged(store, tmp_path, optim__ema=None)
    without = new_run(config)
    train(config, start(without))
    meta, other = read_meta(last(whole)), read_meta(last(without))
    assert meta.weights == other.weights
    assert (other.ema, other.ema_weights) == (None, None)
    assert meta.ema == DECAY and meta.ema_weights not in (None, meta.weights)


def test_a_stopped_run_goes_on_bit_for_bit(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    config = averaged(store, tmp_path)
    halted = new_run(config)
    with pytest.raises(StopRequested):
        train(config, start(halted, at_step={7: ask_to_stop}))
    half = read_meta(last(halted))
    assert half.step < 12
    train(config, start(halted))
    meta = read_meta(last(halted))
    assert meta.ema_weights == read_meta(last(whole)).ema_weights != half.ema_weights
    assert meta.weights == read_meta(last(whole)).weights


def means_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in load_encoder(folder, weights="ema")[0].named_parameters()}


def test_other_numbers_of_ranks_go_on_with_it(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    """One rank, then two, then one: the same up to the order in which gradients are added."""
    config = averaged(store, tmp_path, ranks_per_node=2, optim__name="adamw", optim__peak_lr=1e-4)
    alone = config.model_copy(update={"ranks_per_node": None})
    straight, changing = new_run(alone), new_run(alone)
    train(alone, start(straight))
    with pytest.raises(StopRequested):
        train(alone, start(changing, at_step={5: ask_to_stop}))
    launch(config, start(changing))
    (last(changing) / COMMITTED).unlink()  # back to step 10, which two ranks have written
    assert (read_meta(last(changing)).step, read_meta(last(changing)).world_size) == (10, 2)
    train(alone, start(changing))
    assert read_meta(last(changing)).world_size == 1
    expected, moved = means_of(last(straight)), 0.0
    for name, mean in means_of(last(changing)).items():
        np.testing.assert_allclose(mean.numpy(), expected[name].numpy(), atol=2e-5, err_msg=name)
        own = load_encoder(last(straight), weights="model")[0].get_parameter(name).detach()
        moved = max(moved, float((own - mean).abs().max()))
    assert moved > 2e-4  # what the average lags behind by is more than the tolerance


def test_a_rollback_restores_it(ctx: TaskContext) -> None:
    state = state_after(10)
    state.ema = Average.of(state.model, DECAY)
    checkpoints = Checkpoints(
        ctx=ctx,
        ranks=ALONE,
        config=CheckpointConfig(),
        describe=lambda state, weights: replace(describe(state, weights), ema=DECAY),
    )
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1.0)
    state.ema.update(torch.tensor(False))
    checkpoints.save(state)
    before = {key: tensor.clone() for key, tensor in state.tensors().items()}
    state.ema.update(torch.tensor(False))
    assert not all(torch.equal(tensor, before[key]) for key, tensor in state.tensors().items())
    assert checkpoints.roll_back(state, ((80, 88),), pytest.fail) is not None
    assert all(torch.equal(tensor, before[key]) for key, tensor in state.tensors().items())


def test_a_run_that_rolled_back_has_the_same_as_one_begun_again_from_there(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, bad_crops)
    config = rolling(store, tmp_path, optim__ema=DECAY)
    rolled, halted = new_run(config), new_run(config)
    train(config, start(rolled))
    with pytest.raises(StopRequested):
        train(config, start(halted, at_step={38: ask_to_stop}))
    train(config, start(halted))
    assert len(told(rolled, "rollback")) == len(told(halted, "rollback")) == 1
    assert read_meta(last(rolled)).ema_weights == read_meta(last(halted)).ema_weights is not None


@pytest.mark.parametrize(("began", "goes_on"), [(None, 0.9), (0.9, None), (0.9, 0.99)])
def test_a_run_keeps_its_decay(store: Path, tmp_path: Path, began: float | None, goes_on: float | None) -> None:
    """As the other settings that its checkpoints name."""
    config = settings(store, tmp_path, optim__ema=began, optim__steps=4)
    paths = new_run(config)
    with pytest.raises(StopRequested):
        train(config, start(paths, at_step={2: ask_to_stop}))
    changed = settings(store, tmp_path, optim__ema=goes_on, optim__steps=4)
    with pytest.raises(
        UsageError, match=rf"optim\.ema is {began} there and {goes_on} here; resume with .*--new-run"
    ) as told:
        train(changed, start(paths))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_lies_between(value: float) -> None:
    with pytest.raises(UsageError, match=r"optim\.ema"):
        validate("pretrain", {"optim": {"ema": value}})


def test_either_is_loaded_and_their_digests_differ(whole: RunPaths) -> None:
    folder = last(whole)
    own, means = ({} for _ in range(2))
    for key, held in ((model_key, own), (average_key, means)):
        held |= {key(name): torch.empty_like(p) for name, p in load_encoder(folder)[0].named_parameters()}
        load_tensors(folder, held)
    for weights, held, key in (("model", own, model_key), ("ema", means, average_key), ("auto", means, average_key)):
        model, meta = load_encoder(folder, weights=weights)
        assert all(torch.equal(p, held[key(name)]) for name, p in model.named_parameters())
        assert (meta.ema, meta.ema_weights) == (None if weights == "model" else DECAY, None)
    assert checkpoint_digest(folder) == checkpoint_digest(folder, "ema") != checkpoint_digest(folder, "model")


def test_the_model_s_own_digest_is_that_of_a_run_without(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    """Embeddings made before stay bound to what they were made by."""
    config = averaged(store, tmp_path, optim__ema=None)
    without = new_run(config)
    train(config, start(without))
    assert checkpoint_digest(last(without)) == checkpoint_digest(last(whole), "model")
    for act in (checkpoint_digest, lambda folder, weights: load_encoder(folder, weights=weights)):
        with pytest.raises(UsageError, match=r"weights=ema: it holds no average, .* take weights=model") as told:
            act(last(without), "ema")
        assert "\n" not in str(told.value)


def test_an_export_holds_the_one_that_is_meant(whole: RunPaths, tmp_path: Path) -> None:
    folder, digests = last(whole), {}
    for weights in ("model", "ema", "auto"):
        out = tmp_path / f"{weights}.safetensors"
        export_weights(folder, out, weights)
        digests[weights] = checkpoint_digest(out)
        assert digests[weights] == checkpoint_digest(folder, weights)
        expected = load_encoder(folder, weights=weights)[0].state_dict()
        assert all(torch.equal(p, expected[name]) for name, p in load_encoder(out)[0].named_parameters())
    assert digests["auto"] == digests["ema"] != digests["model"]
    assert checkpoint_digest(tmp_path / "ema.safetensors", "ema") == digests["ema"]
    export_weights(tmp_path / "ema.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ema.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"weights=model: it holds the average alone \(decay 0\.9\)"):
        load_encoder(tmp_path / "ema.safetensors", weights="model")


def test_the_command_exports_it(whole: RunPaths, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    done = phenomhpc("export", whole.root, "--to", "safetensors", "--out", out, "--weights", "model", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["weights"], facts["digest"]) == ("model", checkpoint_digest(last(whole), "model"))
    refused = phenomhpc("export", out, "--to", "safetensors", "--out", tmp_path / "x.safetensors", "--weights", "ema")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "it holds no average" in refused.stderr
    assert not (tmp_path / "x.safetensors").exists()
    assert json.loads(phenomhpc("checkpoints", "list", whole.root, "--json").stdout)["checkpoints"][-1]["ema"] == DECAY


def test_embeddings_of_the_two_never_mix(tmp_path: Path) -> None:
    screen = embed_store.make_screen(tmp_path)
    optim = {"name": "adamw", "peak_lr": 1e-2, "global_batch": 4, "micro_batch": 4, "steps": 4, "ema": 0.9}
    model, _ = embed_store.run(
        "pretrain",
        store=[str(screen.store)],
        runs=str(tmp_path / "runs"),
        device="cpu",
        threads_per_rank=1,
        model=embed_store.MODEL,
        optim=optim,
    )
    assert "decay 0.9" in model.report.read_text()
    export_weights(last(model), tmp_path / "ema.safetensors", "ema")
    tables: dict[str, dict[str, bytes]] = {}
    for name, checkpoint, weights in (
        ("model", model.root, "model"),
        ("ema", model.root, "ema"),
        ("auto", model.root, "auto"),
        ("file", tmp_path / "ema.safetensors", "auto"),
    ):
        screen.embed(checkpoint=str(checkpoint), weights=weights, out=str(tmp_path / name))
        tables[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.parquet")}
        bound = json.loads((tmp_path / name / "embeddings.json").read_bytes())
        assert bound["weights"] == ("model" if name == "model" else "ema")
    assert len(tables["ema"]) == 3 and tables["auto"] == tables["ema"] == tables["file"]
    assert all(tables["model"][name] != table for name, table in tables["ema"].items())
    with pytest.raises(UsageError, match=r"holds embeddings of weights=ema, asked for model; choose another --out"):
        screen.embed(checkpoint=str(model.root), weights="model", out=str(tmp_path / "ema"))
    # As an older version left it: of the model's own weights.
    old = json.loads((tmp_path / "model" / "embeddings.json").read_bytes())
    del old["weights"]
    (tmp_path / "model" / "embeddings.json").write_text(json.dumps(old))
    screen.embed(checkpoint=str(model.root), weights="model", out=str(tmp_path / "model"))
    with pytest.raises(UsageError, match="weights=ema: it holds no average"):
        screen.embed(weights="ema", out=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def state_of_weights(config: PretrainConfig, folder: Path, weights: str) -> TrainState:
    model = build_mae(2, seed=0, **config.model.model_dump())
    model.load_state_dict(load_encoder(folder, weights=weights)[0].state_dict())
    return TrainState(model=model, optimiser=make_optimiser(model, config.optim), step=12)


def test_a_validation_measures_it_and_says_so(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    rows = read_validations(whole.validation).to_pylist()
    assert [(row["step"], row["weights"]) for row in rows] == [(0, "ema"), (6, "ema"), (12, "ema")]
    config = averaged(store, tmp_path, optim__ema=None)
    found = {}
    for weights in ("model", "ema"):
        paths = new_run(config)
        validation = Validation(config=config, ctx=start(paths), ranks=ALONE, source=CropSource.open(config), draw=None)
        validation.run(state_of_weights(config, last(whole), weights))
        (row,) = read_validations(paths.validation).to_pylist()
        assert row["weights"] == "model"
        found[weights] = row["val_loss"]
    assert rows[-1]["val_loss"] == found["ema"] != found["model"]


def test_a_probe_measures_it_and_says_so(tmp_path: Path) -> None:
    screen = embed_store.make_screen(tmp_path)
    changes = {"data__holdout": {"plates": ["*Plate3"]}, "eval__every_steps": None, "eval__probe_every_steps": 4}
    config = averaged(screen.store, tmp_path / "runs", optim__steps=4, **changes)
    paths = new_run(config)
    train(config, start(paths))
    assert [(row["source"] == ENCODER, row["weights"]) for row in read_probes(paths.probe).to_pylist()] == [
        (False, None), (False, None), (True, "ema")
    ]  # fmt: skip
    # Of what the encoder gave while it was probed: the average's, and not the model's own.
    source = CropSource.open(config)
    given: dict[str, list[torch.Tensor]] = {"probe": []}
    for name in ("model", "ema", "probe"):
        model = build_mae(source.num_channels, seed=0, **config.model.model_dump())
        own = "model" if name == "probe" else name
        model.load_state_dict(load_encoder(last(paths), weights=own)[0].state_dict())
        state = TrainState(model=model, optimiser=make_optimiser(model, config.optim), step=4)
        if name == "probe":
            state.ema = Average.of(model, DECAY)
            assert state.ema is not None
            load_tensors(last(paths), {average_key(key): mean for key, mean in state.ema.weights.items()})
        given[name] = seen = []
        encode = model.encode
        model.encode = lambda *a, encode=encode, seen=seen: seen.append(encode(*a)) or seen[-1]  # type: ignore
        probe = LinearProbe(
            config=config, ctx=start(new_run(config)), ranks=ALONE, source=source, wells=wells_of(config, source)
        )
        probe.run(state)
    joined = {name: torch.cat(vectors) for name, vectors in given.items()}
    assert torch.equal(joined["probe"], joined["ema"]) and not torch.equal(joined["probe"], joined["model"])


def test_a_run_begins_with_the_average_of_another(store: Path, tmp_path: Path, whole: RunPaths) -> None:
    """Its own average begins as a copy of that; a rate that moves nothing lets both be seen."""
    still = {"optim__steps": 1, "optim__peak_lr": 1e-30, "optim__weight_decay": 0.0, "eval__every_steps": None}
    config = averaged(store, tmp_path, init_from=str(last(whole)), seed=11, **still)
    paths = new_run(config)
    train(config, start(paths))
    meta, origin = read_meta(last(paths)), read_meta(last(whole))
    assert meta.init_from == {"checkpoint": str(last(whole)), "weights": origin.ema_weights}
    assert meta.weights == meta.ema_weights == origin.ema_weights


def test_its_costs_are_told(store: Path, tmp_path: Path) -> None:
    large = {"model__dim": 128, "model__depth": 4, "optim__steps": 1, "optim__name": "adamw"}
    config = settings(store, tmp_path, optim__ema=DECAY, **large)
    result = train(config, start(new_run(config)))
    written = sum(path.stat().st_size for path in result.checkpoint.iterdir())
    with_it, without = (
        estimate_train(each, num_channels=2, num_fields=6, itemsize=1)
        for each in (config, settings(store, tmp_path, **large))
    )
    assert written == pytest.approx(with_it.checkpoint_bytes, rel=0.05)
    assert with_it.memory.total - without.memory.total == with_it.memory.average == without.memory.weights
