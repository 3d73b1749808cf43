"""Steps that go wrong: left out where the gradient is not finite, rolled back where the loss leaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.config import OptimConfig
from phenomhpc.config.training import FaultsConfig
from phenomhpc.crops import Batch
from phenomhpc.errors import StopRequested, WorkError
from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.models.mae import build_mae
from phenomhpc.models.standardise import Standardiser
from phenomhpc.runs import RunPaths, read_events
from phenomhpc.train import loop as module
from phenomhpc.train.faults import Skips, Spikes, leaps
from phenomhpc.train.feed import DeviceBatch, DirectLane
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from phenomhpc.train.optim import make_optimiser, step_unless
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import Replica, TrainState
from phenomhpc.train.step import StepSettings, run_step
from tests.unit.test_models_mae import TINY
from tests.unit.test_train_loop import ask_to_stop, final, losses, new_run, start, store, undisturbed
from tests.unit.train_store import settings

__all__ = ["store", "undisturbed"]

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


def state_of(name: str) -> TrainState:
    model = build_mae(2, seed=0, **TINY)
    config = OptimConfig.model_validate({"name": name, "clip_grad_norm": 1.0})
    return TrainState(model=model.train(), optimiser=make_optimiser(model, config))


def copies(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_an_update_that_is_left_out_changes_nothing_and_others_are_as_ever(name: str) -> None:
    plain, watched = state_of(name), state_of(name)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        gradients = [torch.randn(p.shape, generator=generator) for p in plain.model.parameters()]
        for state in (plain, watched):
            for parameter, gradient in zip(state.model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
        plain.optimiser.step()
        step_unless(watched.optimiser, torch.tensor(False))
        assert same(copies(plain), copies(watched)), step
        before = copies(watched)
        next(watched.model.parameters()).grad[0] = math.nan  # type: ignore[index]
        step_unless(watched.optimiser, torch.tensor(True))
        assert same(before, copies(watched)), step


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    patches = (TINY["crop_px"] // TINY["patch_px"]) ** 2
    return Batch(
        pixels=rng.integers(0, 255, (4, 2, TINY["crop_px"], TINY["crop_px"]), np.uint8),
        index=np.arange(4),
        weight=np.ones(4, np.float32),
        mask_noise=rng.random((4, patches), np.float32),
        drop_key=np.arange(4),
        flip=np.zeros(4, np.uint8),
    )


def batches(*seeds: int) -> list[DeviceBatch]:
    return [DirectLane().start(batch(seed)).use() for seed in seeds]


@pytest.mark.parametrize("name", ["lion", "adamw"])
@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_or_loss_leaves_everything_but_its_number(
    name: str, what: str, value: float
) -> None:
    state = state_of(name)
    given = StepSettings(
        global_batch=8,
        standardise=Standardiser(torch.full((2,), 255.0)),
        precision="fp32",
        clip_grad_norm=1.0,
    )

    def bad_loss(*args: torch.Tensor) -> Any:
        output = state.model(*args)
        # Infinite without an infinite gradient: what overflows in the loss alone.
        return output._replace(loss=output.loss + value)

    plain = Replica(forward=state.model, ddp=None)
    run_step(state, plain, batches(0, 1), 2, 1e-3, given, ALONE)
    before = copies(state)
    hook = None
    if what == "gradient":
        hook = list(state.model.parameters())[3].register_hook(lambda gradient: gradient * value)
    replica = plain if hook else Replica(forward=bad_loss, ddp=None)
    sums = run_step(state, replica, batches(2, 3), 2, 1e-3, given, ALONE)
    assert not torch.isfinite(sums.grad_norm) and state.step == 2
    assert same(before, copies(state))
    if hook is not None:
        hook.remove()
    assert torch.isfinite(run_step(state, plain, batches(2, 3), 2, 1e-3, given, ALONE).grad_norm)
    assert not same(before, copies(state))


def poisoned(
    monkeypatch: pytest.MonkeyPatch, poison: Callable[[TrainState, Replica, list[DeviceBatch]], Replica]
) -> None:
    """Train with a replica that `poison` has chosen by the state and the batches of each step."""

    def step(state: TrainState, replica: Replica, micro: Iterable[DeviceBatch], *rest: Any) -> Any:
        given = list(micro)
        return run_step(state, poison(state, replica, given), given, *rest)

    monkeypatch.setattr(module, "run_step", step)


def times(replica: Replica, factor: float) -> Replica:
    def forward(*args: torch.Tensor) -> Any:
        output = replica.forward(*args)
        return output._replace(loss=output.loss * factor)

    return Replica(forward=forward, ddp=None)


def test_a_run_counts_such_steps_and_goes_on(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda state, replica, micro: times(replica, math.nan) if state.step in (4, 7) else replica)
    config = settings(store, tmp_path)
    paths = new_run(config)
    train(config, start(paths))
    assert read_metrics(paths.metrics)["skipped"].to_pylist() == [step in (4, 7) for step in range(12)]
    told = [(event["steps"], event["total"]) for event in read_events(paths) if event["event"] == "skipped"]
    assert told == [([4], 1), ([7], 2)]
    values = losses(paths)
    assert np.isnan(values[[4, 7]]).all() and np.isfinite(np.delete(values, [4, 7])).all()


def test_a_run_that_only_leaves_out_ends(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda state, replica, micro: times(replica, math.nan) if state.step > 3 else replica)
    config = settings(store, tmp_path, faults__max_skipped=4)
    with pytest.raises(WorkError, match=r"not finite in 4 steps in a row, up to step 7; lower optim\.peak_lr"):
        train(config, start(new_run(config)))


def test_too_many_is_in_a_row() -> None:
    skips = Skips(config=FaultsConfig(max_skipped=3))
    assert skips.count([(0, True), (1, True), (2, False), (3, True), (4, True)]) == [0, 1, 3, 4]
    with pytest.raises(WorkError, match="3 steps in a row, up to step 5"):
        skips.count([(5, True)])


@given(st.lists(st.floats(0.5, 1.5), min_size=20, max_size=60), st.floats(1, 20), st.floats(0, 5))
def test_a_leap_is_measured_in_deviations_whatever_the_unit(usual: Sequence[float], mads: float, loss: float) -> None:
    values = np.array(usual)
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    margin = loss - (np.median(values) + mads * deviation)
    if abs(margin) > 1e-6 and deviation > 1e-6:
        assert leaps(loss, usual, mads) == (margin > 0)
        assert leaps(4 * loss, [4 * value for value in usual], mads) == (margin > 0)
    assert not leaps(loss, usual[:19], mads)
    assert not leaps(loss, [1.0] * 30, mads)


def test_leaps_do_not_become_usual() -> None:
    spikes = Spikes(config=FaultsConfig(spike_mads=8, spike_window=30))
    calm = [(step, 1 + 0.01 * (step % 5)) for step in range(30)]
    assert spikes.look(calm) == []
    assert spikes.look([(30, 9.0), (31, 1.0), (32, math.nan), (33, 9.0)]) == [30, 33]
    assert Spikes(config=FaultsConfig()).look([*calm, (30, 1e9)]) == []


BAD = range(33 * 8, 34 * 8)


def bad_crops(state: TrainState, replica: Replica, micro: list[DeviceBatch]) -> Replica:
    """Whose loss is fifty times what it should be: those of the step 33, by their sample index."""
    return times(replica, 50.0) if any(index in BAD for part in micro for index in part.drop_key.tolist()) else replica


def rolling(store: Path, folder: Path, **changes: Any) -> Any:
    return settings(
        store, folder, optim__steps=45, checkpoint__every_steps=10, log_every_steps=5, faults__spike_mads=12.0,
        faults__spike_window=20, **changes,
    )  # fmt: skip


def told(paths: RunPaths, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(paths) if event["event"] == name]


def test_a_leap_of_the_loss_rolls_back_and_leaves_its_crops_out_for_good(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(store, tmp_path / "plain", optim__steps=46)
    plain = new_run(config)
    train(config, start(plain))
    digests = read_metrics(plain.metrics)["index_digest"].to_pylist()

    poisoned(monkeypatch, bad_crops)
    config = rolling(store, tmp_path)
    whole, halted = new_run(config), new_run(config)
    train(config, start(whole))
    assert [event["steps"] for event in told(whole, "spike")] == [[33]]
    (back,) = told(whole, "rollback")
    assert (back["step"], back["reached"], back["skip_ledger"]) == (30, 35, [[264, 272]])
    rows = read_metrics(whole.metrics)
    assert rows["step"].to_pylist() == list(range(45))
    assert rows["index_digest"].to_pylist() == [*digests[:33], *digests[34:46]]
    assert rows["first_index"].to_pylist() == [8 * (step + (step >= 33)) for step in range(45)]
    assert rows["loss"].to_numpy().max() < 5
    folder = newest_committed(whole.checkpoints, pytest.fail)
    assert folder is not None
    meta = read_meta(folder)
    assert (meta.skip_ledger, meta.next_index) == (((264, 272),), 46 * 8)

    # Stopped between the rollback and the next checkpoint: the ledger is there all the same.
    monkeypatch.setattr(type(start(halted).progress), "say", lambda self, text: None)
    with pytest.raises(StopRequested):
        train(config, start(halted, at_step={38: ask_to_stop}))
    assert len(told(halted, "rollback")) == 1
    train(config, start(halted))
    assert len(told(halted, "rollback")) == 1
    assert np.array_equal(losses(halted), losses(whole))
    assert final(halted) == final(whole)


def test_a_run_whose_loss_keeps_leaping_ends(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, lambda state, replica, micro: times(replica, 50.0) if state.step == 33 else replica)
    config = rolling(store, tmp_path, faults__max_rollbacks=2)
    paths = new_run(config)
    with pytest.raises(WorkError, match=r"the loss leaps again at step 33 \(.*\) after 2 rollbacks") as caught:
        train(config, start(paths))
    assert "\n" not in str(caught.value)
    assert [event["skip_ledger"] for event in told(paths, "rollback")] == [[[264, 272]], [[264, 280]]]
