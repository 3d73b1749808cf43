"""Formulas of parameters, FLOP and memory against what torch counts, for every recipe; nothing is ever made."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from phenomhpc.config import resolve
from phenomhpc.config.recipes import choices
from phenomhpc.errors import UsageError
from phenomhpc.models.costs import ModelCost, model_cost
from phenomhpc.models.counted import counted_cost
from phenomhpc.models.mae import build_mae, count_parameters, outline_mae

CHANNELS = 5
# Of another form than any recipe's.
VARIANTS = {
    "sequential": ["model.block=sequential", "model.qkv_bias=true"],
    "bare": ["model.qk_norm=false", "model.layer_scale=0", "model.registers=4", "model.positions=learned"],
    "biased": ["model.qkv_bias=true", "model.registers=1", "model.mask_ratio=0.6", "model.decoder_depth=3"],
    "sequential_bare": ["model.block=sequential", "model.qk_norm=false", "model.layer_scale=0"],
    "channels_sequential": [
        "model=ca_mae_vit_tiny",
        "model.block=sequential",
        "model.registers=2",
        "model.qkv_bias=true",
    ],
}
EVERY = {**{name: [f"model={name}"] for name in choices("model")}, **VARIANTS}


def fields_of(overrides: list[str]) -> dict[str, Any]:
    return resolve("pretrain", {}, overrides).config.model.model_dump()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", EVERY)
def test_parameters_and_flop_are_those_that_torch_counts(name: str) -> None:
    fields = fields_of(EVERY[name])
    cost = model_cost(fields, CHANNELS)
    model = outline_mae(CHANNELS, **fields).train()
    counts = count_parameters(model)
    assert (cost.encoder_parameters, cost.decoder_parameters) == (counts["encoder"], counts["decoder"])
    with torch.device("meta"):
        crops, noise = torch.empty(1, CHANNELS, model.crop_px, model.crop_px), torch.empty(1, model.num_patches)
        with FlopCounterMode(display=False) as forward:
            output = model(crops, noise, torch.zeros(1, dtype=torch.int64))
        with FlopCounterMode(display=False) as backward:
            output.loss.backward()
        with FlopCounterMode(display=False) as inference, torch.no_grad():
            model.eval().encode(crops)
    assert cost.forward_flop == forward.get_total_flops()
    assert cost.inference_flop == inference.get_total_flops()
    # The backward pass is twice the forward one, but for the first projection, whose input needs no gradient.
    assert cost.training_flop == pytest.approx(forward.get_total_flops() + backward.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("unet")])
def test_activation_memory_is_what_autograd_keeps(name: str, precision: Any) -> None:
    fields = fields_of(EVERY[name])
    counted = counted_cost(fields, CHANNELS, precision=precision)
    assert model_cost(fields, CHANNELS, precision=precision).activation_bytes == pytest.approx(
        counted.activation_bytes, rel=0.01 if fields["dim"] >= 384 else 0.05
    )


def test_a_model_without_formulas_is_counted_as_real_tensors_are() -> None:
    """Against the storages that autograd really keeps of a small U-Net."""
    fields = {**fields_of(["model=unet_mae_small"]), "crop_px": 32, "patch_px": 8, "options": {"width": 8, "levels": 2}}
    model = build_mae(CHANNELS, **fields).train()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(4, CHANNELS, 32, 32), torch.rand(4, 16), torch.zeros(4, dtype=torch.int64))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 4
    assert model_cost(fields, CHANNELS).activation_bytes == pytest.approx(real, rel=0.01)


# FLOP of a crop of 256 x 256 x 6 in the notes, 10^9: training, inference.
NOTES = {"s16": (53, 12), "b16": (79, 46), "b8": (348, 213), "l16": (165, 162), "l8": (695, 722)}


@pytest.mark.parametrize("size", NOTES)
def test_recipes_cost_what_the_notes_say(size: str) -> None:
    cost = model_cost(fields_of([f"model=mae_vit_{size}"]), 6)
    training, inference = NOTES[size]
    assert cost.training_flop / 1e9 == pytest.approx(training, rel=0.03)
    assert cost.inference_flop / 1e9 == pytest.approx(inference, rel=0.05)


def test_phenom_1_costs_what_is_published() -> None:
    """3.5 billion crops through MAE-L/8: 2.4e21 FLOP."""
    assert 3.5e9 * model_cost(fields_of(["model=mae_vit_l8"]), 6).training_flop == pytest.approx(2.4e21, rel=0.03)


def test_a_transformer_needs_no_torch() -> None:
    script = (
        "import sys; from phenomhpc.config.architecture import ModelConfig; from phenomhpc.models.costs import model_cost\n"
        "print(model_cost(ModelConfig().model_dump(), 6).parameters); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(count_parameters(outline_mae(6, **fields_of([]))).values())


def test_what_cannot_be_has_no_cost() -> None:
    with pytest.raises(UsageError, match=r"model\.options\.levels=9: a crop of 128 pixels cannot be halved 8 times"):
        model_cost({**fields_of(["model=unet_mae_small"]), "options": {"levels": 9}}, 6)
    assert isinstance(model_cost(fields_of(["model=unet_mae_small"]), 6), ModelCost)


PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "how-to" / "architectures.md"
ROWS = re.findall(r"^\| `([^`]+)` \| ([\d. |]+) \|$", PAGE.read_text(), re.MULTILINE)


def test_the_page_has_every_recipe_of_full_size() -> None:
    named = {row[0] for row in ROWS}
    assert {name for name in choices("model") if not name.endswith(("_tiny", "_cpu"))} <= named
    assert len(ROWS) == 23


@pytest.mark.parametrize(("words", "figures"), ROWS)
def test_figures_of_the_page_are_these(words: str, figures: str) -> None:
    sweep = words.startswith("model.")
    fields = fields_of(["model=mae_vit_l8", *words.split()] if sweep else [f"model={words}"])
    cost = model_cost(fields, 6, precision="bf16")
    size = (cost.decoder_parameters / 1e6,) if sweep else (cost.encoder_parameters / 1e6, cost.decoder_parameters / 1e6)
    work = (cost.training_flop / 1e9,) if sweep else (cost.training_flop / 1e9, cost.inference_flop / 1e9)
    expected = [f"{value:.1f}" for value in size] + [f"{value:.0f}" for value in (*work, cost.activation_bytes / 1e6)]
    assert figures.split(" | ") == expected
