"""The masked autoencoder: what is pretrained, and the encoder that embeds.

Crops come standardised (models/standardise.py); the reconstruction target is the same image, without per-patch normalisation.
Everything random is given: the noise that chooses the masked patches, and the keys of stochastic depth.  Weights are
drawn from one `torch.Generator`, so that building a model neither reads nor moves any global random state.

Shape suffixes: B crops, C channels, H W pixels, L patches, V visible patches, N = V + 1 tokens, D width, P values of a
patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from phenomhpc.errors import UsageError
from phenomhpc.models.keyed import drop_path_factors
from phenomhpc.models.losses import fourier_l1, masked_mse
from phenomhpc.models.vit import NORM_EPS, ParallelBlock, patchify, sincos_positions, unpatchify, xavier_uniform

TOKEN_STD = 0.02


class MaeOutput(NamedTuple):
    """What one forward pass gives; the losses are weighted means over the crops (0 where all weights are)."""

    loss: Tensor  # f32 []
    loss_mse: Tensor  # f32 []
    loss_fourier: Tensor  # f32 []
    pred: Tensor  # f32 [B, L, P]
    mask: Tensor  # f32 [B, L], 1 where a patch was hidden from the encoder


class Reconstruction(NamedTuple):
    """Standardised images [B, C, H, W] for a person: hidden patches at 0 (the mean), and filled in by the model."""

    masked: Tensor
    reconstructed: Tensor


class MaskedAutoencoder(nn.Module):
    """ViT encoder over the visible patches, light decoder over all of them.  Widths and counts as in `ModelConfig`.

    The decoder is 8 (by default) blocks of the encoder's form, without LayerScale and stochastic depth: LayerScale's
    1e-4 would leave the mask tokens, which start equal, without information for most of the warm-up.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        seed: int,
        crop_px: int,
        patch_px: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        layer_scale: float,
        drop_path: float,
        mask_ratio: float,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        fourier_weight: float,
    ) -> None:
        super().__init__()
        self.num_channels, self.seed, self.crop_px, self.patch_px = num_channels, seed, crop_px, patch_px
        self.dim, self.decoder_dim, self.fourier_weight = dim, decoder_dim, fourier_weight
        self.grid = crop_px // patch_px
        self.num_patches = self.grid**2
        self.num_visible = int(self.num_patches * (1 - mask_ratio))
        if not 0 < self.num_visible < self.num_patches:
            raise UsageError(
                f"model.mask_ratio={mask_ratio} of {self.num_patches} patches leaves {self.num_visible} visible; "
                "choose a ratio that keeps at least one and hides at least one"
            )
        self.drop_rates = tuple(drop_path * i / max(depth - 1, 1) for i in range(depth))
        values = num_channels * patch_px**2

        self.patch_embed = nn.Linear(values, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(ParallelBlock(dim, heads, mlp_ratio, qk_norm, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            ParallelBlock(decoder_dim, decoder_heads, mlp_ratio=4.0, qk_norm=qk_norm, layer_scale=0.0)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_dim, values)

        self.positions: Tensor
        self.decoder_positions: Tensor
        self.register_buffer("positions", torch.empty(1 + self.num_patches, dim), persistent=False)
        self.register_buffer("decoder_positions", torch.empty(1 + self.num_patches, decoder_dim), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Fill every parameter and position table, in a fixed order, from the generator (on the model's device)."""
        for linear in (self.patch_embed, self.decoder_embed, self.decoder_pred):
            xavier_uniform(linear.weight, generator)
            nn.init.zeros_(linear.bias)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=TOKEN_STD, generator=generator)
        for block in (*self.blocks, *self.decoder_blocks):
            assert isinstance(block, ParallelBlock)
            block.initialise(generator)
        for norm in (self.norm, self.decoder_norm):
            norm.reset_parameters()
        self.lay_positions()

    def lay_positions(self) -> None:
        """Fill the fixed position tables; they are computed, never stored."""
        self.positions.copy_(sincos_positions(self.dim, self.grid))
        self.decoder_positions.copy_(sincos_positions(self.decoder_dim, self.grid))

    def _with_class_token(self, patches_BVD: Tensor) -> Tensor:
        token = (self.class_token + self.positions[:1]).expand(patches_BVD.shape[0], -1, -1)
        return torch.cat([token, patches_BVD], dim=1)

    def _encode_visible(self, patches_BLP: Tensor, visible_BV: Tensor, drop_key_B: Tensor) -> Tensor:
        """Tokens [B, 1 + V, D]: hidden patches are dropped before they are even projected."""
        rows = visible_BV[:, :, None]
        visible_BVP = patches_BLP.gather(1, rows.expand(-1, -1, patches_BLP.shape[2]))
        x = self._with_class_token(self.patch_embed(visible_BVP) + self.positions[1:][visible_BV])
        factors: Tensor | None = None
        if self.training and self.drop_rates[-1] > 0:
            factors = drop_path_factors(self.seed, drop_key_B, self.drop_rates)
        for i, block in enumerate(self.blocks):
            x = block(x, None if factors is None else factors[i])
        return self.norm(x)  # type: ignore[no-any-return]

    def _decode(self, tokens_BND: Tensor, visible_BV: Tensor) -> Tensor:
        """Predicted patches [B, L, P] from the encoder's tokens, every patch at its place."""
        x = self.decoder_embed(tokens_BND)
        B, _, D = x.shape
        rows = visible_BV[:, :, None].expand(-1, -1, D)
        hidden = self.mask_token.to(x.dtype).expand(B, self.num_patches, D)
        x = torch.cat([x[:, :1], hidden.scatter(1, rows, x[:, 1:])], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]  # type: ignore[no-any-return]

    def forward(
        self, pixels_BCHW: Tensor, mask_noise_BL: Tensor, drop_key_B: Tensor, weight_B: Tensor | None = None
    ) -> MaeOutput:
        """Loss and prediction for standardised crops.

        The int(L * (1 - mask_ratio)) patches with the smallest noise stay visible (ties: the earlier patch).  `weight_B`
        weighs each crop's loss: 0 for padding, whatever its pixels.  Block i's branch is dropped by
        (seed, drop_key, i), in training mode only.
        """
        patches_BLP = patchify(pixels_BCHW, self.patch_px)
        visible_BV = mask_noise_BL.argsort(dim=1, stable=True)[:, : self.num_visible]
        mask_BL = torch.ones_like(mask_noise_BL).scatter(1, visible_BV, 0.0)
        pred_BLP = self._decode(self._encode_visible(patches_BLP, visible_BV, drop_key_B), visible_BV).float()

        mse_B = masked_mse(pred_BLP, patches_BLP, mask_BL)
        fourier_B = fourier_l1(unpatchify(pred_BLP, self.patch_px, self.num_channels), pixels_BCHW)
        if weight_B is None:
            weight_B = torch.ones_like(mse_B)
        share_B = weight_B / weight_B.sum().clamp_min(torch.finfo(torch.float32).tiny)
        mse, fourier = (mse_B * share_B).sum(), (fourier_B * share_B).sum()
        loss = (1 - self.fourier_weight) * mse + self.fourier_weight * fourier
        return MaeOutput(loss, mse, fourier, pred_BLP, mask_BL)

    def encode(
        self, pixels_BCHW: Tensor, block: int | None = None, pooling: Literal["mean", "class"] = "mean"
    ) -> Tensor:
        """Features f32[B, D] of standardised crops, nothing masked; call in eval mode.

        `block` is 1-based; the last block's output (the default) passes the final LayerNorm, an earlier one's is taken
        as it is.  "mean" averages the patch tokens and drops the class token, "class" takes the class token.
        """
        depth = len(self.blocks)
        block = depth if block is None else block
        if not 1 <= block <= depth:
            raise UsageError(f"block={block}: the encoder has blocks 1 to {depth}")
        if pixels_BCHW.shape[1:] != (self.num_channels, self.crop_px, self.crop_px):
            shape = " x ".join(map(str, pixels_BCHW.shape[1:]))
            expected = f"{self.num_channels} x {self.crop_px} x {self.crop_px}"
            raise UsageError(f"crops of {shape}: this encoder takes {expected}")
        x = self._with_class_token(self.patch_embed(patchify(pixels_BCHW, self.patch_px)) + self.positions[1:])
        for layer in self.blocks[:block]:
            x = layer(x)
        if block == depth:
            x = self.norm(x)
        pooled = x[:, 1:].mean(dim=1) if pooling == "mean" else x[:, 0]
        return pooled.float()

    @torch.no_grad()
    def reconstruct(self, pixels_BCHW: Tensor, mask_noise_BL: Tensor) -> Reconstruction:
        """What the model sees of standardised crops, and what it makes of it; call in eval mode."""
        keys_B = torch.zeros(len(pixels_BCHW), dtype=torch.int64, device=pixels_BCHW.device)
        output = self(pixels_BCHW, mask_noise_BL, keys_B)
        hidden_BL1 = output.mask[:, :, None]
        visible = patchify(pixels_BCHW, self.patch_px) * (1 - hidden_BL1)
        return Reconstruction(
            unpatchify(visible, self.patch_px, self.num_channels),
            unpatchify(visible + output.pred * hidden_BL1, self.patch_px, self.num_channels),
        )


def build_mae(num_channels: int, *, seed: int = 0, **fields: Any) -> MaskedAutoencoder:
    """A model on the CPU with weights drawn from `seed`; `fields` are ModelConfig's (its name is not used).

    It is laid out on the meta device first, so that torch's own initialisation draws nothing from the global generator.
    """
    model = outline_mae(num_channels, seed=seed, **fields).to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def outline_mae(num_channels: int, *, seed: int = 0, **fields: Any) -> MaskedAutoencoder:
    """The same model without storage, on the meta device: for counting, and for loading a checkpoint into."""
    with torch.device("meta"):
        return MaskedAutoencoder(num_channels, seed=seed, **{k: v for k, v in fields.items() if k != "name"})


def count_parameters(model: nn.Module) -> Mapping[str, int]:
    """Numbers of parameters of the encoder and of the decoder."""
    counts = {"encoder": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        part = "decoder" if name.startswith(("decoder_", "mask_token")) else "encoder"
        counts[part] += parameter.numel()
    return counts
