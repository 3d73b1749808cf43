"""--init-from: another run's weights, step 0, a fresh optimiser; afterwards a run's own checkpoints win."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from phenomhpc.config import PretrainConfig, dump
from phenomhpc.errors import StopRequested, UsageError, WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.pretrain import plan
from phenomhpc.models.checkpoint import load_encoder, newest_committed, read_meta
from phenomhpc.models.mae import build_mae
from phenomhpc.progress import silent
from phenomhpc.runs import RunPaths, TaskContext, claim_start, create_run, open_attempt, read_events
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.unit.train_store import convert, settings, write_plate


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begin")
    write_plate(folder / "raw")
    return convert(folder / "raw", folder / "store", folder / "runs")


class Saying(type(silent())):  # type: ignore[misc]
    """Keeps what is said; stops the run after so many steps."""

    def __init__(self, ctx: TaskContext, stop_after: int | None) -> None:
        self.ctx, self.stop_after, self.done = ctx, stop_after, 0
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def stage(self, name: str, total: int | None, unit: str) -> Any:
        return self

    def advance(self, n: int = 1, **figures: float) -> None:
        self.done += n
        if self.done == self.stop_after:
            self.ctx.paths.attempt(self.ctx.attempt).stop_file(self.ctx.task).touch()


def start(paths: RunPaths, *, stop_after: int | None = None) -> tuple[TaskContext, Saying]:
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0)
    ctx = TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent())
    saying = Saying(ctx, stop_after)
    return dataclasses.replace(ctx, progress=saying), saying


def run(config: PretrainConfig) -> tuple[RunPaths, Saying]:
    paths = create_run(Path(config.runs), "pretrain", dump(config), {})
    ctx, saying = start(paths)
    train(config, ctx)
    return paths, saying


def last(paths: RunPaths) -> Path:
    folder = newest_committed(paths.checkpoints, pytest.fail)
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def given(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last step folder of a run of 4 steps."""
    return last(run(settings(store, tmp_path_factory.mktemp("given"), optim__steps=4))[0])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in load_encoder(folder)[0].named_parameters()}


def begun(store: Path, runs: Path, given: Path, **changes: Any) -> PretrainConfig:
    """A run of one step whose rate is so small that nothing moves: what it holds is what it began with."""
    still = {"optim__steps": 1, "optim__peak_lr": 1e-30, "optim__weight_decay": 0.0}
    return settings(store, runs, init_from=str(given), seed=11, **{**still, **changes})


def test_the_weights_are_the_others_and_nothing_else_is(store: Path, tmp_path: Path, given: Path) -> None:
    paths, saying = run(begun(store, tmp_path, given))
    meta, origin = read_meta(last(paths)), read_meta(given)
    assert all(torch.equal(p, weights(given)[name]) for name, p in weights(last(paths)).items())
    assert (meta.step, meta.next_index, meta.seed) == (1, 8, 11)
    assert meta.init_from == {"checkpoint": str(given), "weights": origin.weights}
    assert any(f"beginning with the weights of {given}, after step 4 there" in line for line in saying.said)
    events = [event for event in read_events(paths) if event["event"] == "init_from"]
    assert [(event["checkpoint"], event["weights"]) for event in events] == [(str(given), origin.weights)]


def test_momenta_are_fresh(store: Path, tmp_path: Path, given: Path) -> None:
    """Lion's first step from zero momenta moves every weight with a gradient by the rate; the other run's would differ."""
    from phenomhpc.models.checkpoint import load_tensors

    folder = last(run(begun(store, tmp_path, given))[0])
    state = {"optimiser.norm.weight.exp_avg": torch.empty(32)}
    theirs = {"optimiser.norm.weight.exp_avg": torch.empty(32)}
    load_tensors(folder, state)
    load_tensors(given, theirs)
    one = state["optimiser.norm.weight.exp_avg"]
    # Lion keeps m = 0.95 * 0 + 0.05 * g of one gradient: had it gone on from the other's, 0.95 of them would be in it.
    assert (one - 0.95 * theirs["optimiser.norm.weight.exp_avg"]).norm() > one.norm()
    assert one.norm() > 0


def test_a_run_by_its_name_is_its_newest_checkpoint(store: Path, tmp_path: Path) -> None:
    first, _ = run(settings(store, tmp_path, optim__steps=3, checkpoint__every_steps=2))
    paths, _ = run(begun(store, tmp_path, Path(first.id)))
    assert read_meta(last(paths)).init_from == {
        "checkpoint": str(last(first)),
        "weights": read_meta(last(first)).weights,
    }


def test_a_resumed_run_goes_on_with_its_own_and_still_says_where_it_began(
    store: Path, tmp_path: Path, given: Path
) -> None:
    """Also when what it began with is gone, or the setting was changed."""
    borrowed = tmp_path / "borrowed" / given.name
    shutil.copytree(given, borrowed)
    config = settings(store, tmp_path, init_from=str(borrowed))
    whole, _ = run(config)
    paths = create_run(Path(config.runs), "pretrain", dump(config), {})
    with pytest.raises(StopRequested):
        train(config, start(paths, stop_after=7)[0])
    shutil.rmtree(borrowed)
    plan(config, paths)  # needs it no more
    changed = config.model_copy(update={"init_from": str(tmp_path / "nowhere")})
    ctx, saying = start(paths)
    train(changed, ctx)
    assert not any("beginning with the weights" in line for line in saying.said)
    assert read_meta(last(paths)).weights == read_meta(last(whole)).weights
    assert read_meta(last(paths)).init_from == read_meta(last(whole)).init_from is not None
    losses = [read_metrics(each.metrics)["loss"].to_pylist() for each in (paths, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__dim": 48},
            r"blocks\.0\.in_proj\.weight is \(224, 32\) there and \(336, 48\) here; .*model=test on 2 channels",
        ),
        ({"model__depth": 3}, r"blocks\.2\.in_proj\.weight is absent there and \(224, 32\) here"),
        ({"model__depth": 1}, r"blocks\.1\.in_proj\.weight is \(224, 32\) there and absent here"),
        ({"model__registers": 2}, r"register_tokens is absent there and \(1, 2, 32\) here"),
    ],
)
def test_another_architecture_is_refused_before_anything_starts(
    store: Path, tmp_path: Path, given: Path, changes: dict[str, Any], message: str
) -> None:
    config = begun(store, tmp_path, given, **changes)
    paths = create_run(Path(config.runs), "pretrain", dump(config), {})
    for act in (lambda: plan(config, paths), lambda: train(config, start(paths)[0])):
        with pytest.raises(UsageError, match=message) as error:
            act()
        assert "\n" not in str(error.value)
    assert not paths.checkpoints.exists()


def test_another_way_to_train_the_same_weights_is_not(store: Path, tmp_path: Path, given: Path) -> None:
    """Masking, stochastic depth and the loss change no weight."""
    changes = {"model__mask_ratio": 0.5, "model__drop_path": 0.0, "model__fourier_weight": 0.1, "optim__name": "adamw"}
    paths, _ = run(begun(store, tmp_path, given, **changes))
    assert read_meta(last(paths)).init_from is not None


def test_what_is_no_checkpoint_is_refused(store: Path, tmp_path: Path) -> None:
    config = begun(store, tmp_path, tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"checkpoint .*nothing: is no step folder, no exported file and no run"):
        plan(config, create_run(Path(config.runs), "pretrain", dump(config), {}))


def test_checkpoints_of_before_do_not_say_where_they_began(given: Path, tmp_path: Path) -> None:
    content = json.loads((given / "meta.json").read_text())
    del content["init_from"]
    (tmp_path / "meta.json").write_text(json.dumps(content))
    assert read_meta(tmp_path).init_from is None
    del content["seed"]
    (tmp_path / "meta.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"meta\.json differs in \['seed'\]"):
        read_meta(tmp_path)


def test_the_page_of_the_run_names_it(store: Path, tmp_path: Path, given: Path) -> None:
    config = begun(store, tmp_path, given)
    paths, _ = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
    assert f"weights of {given}" in paths.report.read_text()


@pytest.mark.parametrize("kind", ["ca_mae_vit", "unet_mae"])
def test_every_architecture_trains_resumes_and_begins(store: Path, tmp_path: Path, kind: str) -> None:
    """A few steps of the loop itself: stopped and gone on with bit for bit, and its weights taken over by another run."""
    shape: dict[str, Any] = {"model__kind": kind, "optim__steps": 5, "optim__name": "adamw"}
    if kind == "unet_mae":
        shape["model"] = {
            "name": "test", "kind": kind, "crop_px": 32, "patch_px": 8, "options": {"width": 8, "levels": 2},
        }  # fmt: skip
        del shape["model__kind"]
    config = settings(store, tmp_path, **shape)
    whole, _ = run(config)
    paths = create_run(Path(config.runs), "pretrain", dump(config), {})
    with pytest.raises(StopRequested):
        train(config, start(paths, stop_after=2)[0])
    train(config, start(paths)[0])
    assert read_meta(last(paths)).weights == read_meta(last(whole)).weights
    untrained = build_mae(2, seed=config.seed, **config.model.model_dump())
    assert not all(
        torch.equal(p, q) for p, q in zip(untrained.parameters(), weights(last(whole)).values(), strict=True)
    )
    other, _ = run(begun(store, tmp_path, last(whole), **{k: v for k, v in shape.items() if k.startswith("model")}))
    assert all(torch.equal(p, weights(last(whole))[name]) for name, p in weights(last(other)).items())


@pytest.mark.parametrize("kind", ["mae_vit", "ca_mae_vit"])
def test_two_ranks_begin_with_it_too(store: Path, tmp_path: Path, kind: str) -> None:
    """After a step of no length the weights are those given; all ranks agree on which checkpoint that is."""
    first, _ = run(settings(store, tmp_path / "first", optim__steps=2, model__kind=kind))
    config = begun(store, tmp_path, last(first), ranks_per_node=2, model__kind=kind)
    paths, _ = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
    meta = read_meta(last(paths))
    assert meta.world_size == 2 and meta.init_from is not None
    assert all(torch.equal(p, weights(last(first))[name]) for name, p in weights(last(paths)).items())


# -- a timm ViT's state dict ----------------------------------------------------------------------

OF_TIMM: dict[str, Any] = {
    "model__block": "sequential", "model__qkv_bias": True, "model__qk_norm": False, "model__positions": "learned",
    "model__layer_scale": 0.0,
}  # fmt: skip


def timm_state(channels: int = 2) -> dict[str, torch.Tensor]:
    """By timm's names: ViT of width 32, depth 2, patches of 8 pixels of a crop of 32."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 32), "pos_embed": (1, 17, 32), "patch_embed.proj.weight": (32, channels, 8, 8),
        "patch_embed.proj.bias": (32,), "norm.weight": (32,), "norm.bias": (32,), "head.weight": (10, 32), "head.bias": (10,),
    }  # fmt: skip
    for block in range(2):
        for name, shape in {
            "norm1.weight": (32,), "norm1.bias": (32,), "attn.qkv.weight": (96, 32), "attn.qkv.bias": (96,),
            "attn.proj.weight": (32, 32), "attn.proj.bias": (32,), "norm2.weight": (32,), "norm2.bias": (32,),
            "mlp.fc1.weight": (128, 32), "mlp.fc1.bias": (128,), "mlp.fc2.weight": (32, 128), "mlp.fc2.bias": (32,),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}"] = shape
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(*shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def timm_file(folder: Path, form: str, channels: int = 2) -> Path:
    from safetensors.torch import save_file

    state, path = timm_state(channels), folder / f"vit.{form.partition(' ')[0]}"
    if form == "safetensors":
        save_file(state, path, {"format": "pt"})
    elif form == "pth nested":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "pt", "pth nested"])
def test_a_run_begins_with_a_timm_vit(store: Path, tmp_path: Path, form: str) -> None:
    file, state = timm_file(tmp_path, form), timm_state()
    config = begun(store, tmp_path, file, **OF_TIMM)
    plan(config, create_run(Path(config.runs), "pretrain", dump(config), {}))
    paths, saying = run(config)
    found = weights(last(paths))
    assert torch.equal(found["positions"], state["pos_embed"][0])
    assert torch.equal(found["patch_embed.weight"], state["patch_embed.proj.weight"].flatten(1))
    assert torch.equal(found["blocks.1.mlp_in.weight"], state["blocks.1.mlp.fc1.weight"])
    untrained = dict(build_mae(2, seed=config.seed, **config.model.model_dump()).named_parameters())
    decoder = [name for name in found if name.startswith("decoder")]
    # Biases begin at 0, from where even a step without length leads away.
    assert decoder and all(torch.allclose(found[name], untrained[name], rtol=0, atol=1e-20) for name in decoder)
    meta = read_meta(last(paths))
    assert meta.init_from is not None and meta.init_from["checkpoint"] == str(file)
    assert any(f"beginning with the encoder of {file}" in line for line in saying.said)


def test_timms_colours_become_channels_when_asked(store: Path, tmp_path: Path) -> None:
    file = timm_file(tmp_path, "safetensors", channels=3)
    refused = begun(store, tmp_path, file, **OF_TIMM)
    paths = create_run(Path(refused.runs), "pretrain", dump(refused), {})
    for act in (lambda: plan(refused, paths), lambda: train(refused, start(paths)[0])):
        with pytest.raises(
            UsageError, match=r"init_from=.*trained on 3 channels.*adapt_channels=mean or repeat"
        ) as error:
            act()
        assert "\n" not in str(error.value)
    config = begun(store, tmp_path, file, adapt_channels="mean", **OF_TIMM)
    found = weights(last(run(config)[0]))["patch_embed.weight"].view(32, 2, 8, 8)
    mean = timm_state(3)["patch_embed.proj.weight"].mean(1) * 3 / 2
    assert torch.allclose(found[:, 0], mean) and torch.allclose(found[:, 1], mean)


def test_what_is_no_state_dict_is_refused_in_one_sentence(store: Path, tmp_path: Path) -> None:
    timm_file(tmp_path, "pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "vit.pt").read_bytes()[:2000])
    (tmp_path / "torn.safetensors").write_bytes(timm_file(tmp_path, "safetensors").read_bytes()[:2000])
    torch.save({"model": 3}, tmp_path / "number.pt")
    torch.save(Path("a pickle that could run something"), tmp_path / "pickle.pt")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (
        ("torn.pt", "cannot be read"),
        ("torn.safetensors", "cannot be read"),
        ("number.pt", "is no state dict of tensors by name"),
        ("pickle.pt", "holds more than tensors"),
        ("text.pth", "holds more than tensors, or is no file of torch's"),
    ):
        config = begun(store, tmp_path, tmp_path / name, **OF_TIMM)
        with pytest.raises((UsageError, WorkError), match=message) as error:
            plan(config, create_run(Path(config.runs), "pretrain", dump(config), {}))
        assert "\n" not in str(error.value) and name in str(error.value)
