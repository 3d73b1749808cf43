"""Masked autoencoders: what pretraining and embedding ask of every architecture, and what they all have in common.

Crops come standardised (models/standardise.py); the reconstruction target is the same image, without per-patch normalisation.
Everything random is given: the noise that chooses the masked patches, and the keys of stochastic depth.  Weights are
drawn from one `torch.Generator`, so that building a model neither reads nor moves any global random state.

An architecture is a subclass that says how hidden patches are completed and how crops become vectors (`kinds.py` finds it).

Shape suffixes: B crops, C channels, H W pixels, L patches, V visible patches, P values of a patch, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from phenomhpc.errors import UsageError
from phenomhpc.models.kinds import VIT, arguments, complete_fields, find_class
from phenomhpc.models.losses import fourier_l1, masked_mse, weighted_mean
from phenomhpc.models.vit import patchify, unpatchify

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
    """The base of all architectures: masking, losses, reconstructions.

    A subclass takes (num_channels, *, seed, crop_px, patch_px, mask_ratio, fourier_weight) and options of its own, and
    overrides `initialise`, `complete`, `features`, `num_blocks` and `num_features`.  Its forward must give the same
    whatever else is in the batch, draw nothing at random, and never wait for the device.  Parameters whose names begin
    with `decoder` or `mask_token` count as the decoder's; those that end with `_token`, `_tokens` or `positions`, or have
    one dimension, are not decayed.
    """

    any_channels: ClassVar[bool] = False
    """May `encode` be given other channels, or fewer, than the model was trained on?"""

    def __init__(
        self,
        num_channels: int,
        *,
        seed: int,
        crop_px: int,
        patch_px: int,
        mask_ratio: float,
        fourier_weight: float,
        mask_groups: int = 1,
    ) -> None:
        """mask_groups: consecutive parts of the patches (each channel's, say), masked independently, as many in each."""
        super().__init__()
        self.num_channels, self.seed, self.crop_px, self.patch_px = num_channels, seed, crop_px, patch_px
        self.fourier_weight, self.mask_groups = fourier_weight, mask_groups
        self.grid = crop_px // patch_px
        in_group = self.grid**2
        self.num_patches = mask_groups * in_group
        visible = int(in_group * (1 - mask_ratio))
        if not 0 < visible < in_group:
            raise UsageError(
                f"model.mask_ratio={mask_ratio} of {in_group} patches leaves {visible} visible; "
                "choose a ratio that keeps at least one and hides at least one"
            )
        self.num_visible = mask_groups * visible

    # What an architecture says of itself

    @property
    def num_blocks(self) -> int:
        """Blocks whose output `encode` can take."""
        raise NotImplementedError

    def num_features(self, *, block: int | None, pooling: str, num_channels: int) -> int:
        """Length of the vectors of `encode`.  Raises UsageError for a block or a pooling that there is not."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator) -> None:
        """Fill every parameter, in a fixed order, from the generator (on the model's device), and lay the tables."""
        raise NotImplementedError

    def lay_tables(self) -> None:
        """Fill what is computed and never stored: buffers that are not persistent."""

    def complete(
        self, pixels_BCHW: Tensor, patches_BLP: Tensor, visible_BV: Tensor, mask_BL: Tensor, drop_key_B: Tensor
    ) -> Tensor:
        """Predicted patches [B, L, P], from the visible ones alone; visible_BV: their numbers, mask_BL: 1 where hidden."""
        raise NotImplementedError

    def features(self, pixels_BCHW: Tensor, block: int, pooling: str) -> Tensor:
        """Vectors [B, D] of whole crops after a block, 1-based; the arguments are checked."""
        raise NotImplementedError

    def features_by_block(self, pixels_BCHW: Tensor, blocks: Sequence[int], pooling: str) -> list[Tensor]:
        """`features` of each of these blocks; an architecture that passes one on the way to another does it in one pass."""
        return [self.features(pixels_BCHW, block, pooling) for block in blocks]

    def to_patches(self, pixels_BCHW: Tensor) -> Tensor:
        """The patches [B, L, P] that are hidden or not: by default all channels of a place are one patch."""
        return patchify(pixels_BCHW, self.patch_px)

    def to_images(self, patches_BLP: Tensor) -> Tensor:
        """The inverse of `to_patches`."""
        return unpatchify(patches_BLP, self.patch_px, self.num_channels)

    # What all have in common

    def choose_visible(self, mask_noise_BL: Tensor) -> Tensor:
        """i64[B, V]: of each group the patches with the smallest noise, int(L * (1 - mask_ratio)) of them (ties: the earlier)."""
        B, L = mask_noise_BL.shape
        groups, per_group = self.mask_groups, self.num_visible // self.mask_groups
        ranked = mask_noise_BL.reshape(B, groups, L // groups).argsort(dim=2, stable=True)[:, :, :per_group]
        first = torch.arange(0, L, L // groups, device=ranked.device)
        return (ranked + first[:, None]).reshape(B, self.num_visible)

    def forward(
        self, pixels_BCHW: Tensor, mask_noise_BL: Tensor, drop_key_B: Tensor, weight_B: Tensor | None = None
    ) -> MaeOutput:
        """Loss and prediction for standardised crops.

        `weight_B` weighs each crop's loss: 0 for padding, whatever its (finite) pixels.  Block i's branch is dropped by
        (seed, drop_key, i), in training mode only.
        """
        patches_BLP = self.to_patches(pixels_BCHW)
        visible_BV = self.choose_visible(mask_noise_BL)
        mask_BL = torch.ones_like(mask_noise_BL).scatter(1, visible_BV, 0.0)
        pred_BLP = self.complete(pixels_BCHW, patches_BLP, visible_BV, mask_BL, drop_key_B).float()

        mse_B = masked_mse(pred_BLP, patches_BLP, mask_BL)
        fourier_B = fourier_l1(self.to_images(pred_BLP), pixels_BCHW)
        mse, fourier = weighted_mean(mse_B, weight_B), weighted_mean(fourier_B, weight_B)
        loss = (1 - self.fourier_weight) * mse + self.fourier_weight * fourier
        return MaeOutput(loss, mse, fourier, pred_BLP, mask_BL)

    def encode(self, pixels_BCHW: Tensor, block: int | None = None, pooling: str = "mean") -> Tensor:
        """Features f32[B, D] of standardised crops, nothing masked; call in eval mode.

        `block` is 1-based; the last block's output (the default) passes the final norm, an earlier one's is taken as it
        is.  "mean" averages over the patches and leaves the class token out, "class" takes the class token.
        """
        return self.encode_blocks(pixels_BCHW, (self.num_blocks if block is None else block,), pooling)

    def encode_blocks(self, pixels_BCHW: Tensor, blocks: Sequence[int], pooling: str = "mean") -> Tensor:
        """What `encode` gives for each of these blocks, f32[B, sum of their D], side by side in the order asked."""
        num_channels, *edges = pixels_BCHW.shape[1:]
        allowed = num_channels == self.num_channels or (self.any_channels and num_channels > 0)
        if not allowed or edges != [self.crop_px, self.crop_px]:
            shape = " x ".join(map(str, pixels_BCHW.shape[1:]))
            expected = f"{self.num_channels} x {self.crop_px} x {self.crop_px}"
            raise UsageError(f"crops of {shape}: this encoder takes {expected}")
        for block in blocks:
            self.num_features(block=block, pooling=pooling, num_channels=num_channels)  # refuses what there is not
        return torch.cat([part.float() for part in self.features_by_block(pixels_BCHW, blocks, pooling)], dim=1)

    @torch.no_grad()
    def reconstruct(self, pixels_BCHW: Tensor, mask_noise_BL: Tensor) -> Reconstruction:
        """What the model sees of standardised crops, and what it makes of it; call in eval mode."""
        keys_B = torch.zeros(len(pixels_BCHW), dtype=torch.int64, device=pixels_BCHW.device)
        output = self(pixels_BCHW, mask_noise_BL, keys_B)
        hidden_BL1 = output.mask[:, :, None]
        visible = self.to_patches(pixels_BCHW) * (1 - hidden_BL1)
        return Reconstruction(self.to_images(visible), self.to_images(visible + output.pred * hidden_BL1))


def build_mae(num_channels: int, *, seed: int = 0, **fields: Any) -> MaskedAutoencoder:
    """A model on the CPU with weights drawn from `seed`; `fields` are ModelConfig's (its name is not used).

    It is laid out on the meta device first, so that torch's own initialisation draws nothing from the global generator.
    """
    model = outline_mae(num_channels, seed=seed, **fields).to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(seed))
    return model


def outline_mae(num_channels: int, *, seed: int = 0, **fields: Any) -> MaskedAutoencoder:
    """The same model without storage, on the meta device: for counting, and for loading a checkpoint into.

    Raises UsageError for a kind, an option or a mask that cannot be.
    """
    kind = fields.get("kind", VIT)
    with torch.device("meta"):
        return find_class(kind)(num_channels, seed=seed, **arguments(kind, complete_fields(fields)))


def count_parameters(model: nn.Module) -> Mapping[str, int]:
    """Numbers of parameters of the encoder and of the decoder."""
    counts = {"encoder": 0, "decoder": 0}
    for name, parameter in model.named_parameters():
        part = "decoder" if name.startswith(("decoder", "mask_token")) else "encoder"
        counts[part] += parameter.numel()
    return counts
