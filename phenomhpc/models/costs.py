"""What a model costs, by arithmetic alone: parameters, FLOP, activations.  Numbers in, numbers out; without torch.

A multiplication and its addition are 2 FLOP; counted are matrix products (attention's among them), as everybody does who tells
an MFU: norms, activations and the FFT of the loss are not.  A backward pass costs two forward passes.

Shape suffixes in words: D width, M hidden width of the MLP, N tokens, L patches, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FORWARDS_PER_STEP = 3
FP32, BF16 = 4, 2
DECODER_MLP_RATIO = 4.0
# Bytes that a step keeps of each value of a crop beside the blocks' activations: the crop, its patches, the prediction, the
# spectra of the loss.  Counted with torch's saved_tensors_hooks; test_train_costs.py counts again.
PIXEL_BYTES = 19


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Of one architecture.  forward_flop: of a masked crop; activation_bytes: kept of one crop for its backward pass."""

    encoder_parameters: int
    decoder_parameters: int
    forward_flop: float
    activation_bytes: float

    @property
    def parameters(self) -> int:
        return self.encoder_parameters + self.decoder_parameters

    @property
    def training_flop(self) -> float:
        """Of one crop, forward and backward."""
        return FORWARDS_PER_STEP * self.forward_flop


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """A stack of ParallelBlocks (models/vit.py)."""

    dim: int
    depth: int
    heads: int
    hidden: int
    qk_norm: bool
    layer_scale: bool

    @property
    def parameters(self) -> int:
        D, M = self.dim, self.hidden
        matrices = D * (3 * D + M) + (D + M) * D
        small = 2 * D + M + D + (4 * D // self.heads if self.qk_norm else 0) + (D if self.layer_scale else 0)
        return self.depth * (matrices + small)

    def forward_flop(self, tokens: int) -> float:
        D, M = self.dim, self.hidden
        return self.depth * (2 * tokens * (4 * D + 2 * M) * D + 4 * tokens**2 * D)

    def activation_bytes(self, tokens: int, precision: str) -> float:
        """What autograd keeps: the block's input, LN(x), q k v and the MLP's input, both normed, the attention's output,
        the MLP's before and after its gelu, and (for LayerScale) the branch.  In bf16 what LayerNorms take stays fp32."""
        D, M = self.dim, self.hidden
        norms = 2 * D if self.qk_norm else 0
        scale = D if self.layer_scale else 0
        if precision == "bf16":
            per_token = FP32 * (D + norms) + BF16 * (D + 3 * D + norms + 2 * D + scale + 3 * M)
        else:
            per_token = FP32 * (D + D + 3 * D + norms + 2 * D + scale + 3 * M)
        return self.depth * tokens * (per_token + FP32 * self.heads)


def model_cost(
    fields: Mapping[str, Any], num_channels: int, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> ModelCost:
    """The cost of a recipe.  fields: of ModelConfig."""
    patches = (fields["crop_px"] // fields["patch_px"]) ** 2
    visible = int(patches * (1 - fields["mask_ratio"]))
    values = num_channels * fields["patch_px"] ** 2
    D, dd = fields["dim"], fields["decoder_dim"]
    encoder = _Blocks(
        dim=D,
        depth=fields["depth"],
        heads=fields["heads"],
        hidden=round(D * fields["mlp_ratio"]),
        qk_norm=fields["qk_norm"],
        layer_scale=bool(fields["layer_scale"]),
    )
    decoder = _Blocks(
        dim=dd,
        depth=fields["decoder_depth"],
        heads=fields["decoder_heads"],
        hidden=round(dd * DECODER_MLP_RATIO),
        qk_norm=fields["qk_norm"],
        layer_scale=False,
    )
    tokens, all_tokens = visible + 1, patches + 1
    flop = 2 * visible * values * D + encoder.forward_flop(tokens)
    flop += 2 * tokens * D * dd + decoder.forward_flop(all_tokens) + 2 * all_tokens * dd * values
    kept = encoder.activation_bytes(tokens, precision) + decoder.activation_bytes(all_tokens, precision)
    return ModelCost(
        encoder_parameters=values * D + D + D + encoder.parameters + 2 * D,
        decoder_parameters=D * dd + dd + dd + decoder.parameters + 2 * dd + dd * values + values,
        forward_flop=flop,
        activation_bytes=kept + PIXEL_BYTES * num_channels * fields["crop_px"] ** 2,
    )
