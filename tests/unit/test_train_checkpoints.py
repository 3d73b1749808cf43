"""Checkpoints: committed or passed over, bit for bit, never another's."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from phenomhpc.config import OptimConfig
from phenomhpc.config.training import CheckpointConfig
from phenomhpc.errors import FencedError, NoCheckpointError, UsageError, WorkError
from phenomhpc.models.checkpoint import (
    COMMITTED,
    SCHEMA,
    CheckpointMeta,
    checkpoint_digest,
    damage,
    load_encoder,
    newest_committed,
    step_folder,
)
from phenomhpc.models.mae import build_mae
from phenomhpc.progress import silent
from phenomhpc.runs import TaskContext, claim_start, create_run, open_attempt, read_events
from phenomhpc.train.checkpoints import Checkpoints
from phenomhpc.train.optim import make_optimiser
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState
from tests.unit.test_models_mae import TINY

CHANNELS = ("dna", "er")


@pytest.fixture
def ctx(tmp_path: Path) -> TaskContext:
    paths = create_run(tmp_path, "pretrain", "kind: pretrain\n", {}, name="run")
    attempt, _ = open_attempt(paths)
    return context(paths, attempt)


def context(paths, attempt: int) -> TaskContext:  # type: ignore[no-untyped-def]
    token = claim_start(paths, attempt, 0, 0)
    return TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent())


def describe(state: TrainState, weights: str) -> CheckpointMeta:
    return CheckpointMeta(
        schema=SCHEMA,
        step=state.step,
        next_index=8 * state.step,
        global_batch=8,
        world_size=1,
        seed=0,
        model=TINY,
        optimiser="lion",
        channels=CHANNELS,
        dtype="uint8",
        scale=(255.0, 255.0),
        illumination="keep",
        snapshot="s" * 64,
        config="c" * 64,
        skip_ledger=(),
        random_scheme="philox4x64-10",
        torch=torch.__version__,
        weights=weights,
    )


def of(ctx: TaskContext, **config: object) -> Checkpoints:
    ranks = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    return Checkpoints(ctx=ctx, ranks=ranks, config=CheckpointConfig.model_validate(config), describe=describe)


def state_after(steps: int) -> TrainState:
    """A state whose every tensor is a function of `steps`."""
    model = build_mae(len(CHANNELS), seed=0, **TINY)
    state = TrainState(model=model, optimiser=make_optimiser(model, OptimConfig(name="lion")), step=steps)
    generator = torch.Generator().manual_seed(steps)
    for tensor in state.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return state


def assert_same(state: TrainState, steps: int) -> None:
    assert state.step == steps
    expected = state_after(steps).tensors()
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_saved_state_is_resumed_bit_for_bit(ctx: TaskContext) -> None:
    folder = of(ctx).save(state_after(10))
    assert folder == step_folder(ctx.paths.checkpoints, 10)
    assert damage(folder) is None
    resumed = state_after(0)
    assert of(ctx).resume(resumed, pytest.fail) == folder
    assert_same(resumed, 10)
    assert [event["step"] for event in read_events(ctx.paths) if event["event"] == "checkpoint"] == [10]


def test_without_any_checkpoint_the_state_is_left_alone(ctx: TaskContext) -> None:
    state = state_after(0)
    assert of(ctx).resume(state, pytest.fail) is None
    assert_same(state, 0)


def _unmark(folder: Path) -> None:
    (folder / COMMITTED).unlink()


def _truncate(folder: Path) -> None:
    path = next(folder.glob("*.distcp"))
    os.truncate(path, path.stat().st_size // 2)


def _lose(folder: Path) -> None:
    next(folder.glob("*.distcp")).unlink()


def _flip(folder: Path) -> None:
    path = next(folder.glob("*.distcp"))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


def _flip_a_moment(folder: Path) -> None:
    """In the last tensor of the file, which is the optimiser's: torch reads it without a word."""
    path = next(folder.glob("*.distcp"))
    data = bytearray(path.read_bytes())
    data[len(data) * 9 // 10] ^= 1
    path.write_bytes(data)


def _flip_meta(folder: Path) -> None:
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"seed": 0', '"seed": 1'))


def _flip_index(folder: Path) -> None:
    data = bytearray((folder / ".metadata").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / ".metadata").write_bytes(data)


def _garble_mark(folder: Path) -> None:
    (folder / COMMITTED).write_text("{")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_unmark, "not committed"),
        (_truncate, "bytes, not"),
        (_lose, "is missing"),
        (_flip, "other bytes than were written"),
        (_flip_a_moment, "other bytes than were written"),
        (_flip_meta, "meta.json has other bytes than were written"),
        (_flip_index, ".metadata has other bytes than were written"),
        (lambda folder: (folder / "meta.json").unlink(), "meta.json is missing"),
        (_garble_mark, "malformed"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_said(
    ctx: TaskContext, harm: object, reason: str
) -> None:
    before, newest = of(ctx).save(state_after(10)), of(ctx).save(state_after(20))
    harm(newest)  # type: ignore[operator]
    said: list[str] = []
    state = state_after(0)
    assert of(ctx).resume(state, said.append) == before
    assert_same(state, 10)
    assert len(said) == 1
    assert str(newest) in said[0]
    assert "passed over" in said[0]
    assert reason in said[0]
    assert of(ctx).save(state_after(20)) == newest  # the step is reached again
    assert newest_committed(ctx.paths.checkpoints, pytest.fail) == newest
    resumed = state_after(0)
    of(ctx).resume(resumed, pytest.fail)
    assert_same(resumed, 20)


def test_when_all_committed_ones_are_damaged_the_run_stops_instead_of_beginning_again(ctx: TaskContext) -> None:
    for folder in [of(ctx).save(state_after(step)) for step in (10, 20)]:
        _truncate(folder)
    with pytest.raises(NoCheckpointError, match="step-00000010, step-00000020 can be read"):
        of(ctx).resume(state_after(0), lambda text: None)


def test_a_first_checkpoint_torn_by_a_kill_means_beginning_again(ctx: TaskContext) -> None:
    _unmark(of(ctx).save(state_after(10)))
    state = state_after(0)
    assert of(ctx).resume(state, lambda text: None) is None
    assert_same(state, 0)


def test_only_the_newest_are_kept_and_leftovers_go(ctx: TaskContext) -> None:
    leftover = ctx.paths.checkpoints / "step-00000005.tmp-dead.0"
    leftover.mkdir(parents=True)
    for step in (10, 20, 30, 40):
        of(ctx, keep=2).save(state_after(step))
    assert sorted(path.name for path in ctx.paths.checkpoints.iterdir()) == ["step-00000030", "step-00000040"]


def test_a_torn_one_does_not_count_among_those_kept(ctx: TaskContext) -> None:
    checkpoints = of(ctx, keep=2)
    checkpoints.save(state_after(10))
    _unmark(checkpoints.save(state_after(20)))
    checkpoints.save(state_after(30))
    usable = {path.name for path in ctx.paths.checkpoints.iterdir() if damage(path) is None}
    assert usable == {"step-00000010", "step-00000030"}


def test_a_replaced_attempt_publishes_nothing(ctx: TaskContext) -> None:
    of(ctx).save(state_after(10))
    attempt, _ = open_attempt(ctx.paths)
    newer = context(ctx.paths, attempt)
    with pytest.raises(FencedError):
        of(ctx).save(state_after(20))
    assert [path.name for path in ctx.paths.checkpoints.iterdir()] == ["step-00000010"]
    of(newer).save(state_after(20))


def test_fenced_between_writing_and_publishing_nothing_is_published(
    ctx: TaskContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import phenomhpc.train.checkpoints as module

    real = module.write_share

    def write_and_be_replaced(*args: object) -> object:
        results = real(*args)  # type: ignore[arg-type]
        open_attempt(ctx.paths)
        return results

    monkeypatch.setattr(module, "write_share", write_and_be_replaced)
    with pytest.raises(FencedError):
        of(ctx).save(state_after(20))
    assert newest_committed(ctx.paths.checkpoints, pytest.fail) is None
    assert not step_folder(ctx.paths.checkpoints, 20).exists()


def test_another_architecture_is_refused_naming_the_field_and_both_values(ctx: TaskContext) -> None:
    folder = of(ctx).save(state_after(10))
    wider = dataclasses.replace(
        of(ctx), describe=lambda s, w: dataclasses.replace(describe(s, w), model={**TINY, "dim": 64})
    )
    with pytest.raises(UsageError, match=r"model\.dim is 32 there and 64 here") as caught:
        wider.resume(state_after(0), pytest.fail)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("snapshot", "t" * 64), ("global_batch", 16), ("illumination", "apply"), ("channels", ("dna", "rna"))],
)
def test_another_order_of_the_data_is_refused(ctx: TaskContext, field: str, value: object) -> None:
    of(ctx).save(state_after(10))
    other = dataclasses.replace(
        of(ctx),
        describe=lambda s, w: dataclasses.replace(describe(s, w), **{field: value}),  # type: ignore[arg-type]
    )
    with pytest.raises(UsageError, match=f"{field} is "):
        other.resume(state_after(0), pytest.fail)


def test_the_encoder_of_a_checkpoint_is_the_one_that_was_saved(ctx: TaskContext) -> None:
    state = state_after(10)
    folder = of(ctx).save(state)
    model, meta = load_encoder(folder)
    crops = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.encode(crops), state.model.eval().encode(crops))
    assert (meta.step, meta.channels) == (10, CHANNELS)


def test_the_digest_follows_the_weights(ctx: TaskContext) -> None:
    first, second = of(ctx).save(state_after(10)), of(ctx).save(state_after(20))
    assert checkpoint_digest(first) != checkpoint_digest(second)
    again = state_after(10)
    again.step = 30
    assert checkpoint_digest(of(ctx).save(again)) == checkpoint_digest(first)


def test_embedding_refuses_a_torn_checkpoint_and_a_folder_that_is_none(ctx: TaskContext, tmp_path: Path) -> None:
    folder = of(ctx).save(state_after(10))
    with pytest.raises(UsageError, match=r"no readable meta\.json"):
        load_encoder(tmp_path)
    _flip(folder)
    with pytest.raises(WorkError, match=r"weights are not those|unreadable"):
        load_encoder(folder)
    _unmark(folder)
    with pytest.raises(WorkError, match="not committed"):
        load_encoder(folder)


def test_tensors_that_do_not_fit_their_own_description_are_refused(ctx: TaskContext) -> None:
    lying = dataclasses.replace(
        of(ctx), describe=lambda s, w: dataclasses.replace(describe(s, w), model={**TINY, "dim": 64})
    )
    with pytest.raises(UsageError, match=r"tensor model\.\S+ is \(.*\) there and \(.*64.*\) in the architecture"):
        load_encoder(lying.save(state_after(10)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_checkpoint_is_refused_before_its_pickle_is_opened(ctx: TaskContext) -> None:
    folder = of(ctx).save(state_after(10))
    os.chown(folder / ".metadata", 12345, -1)
    (folder / ".metadata").write_bytes(b"x" * (folder / ".metadata").stat().st_size)
    with pytest.raises(UsageError, match="belongs to user 12345, not to you"):
        load_encoder(folder)
