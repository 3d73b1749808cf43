"""The masked autoencoder on a vision transformer: MAE-ViT, whose patches hold all channels of a place.

Shape suffixes: B crops, C channels, H W pixels, L patches, V visible patches, N tokens (class, registers, patches), D width,
P values of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phenomhpc.models.keyed import drop_path_factors
from phenomhpc.models.kinds import require_block, require_pooling
from phenomhpc.models.mae import TOKEN_STD, MaskedAutoencoder
from phenomhpc.models.vit import (
    BLOCKS,
    NORM_EPS,
    TransformerBlock,
    reset_norms,
    sincos_positions,
    xavier_uniform,
)


@dataclass(frozen=True, kw_only=True)
class VitFields:
    """The fields of `ModelConfig` that are a transformer's."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    qk_norm: bool
    layer_scale: float
    drop_path: float
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    block: str
    qkv_bias: bool
    positions: str
    registers: int

    def encoder_block(self) -> TransformerBlock:
        return BLOCKS[self.block](
            self.dim, self.heads, self.mlp_ratio, self.qk_norm, self.layer_scale, qkv_bias=self.qkv_bias
        )

    def decoder_block(self) -> TransformerBlock:
        """The encoder's form, without LayerScale, and always with an MLP of ratio 4."""
        return BLOCKS[self.block](self.decoder_dim, self.decoder_heads, 4.0, self.qk_norm, 0.0, qkv_bias=self.qkv_bias)


class VitEncoderMae(MaskedAutoencoder):
    """A ViT over the visible patches; what completes the hidden ones is the subclass's.

    registers: so many learned tokens beside the class token (Darcet et al. 2024), which no pooling takes and no decoder
    sees.  positions: sincos is the fixed table; learned is a parameter for the class token and the patches, as published
    weights bring it, which starts as that table.
    """

    poolings: tuple[str, ...] = ("mean", "class")
    positions: Tensor
    drop_rates: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        seed: int,
        crop_px: int,
        patch_px: int,
        mask_ratio: float,
        fourier_weight: float,
        mask_groups: int,
        vit: VitFields,
    ) -> None:
        super().__init__(
            num_channels,
            seed=seed,
            crop_px=crop_px,
            patch_px=patch_px,
            mask_ratio=mask_ratio,
            fourier_weight=fourier_weight,
            mask_groups=mask_groups,
        )
        dim = vit.dim
        self.dim, self.drop_path = dim, vit.drop_path
        self.values = num_channels // mask_groups * patch_px**2
        self.num_prefix = 1 + vit.registers
        self.patch_embed = nn.Linear(self.values, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, vit.registers, dim)) if vit.registers else None
        self.blocks = nn.ModuleList(vit.encoder_block() for _ in range(vit.depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        table = torch.empty(1 + self.grid**2, dim)
        if vit.positions == "learned":
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table, persistent=False)
        num_branches = vit.depth * BLOCKS[vit.block].num_branches
        self.register_buffer("drop_rates", torch.empty(num_branches), persistent=False)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def num_features(self, *, block: int | None, pooling: str, num_channels: int) -> int:
        require_block(block, self.num_blocks)
        require_pooling(pooling, self.poolings)
        return self.dim * (num_channels if pooling == "channelwise" else 1)

    def initialise_encoder(self, generator: torch.Generator) -> None:
        """What `initialise` does for tokens, blocks and norm of the encoder; the projection comes before."""
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.initialise(generator)
        reset_norms(self.norm)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=TOKEN_STD, generator=generator)
        if isinstance(self.positions, nn.Parameter):
            with torch.no_grad():
                self.positions.copy_(sincos_positions(self.dim, self.grid))

    def lay_tables(self) -> None:
        if not isinstance(self.positions, nn.Parameter):
            self.positions.copy_(sincos_positions(self.dim, self.grid))
        depth = len(self.blocks)
        rates = torch.tensor([self.drop_path * i / max(depth - 1, 1) for i in range(depth)])
        self.drop_rates.copy_(rates.repeat_interleave(len(self.drop_rates) // depth))

    def patch_positions(self, number_BV: Tensor) -> Tensor:
        """Positions [B, V, D] of patches by their numbers."""
        return self.positions[1:][number_BV]

    def all_positions(self, num_groups: int) -> Tensor:
        """Positions [L, D] of all patches, of so many mask groups."""
        return self.positions[1:].repeat(num_groups, 1)

    def _with_prefix(self, patches_BVD: Tensor) -> Tensor:
        B = patches_BVD.shape[0]
        prefix = [(self.class_token + self.positions[:1]).expand(B, -1, -1)]
        if self.register_tokens is not None:
            prefix.append(self.register_tokens.expand(B, -1, -1))
        return torch.cat([*prefix, patches_BVD], dim=1)

    def encode_visible(self, patches_BLP: Tensor, visible_BV: Tensor, drop_key_B: Tensor) -> Tensor:
        """Tokens [B, N, D]: hidden patches are dropped before they are even projected."""
        rows = visible_BV[:, :, None]
        visible_BVP = patches_BLP.gather(1, rows.expand(-1, -1, patches_BLP.shape[2]))
        x = self._with_prefix(self.patch_embed(visible_BVP) + self.patch_positions(visible_BV))
        factors_KB: Tensor | None = None
        if self.training and self.drop_path > 0:
            factors_KB = drop_path_factors(self.seed, drop_key_B, self.drop_rates)
        K = len(self.drop_rates) // self.num_blocks
        for i, block in enumerate(self.blocks):
            x = block(x, None if factors_KB is None else factors_KB[i * K : (i + 1) * K])
        return self.norm(x)  # type: ignore[no-any-return]

    def features(self, pixels_BCHW: Tensor, block: int, pooling: str) -> Tensor:
        return self.features_by_block(pixels_BCHW, (block,), pooling)[0]

    def features_by_block(self, pixels_BCHW: Tensor, blocks: Sequence[int], pooling: str) -> list[Tensor]:
        patches_BLP = self.to_patches(pixels_BCHW)
        groups = patches_BLP.shape[1] // self.grid**2
        x = self._with_prefix(self.patch_embed(patches_BLP) + self.all_positions(groups))
        found: dict[int, Tensor] = {}
        for number, layer in enumerate(self.blocks[: max(blocks)], start=1):
            x = layer(x)
            if number in blocks:
                found[number] = self._pooled(self.norm(x) if number == self.num_blocks else x, groups, pooling)
        return [found[number] for number in blocks]

    def _pooled(self, x_BND: Tensor, groups: int, pooling: str) -> Tensor:
        if pooling == "class":
            return x_BND[:, 0]
        patches_BLD = x_BND[:, self.num_prefix :]
        if pooling == "channelwise":
            return patches_BLD.reshape(len(x_BND), groups, -1, self.dim).mean(dim=2).flatten(1)
        return patches_BLD.mean(dim=1)


class VitMae(VitEncoderMae):
    """ViT encoder over the visible patches, light decoder over all of them.  Widths and counts as in `ModelConfig`.

    The decoder is 8 (by default) blocks of the encoder's form, without LayerScale and stochastic depth: LayerScale's
    1e-4 would leave the mask tokens, which start equal, without information for most of the warm-up.
    """

    decoder_positions: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        seed: int,
        crop_px: int,
        patch_px: int,
        mask_ratio: float,
        fourier_weight: float,
        **vit: Any,
    ) -> None:
        """vit: the fields of VitFields."""
        fields = VitFields(**vit)
        super().__init__(
            num_channels,
            seed=seed,
            crop_px=crop_px,
            patch_px=patch_px,
            mask_ratio=mask_ratio,
            fourier_weight=fourier_weight,
            mask_groups=1,
            vit=fields,
        )
        decoder_dim = fields.decoder_dim
        self.decoder_dim = decoder_dim
        self.decoder_embed = nn.Linear(fields.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(fields.decoder_block() for _ in range(fields.decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(decoder_dim, self.values)
        self.register_buffer("decoder_positions", torch.empty(1 + self.num_patches, decoder_dim), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        for linear in (self.patch_embed, self.decoder_embed, self.decoder_pred):
            xavier_uniform(linear.weight, generator)
            nn.init.zeros_(linear.bias)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=TOKEN_STD, generator=generator)
        self.initialise_encoder(generator)
        for block in self.decoder_blocks:
            assert isinstance(block, TransformerBlock)
            block.initialise(generator)
        reset_norms(self.decoder_norm)
        self.lay_tables()

    def lay_tables(self) -> None:
        super().lay_tables()
        self.decoder_positions.copy_(sincos_positions(self.decoder_dim, self.grid))

    def complete(
        self, pixels_BCHW: Tensor, patches_BLP: Tensor, visible_BV: Tensor, mask_BL: Tensor, drop_key_B: Tensor
    ) -> Tensor:
        x = self.decoder_embed(self._without_registers(self.encode_visible(patches_BLP, visible_BV, drop_key_B)))
        x = torch.cat([x[:, :1], unshuffle(x[:, 1:], visible_BV, self.mask_token, self.num_patches)], dim=1)
        x = x + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]  # type: ignore[no-any-return]

    def _without_registers(self, tokens_BND: Tensor) -> Tensor:
        if self.register_tokens is None:
            return tokens_BND
        return torch.cat([tokens_BND[:, :1], tokens_BND[:, self.num_prefix :]], dim=1)


def unshuffle(visible_BVD: Tensor, visible_BV: Tensor, mask_token: Tensor, num_patches: int) -> Tensor:
    """Tokens [B, L, D] with every visible one at its place and the mask token elsewhere."""
    B, _, D = visible_BVD.shape
    hidden = mask_token.to(visible_BVD.dtype).expand(B, num_patches, D)
    return hidden.scatter(1, visible_BV[:, :, None].expand(-1, -1, D), visible_BVD)
