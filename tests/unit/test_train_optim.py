"""Lion and the schedule against their definitions; what an optimiser's state consists of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from phenomhpc.config import OptimConfig
from phenomhpc.models.mae import build_mae
from phenomhpc.train.optim import Lion, make_optimiser, one_cycle_lr, set_lr, state_tensors
from tests.unit.test_models_mae import TINY


def small_model() -> torch.nn.Module:
    return build_mae(2, seed=0, **{**TINY, "drop_path": 0.0})


@pytest.mark.parametrize("kind", ["mae_vit", "ca_mae_vit", "unet_mae"])
def test_only_matrices_are_decayed(kind: str) -> None:
    """Not biases, norms and scales, nor tokens and positions, whatever their shape."""
    shared = {"crop_px": 32, "patch_px": 8, "mask_ratio": 0.75, "fourier_weight": 0.01}
    own = {"options": {"width": 4}} if kind == "unet_mae" else {**TINY, "registers": 2, "positions": "learned"}
    model = build_mae(2, kind=kind, **{**shared, **own})
    decayed, plain = (set(map(id, group["params"])) for group in make_optimiser(model, OptimConfig()).param_groups)
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert names == {name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1}
    assert len(decayed) + len(plain) == len(list(model.parameters()))


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (37, 0.3), (1000, 0.05)])
def test_schedule_is_torchs_one_cycle(steps: int, warmup: float) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=3e-4, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(steps):
        expected = optimiser.param_groups[0]["lr"]
        assert one_cycle_lr(step, steps=steps, peak_lr=3e-4, warmup_fraction=warmup) == pytest.approx(
            expected, rel=1e-9
        )
        optimiser.step()
        if step + 1 < steps:
            reference.step()


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_schedule_is_positive_and_bounded_for_any_length(steps: int, warmup: float) -> None:
    rates = [one_cycle_lr(s, steps=steps, peak_lr=1e-3, warmup_fraction=warmup) for s in range(steps)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    if warmup == 0:
        assert rates[0] == pytest.approx(1e-3)


def test_lion_is_algorithm_2() -> None:
    rng = np.random.default_rng(0)
    p, m = rng.normal(size=(4, 3)), np.zeros((4, 3))
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    lion = Lion([parameter], lr=1.0, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(5):
        g, lr = rng.normal(size=(4, 3)), 1e-2 / (step + 1)
        update = np.sign(0.9 * m + 0.1 * g)
        p = p - lr * (update + 0.1 * p)
        m = 0.95 * m + 0.05 * g
        parameter.grad = torch.from_numpy(g)
        set_lr(lion, lr)
        lion.step()
        np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12)
    np.testing.assert_allclose(lion.state[parameter]["exp_avg"].numpy(), m, rtol=1e-12)


def test_matrices_alone_are_decayed() -> None:
    model = small_model()
    optimiser = make_optimiser(model, OptimConfig(name="lion", weight_decay=0.05))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[p] for p in group["params"]} for group in optimiser.param_groups)
    assert decayed | plain == set(names.values())
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    assert {"class_token", "mask_token", "norm.weight", "blocks.0.layer_scale", "blocks.0.mlp_bias"} <= plain
    assert {"patch_embed.weight", "blocks.0.in_proj.weight", "decoder_pred.weight"} <= decayed


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_state_loaded_into_a_fresh_optimiser_goes_on_bit_for_bit(name: str) -> None:
    config = OptimConfig.model_validate({"name": name})
    rng = torch.Generator().manual_seed(0)

    def go(model: torch.nn.Module, optimiser: torch.optim.Optimizer, gradients: list[list[torch.Tensor]]) -> None:
        for step in gradients:
            for parameter, gradient in zip(model.parameters(), step, strict=True):
                parameter.grad = gradient
            optimiser.step()

    model, resumed = small_model(), small_model()
    gradients = [[torch.randn(p.shape, generator=rng) for p in model.parameters()] for _ in range(4)]
    optimiser, fresh = make_optimiser(model, config), make_optimiser(resumed, config)
    go(model, optimiser, gradients[:2])
    with torch.no_grad():
        for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
        saved = state_tensors(model, optimiser)
        for key, tensor in state_tensors(resumed, fresh).items():
            tensor.copy_(saved[key])
    go(model, optimiser, gradients[2:])
    go(resumed, fresh, gradients[2:])
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_preparing_the_state_does_not_change_the_first_step() -> None:
    config = OptimConfig(name="adamw")
    models = [small_model(), small_model()]
    for i, model in enumerate(models):
        optimiser = make_optimiser(model, config)
        if i:
            state_tensors(model, optimiser)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimiser.step()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)
