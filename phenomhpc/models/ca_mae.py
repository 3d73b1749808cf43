"""The channel-agnostic masked autoencoder (CA-MAE, Kraus et al. 2024): a patch is of one channel, all are projected alike.

The encoder knows no channel by name or number, so a trained one takes any of them, in any order and number.  Only the decoders
belong to channels, and they are for training.

Shape suffixes: B crops, C channels, H W pixels, L patches of all channels, G patches of one channel, V visible patches, N tokens,
D width, P values of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenomhpc.models.mae import TOKEN_STD
from phenomhpc.models.vit import NORM_EPS, TransformerBlock, reset_norms, sincos_positions, xavier_uniform
from phenomhpc.models.vit_mae import VitEncoderMae, VitFields, unshuffle

_MLP_RATIO = 4


class ChannelAgnosticMae(VitEncoderMae):
    """Tokens in the order (channel, row, column) of one projection for all channels; as many patches of each channel are
    hidden, independently of the others'.  The table of positions is the same for every channel.

    Pooling "channelwise" gives each channel's mean, one after the other in the order of the crops.
    """

    any_channels = True
    poolings = ("mean", "class", "channelwise")
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
            mask_groups=num_channels,
            vit=fields,
        )
        self.decoder_dim = fields.decoder_dim
        self.decoder_embed = nn.Linear(fields.dim, fields.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, fields.decoder_dim))
        self.decoder_channel_tokens = nn.Parameter(torch.zeros(num_channels, 1, fields.decoder_dim))
        self.decoders = nn.ModuleList(ChannelDecoder(fields) for _ in range(num_channels))
        self.decoder_norm = nn.LayerNorm(fields.decoder_dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(fields.decoder_dim, self.values)
        self.register_buffer("decoder_positions", torch.empty(self.grid**2, fields.decoder_dim), persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        for linear in (self.patch_embed, self.decoder_embed, self.decoder_pred):
            xavier_uniform(linear.weight, generator)
            nn.init.zeros_(linear.bias)
        for token in (self.class_token, self.mask_token, self.decoder_channel_tokens):
            nn.init.normal_(token, std=TOKEN_STD, generator=generator)
        self.initialise_encoder(generator)
        for decoder in self.decoders:
            assert isinstance(decoder, ChannelDecoder)
            decoder.initialise(generator)
        reset_norms(self.decoder_norm)
        self.lay_tables()

    def lay_tables(self) -> None:
        super().lay_tables()
        self.decoder_positions.copy_(sincos_positions(self.decoder_dim, self.grid)[1:])

    def to_patches(self, pixels_BCHW: Tensor) -> Tensor:
        """[B, C * G, P], channel after channel, each row by row."""
        B, C, H, W = pixels_BCHW.shape
        p = self.patch_px
        grid = pixels_BCHW.reshape(B, C, H // p, p, W // p, p)
        return grid.permute(0, 1, 2, 4, 3, 5).reshape(B, C * (H // p) * (W // p), p * p)

    def to_images(self, patches_BLP: Tensor) -> Tensor:
        B, L, _ = patches_BLP.shape
        p, side = self.patch_px, self.grid
        grid = patches_BLP.reshape(B, L // side**2, side, side, p, p)
        return grid.permute(0, 1, 2, 4, 3, 5).reshape(B, L // side**2, side * p, side * p)

    def patch_positions(self, number_BV: Tensor) -> Tensor:
        return self.positions[1:][number_BV % self.grid**2]

    def complete(
        self, pixels_BCHW: Tensor, patches_BLP: Tensor, visible_BV: Tensor, mask_BL: Tensor, drop_key_B: Tensor
    ) -> Tensor:
        tokens_BND = self.encode_visible(patches_BLP, visible_BV, drop_key_B)
        visible_BVD = self.decoder_embed(tokens_BND[:, self.num_prefix :])
        x = unshuffle(visible_BVD, visible_BV, self.mask_token, self.num_patches)
        by_channel = (
            x.reshape(len(x), self.num_channels, -1, self.decoder_dim)
            + self.decoder_positions
            + self.decoder_channel_tokens
        )
        context_BLD = by_channel.flatten(1, 2)
        done = [decoder(by_channel[:, c], context_BLD) for c, decoder in enumerate(self.decoders)]
        return self.decoder_pred(self.decoder_norm(torch.cat(done, dim=1)))  # type: ignore[no-any-return]


class ChannelDecoder(nn.Module):
    """The decoder of one channel: its tokens look at those of all channels once, then go through blocks of their own.

    x = x + cross_attention(x, context);  x = x + mlp(LN(x));  blocks

    The notes name the parts and not their residuals; we keep one around the cross-attention, so that a mask token's
    position reaches the blocks whatever it looked at.
    """

    def __init__(self, fields: VitFields) -> None:
        super().__init__()
        dim, self.heads = fields.decoder_dim, fields.decoder_heads
        self.query_norm, self.context_norm = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp_in = nn.Linear(dim, _MLP_RATIO * dim)
        self.mlp_out = nn.Linear(_MLP_RATIO * dim, dim)
        self.blocks = nn.ModuleList(fields.decoder_block() for _ in range(fields.decoder_depth))

    def initialise(self, generator: torch.Generator) -> None:
        for part in (self.query.weight, *self.key_value.weight.chunk(2)):
            xavier_uniform(part, generator)
        for linear in (self.attention_out, self.mlp_in, self.mlp_out):
            xavier_uniform(linear.weight, generator)
            nn.init.zeros_(linear.bias)
        reset_norms(self.query_norm, self.context_norm, self.mlp_norm)
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.initialise(generator)

    def forward(self, x_BGD: Tensor, context_BLD: Tensor) -> Tensor:
        """Tokens [B, G, D] of this channel, given those of all channels."""
        x = x_BGD + self._look(self.query_norm(x_BGD), self.context_norm(context_BLD))
        x = x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        for block in self.blocks:
            x = block(x)
        return x  # type: ignore[no-any-return]

    def _look(self, x_BGD: Tensor, context_BLD: Tensor) -> Tensor:
        B, G, D = x_BGD.shape
        q = self.query(x_BGD).reshape(B, G, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(context_BLD).reshape(B, -1, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attended_BhGd = F.scaled_dot_product_attention(q, k, v)
        seen: Tensor = self.attention_out(attended_BhGd.transpose(1, 2).reshape(B, G, D))
        return seen
