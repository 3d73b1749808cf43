"""The cost of any architecture, counted on tensors without storage: what `costs.py` has no formula for, and what checks those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from phenomhpc.models.costs import ModelCost
from phenomhpc.models.kinds import arguments, find_class
from phenomhpc.models.mae import MaskedAutoencoder, count_parameters, outline_mae

# A prime, so that an activation of (crops * tokens, width) has no shape of a weight.
_CROPS = 7


def counted_cost(fields: Mapping[str, Any], num_channels: int, *, precision: Literal["fp32", "bf16"]) -> ModelCost:
    """ModelCost of a model of which no weight is ever made.  `fields`: ModelConfig's, all of them."""
    model = outline_mae(num_channels, **fields)
    with torch.device("meta"), torch.no_grad():
        crops, noise, keys = _inputs(model)
        with FlopCounterMode(display=False) as forward:
            model(crops, noise, keys)
        with FlopCounterMode(display=False) as inference:
            model.eval().encode(crops)
    counts = count_parameters(model)
    kept = _kept_bytes(fields, num_channels, bf16=precision == "bf16") // _CROPS
    return ModelCost(
        encoder_parameters=counts["encoder"],
        decoder_parameters=counts["decoder"],
        forward_flop=forward.get_total_flops() // _CROPS,
        inference_flop=inference.get_total_flops() // _CROPS,
        activation_bytes=kept,
        recomputed_bytes=kept,  # it has no blocks that could be
    )


def _inputs(model: MaskedAutoencoder) -> tuple[Tensor, Tensor, Tensor]:
    crops = torch.empty(_CROPS, model.num_channels, model.crop_px, model.crop_px)
    return crops, torch.empty(_CROPS, model.num_patches), torch.zeros(_CROPS, dtype=torch.int64)


def _kept_bytes(fields: Mapping[str, Any], num_channels: int, *, bf16: bool) -> int:
    """Bytes of the storages that autograd keeps of one forward pass, less the weights and their copies in bf16.

    On fake tensors of a CPU: on the meta device autocast does nothing and attention is not fused.  A GPU's autocast gives norms
    their input in fp32, which a CPU's does not; so it is given to them here.
    """
    kind = fields["kind"]
    with FakeTensorMode():
        model = find_class(kind)(num_channels, seed=0, **arguments(kind, fields)).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        shapes = {shape for p in model.parameters() if p.ndim > 1 for shape in (p.shape, p.shape[::-1])}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights and not (tensor.dtype == torch.bfloat16 and tensor.shape in shapes):
                kept[storage] = tensor  # alive, so that no other storage gets its place
            return tensor

        inputs = _inputs(model)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, given: (given[0].float(),))
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            model(*inputs)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
