"""What a model costs by arithmetic, against what torch counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phenomhpc.config import PretrainConfig, resolve
from phenomhpc.errors import UsageError
from phenomhpc.models.blocks import blocks_of, recompute_blocks
from phenomhpc.models.costs import model_cost
from phenomhpc.models.mae import MaskedAutoencoder, build_mae, count_parameters, outline_mae
from phenomhpc.train.costs import checkpoint_bytes, step_memory
from phenomhpc.train.gpus import gpu_named, gpu_of, peak_tflops
from phenomhpc.train.optim import make_optimiser

SMALL = {"crop_px": 32, "patch_px": 8, "dim": 32, "depth": 3, "heads": 2, "decoder_dim": 16, "decoder_depth": 2}
SMALL |= {"decoder_heads": 4}
RECIPES = ["mae_vit_tiny", "mae_vit_s16", "mae_vit_b16", "mae_vit_b8", "mae_vit_l16", "mae_vit_l8", "mae_vit_g8"]


def fields_of(*overrides: str) -> dict[str, Any]:
    config = resolve("pretrain", {}, list(overrides), layers=[]).config
    assert isinstance(config, PretrainConfig)
    return config.model.model_dump()


def small(**changes: Any) -> dict[str, Any]:
    return fields_of() | SMALL | changes


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_are_those_of_the_model(recipe: str) -> None:
    fields = fields_of(f"model={recipe}")
    cost = model_cost(fields, 6)
    counted = count_parameters(outline_mae(6, **fields))
    assert {"encoder": cost.encoder_parameters, "decoder": cost.decoder_parameters} == counted


@pytest.mark.parametrize(
    "fields",
    [small(), small(layer_scale=0.0, qk_norm=False, mask_ratio=0.4), fields_of("model=mae_vit_tiny")],
    ids=["small", "without scale and norm", "tiny"],
)
def test_parameters_and_flop_are_those_that_torch_counts(fields: dict[str, Any]) -> None:
    cost = model_cost(fields, 3)
    model = build_mae(3, **fields)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = run(model, 2)
    assert cost.forward_flop == counter.get_total_flops() / 2
    with FlopCounterMode(display=False) as backward, sdpa_kernel(SDPBackend.MATH):
        loss.backward()  # type: ignore[no-untyped-call]
    # The first matrix needs no gradient of the pixels; the attention's backward pass is 2.5 times its forward pass in no case.
    assert backward.get_total_flops() / 2 == pytest.approx(2 * cost.forward_flop, rel=0.05)
    assert cost.training_flop == 3 * cost.forward_flop


def run(model: MaskedAutoencoder, batch: int) -> torch.Tensor:
    side = model.crop_px
    pixels = torch.randn(batch, model.num_channels, side, side)
    noise = torch.rand(batch, model.num_patches)
    return model(pixels, noise, torch.arange(batch), torch.ones(batch)).loss  # type: ignore[no-any-return]


def test_flop_of_the_published_recipes_are_those_of_the_notes() -> None:
    """GFLOP of training on a crop of 256 x 256 x 6, as derived in the notes."""
    for recipe, gflop in {"s16": 53, "b16": 79, "b8": 348, "l16": 165, "l8": 695}.items():
        found = model_cost(fields_of(f"model=mae_vit_{recipe}"), 6).training_flop
        assert found / 1e9 == pytest.approx(gflop, rel=0.03), recipe


def bytes_kept(model: nn.Module, forward: Callable[[], object], beside: Iterable[torch.Tensor] = ()) -> int:
    """Of what autograd keeps of a forward pass, parameters and tables left out; beside: tensors that are kept as well."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for tensor in beside:
        keep(tensor)
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)


@pytest.mark.parametrize("changes", [{}, {"kind": "ca_mae_vit"}, {"depth": 5, "decoder_depth": 4}])
def test_recomputed_activations_are_inputs_of_blocks_and_one_block(changes: dict[str, Any]) -> None:
    fields = fields_of("model=mae_vit_tiny") | changes
    cost, batch = model_cost(fields, 3), 6
    model = build_mae(3, **fields).train()
    inputs: list[torch.Tensor] = []
    blocks = list(blocks_of(model))
    for block in blocks:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    recompute_blocks(model)
    outside = bytes_kept(model, lambda: run(model, batch), inputs)
    alone = []
    for block, given in zip(blocks, list(inputs), strict=True):
        block.recompute = False
        alone.append(bytes_kept(block, partial(block, given.detach().requires_grad_())) - given.nbytes)
    assert batch * cost.recomputed_bytes == pytest.approx(outside + max(alone), rel=0.05)
    assert cost.recomputed_bytes < 0.6 * cost.activation_bytes


@pytest.mark.parametrize("changes", [{}, {"mlp_ratio": 6.0, "depth": 5}, {"layer_scale": 0.0, "decoder_depth": 4}])
def test_activations_are_those_that_autograd_keeps(changes: dict[str, Any]) -> None:
    fields = fields_of("model=mae_vit_tiny") | changes
    cost, batch = model_cost(fields, 3), 6
    model = build_mae(3, **fields).train()
    counted = bytes_kept(model, lambda: run(model, batch))
    memory = step_memory(cost, optimiser="lion", precision="fp32", micro_batch=batch, crop_values=3 * 64**2, itemsize=0)
    assert memory.activations + memory.copies == pytest.approx(counted, rel=0.04)


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_moments_and_checkpoints_are_those_of_the_optimiser(name: str) -> None:
    config = resolve("pretrain", {}, [f"optim.name={name}"], layers=[]).config
    assert isinstance(config, PretrainConfig)
    model, cost = build_mae(3, **small()), model_cost(small(), 3)
    optimiser = make_optimiser(model, config.optim)
    run(model, 2).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    tensors = [v for state in optimiser.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim]
    moments = sum(tensor.nbytes for tensor in tensors)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    memory = step_memory(cost, optimiser=name, precision="fp32", micro_batch=1, crop_values=1, itemsize=1)
    assert (memory.weights, memory.gradients, memory.moments) == (weights, weights, moments)
    assert checkpoint_bytes(cost, name) == weights + moments
    assert memory.total == sum(vars(memory).values())


def test_gpus_are_known_by_the_names_that_torch_tells() -> None:
    for told, name in {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H100 NVL": "h100-nvl",
        "NVIDIA H200": "h200",
        "NVIDIA GH200 480GB": "gh200",
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA A100-PCIE-40GB": "a100-40gb",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "Tesla V100-SXM2-32GB": "v100",
        "AMD Instinct MI300X": "mi300x",
    }.items():
        found = gpu_of(told)
        assert found is not None and found.name == name, told
    assert gpu_of("NVIDIA GeForce RTX 4090") is None and gpu_of("CPU") is None
    assert peak_tflops("NVIDIA H200", "bf16") == 989.4 and peak_tflops("NVIDIA H200", "fp32") == 67.0
    assert peak_tflops("Tesla V100-SXM2-32GB", "bf16") is None
    assert gpu_named("H100").name == "h100"
    with pytest.raises(UsageError, match=r"--gpu h1000: not known; there are a10, a100, .*h100"):
        gpu_named("h1000")
