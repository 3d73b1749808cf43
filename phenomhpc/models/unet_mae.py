"""A masked autoencoder without a transformer: a small U-Net, and an example of how an architecture is added.

Shape suffixes: B crops, C channels, H W pixels, L patches, V visible patches, P values of a patch, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phenomhpc.errors import UsageError
from phenomhpc.models.kinds import require_block, require_pooling
from phenomhpc.models.mae import MaskedAutoencoder
from phenomhpc.models.vit import xavier_uniform


class UnetMae(MaskedAutoencoder):
    """Convolutions over the whole crop, hidden patches at 0 (a standardised crop's mean) and marked by a channel of their own.

    width: features of the first level, each further level has twice as many on half the edge; levels: how many.
    Vectors are a level's features averaged over the crop: block 1 is the finest level, the last (the default) the coarsest.
    """

    poolings = ("mean",)

    def __init__(
        self,
        num_channels: int,
        *,
        seed: int,
        crop_px: int,
        patch_px: int,
        mask_ratio: float,
        fourier_weight: float,
        width: int = 32,
        levels: int = 4,
    ) -> None:
        super().__init__(
            num_channels,
            seed=seed,
            crop_px=crop_px,
            patch_px=patch_px,
            mask_ratio=mask_ratio,
            fourier_weight=fourier_weight,
        )
        if levels < 1 or crop_px % 2 ** (levels - 1):
            raise UsageError(
                f"model.options.levels={levels}: a crop of {crop_px} pixels cannot be halved {levels - 1} times"
            )
        self.widths: list[int] = [width * 2**level for level in range(levels)]
        self.stem = nn.Conv2d(num_channels + 1, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(above, below, 2, stride=2) for above, below in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        self.blocks = nn.ModuleList(ConvBlock(width) for width in self.widths)
        self.decoder_up = nn.ModuleList(
            nn.Conv2d(below, above, 1) for above, below in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        self.decoder_blocks = nn.ModuleList(ConvBlock(width) for width in self.widths[:-1])
        self.decoder_pred = nn.Conv2d(width, num_channels, 1)

    @property
    def num_blocks(self) -> int:
        return len(self.widths)

    def num_features(self, *, block: int | None, pooling: str, num_channels: int) -> int:
        require_pooling(pooling, self.poolings)
        return self.widths[require_block(block, self.num_blocks) - 1]

    def initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                xavier_uniform(module.weight.flatten(1), generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def complete(
        self, pixels_BCHW: Tensor, patches_BLP: Tensor, visible_BV: Tensor, mask_BL: Tensor, drop_key_B: Tensor
    ) -> Tensor:
        mask_B1HW = mask_BL.reshape(-1, 1, self.grid, self.grid)
        mask_B1HW = mask_B1HW.repeat_interleave(self.patch_px, 2).repeat_interleave(self.patch_px, 3)
        levels = self._encode(pixels_BCHW * (1 - mask_B1HW), mask_B1HW, self.num_blocks)
        x = levels[-1]
        for level in reversed(range(len(self.decoder_blocks))):
            x = levels[level] + F.interpolate(self.decoder_up[level](x), scale_factor=2)
            x = self.decoder_blocks[level](x)
        return self.to_patches(self.decoder_pred(x))

    def features(self, pixels_BCHW: Tensor, block: int, pooling: str) -> Tensor:
        return self.features_by_block(pixels_BCHW, (block,), pooling)[0]

    def features_by_block(self, pixels_BCHW: Tensor, blocks: Sequence[int], pooling: str) -> list[Tensor]:
        levels = self._encode(pixels_BCHW, torch.zeros_like(pixels_BCHW[:, :1]), max(blocks))
        return [levels[block - 1].mean(dim=(2, 3)) for block in blocks]

    def _encode(self, pixels_BCHW: Tensor, mask_B1HW: Tensor, num_levels: int) -> list[Tensor]:
        """The output [B, D, h, w] of each of the first levels."""
        x = self.blocks[0](self.stem(torch.cat([pixels_BCHW, mask_B1HW], dim=1)))
        outputs = [x]
        for level in range(1, num_levels):
            outputs.append(self.blocks[level](self.down[level - 1](outputs[-1])))
        return outputs


class ConvBlock(nn.Module):
    """x + conv(gelu(conv(norm(x)))), 3 x 3; the norm is over all of a crop, so that crops do not mix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        branch: Tensor = self.conv_2(F.gelu(self.conv_1(self.norm(x_BDhw))))
        return x_BDhw + branch
