"""The two terms of the reconstruction loss, each one value per crop, so that padding can be weighted away.

Shape suffixes as in `vit.py`.  Identical input gives exactly 0 in both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mse(pred_BLP: Tensor, target_BLP: Tensor, mask_BL: Tensor) -> Tensor:
    """f32[B]: sum over patches of mask * mean over the patch of (pred - target)^2, over the sum of the mask.

    Every crop of a batch has as many masked patches, so the mean over crops is the notes' sum over the whole batch.
    A crop of which nothing is masked has loss 0.
    """
    error_BL = (pred_BLP - target_BLP).square().mean(dim=2)
    return (error_BL * mask_BL).sum(dim=1) / mask_BL.sum(dim=1).clamp_min(1.0)


def fourier_l1(pred_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """f32[B]: mean over channels and frequencies of | |FFT2(pred)| - |FFT2(target)| |, the transform unnormalised.

    The spectrum of a real image is symmetric, so half of it is computed and each of its columns counted as often as it
    appears in the whole: once for the first (and, for an even width, the last), twice otherwise.
    """
    width = pred_BCHW.shape[-1]
    difference = (torch.fft.rfft2(pred_BCHW).abs() - torch.fft.rfft2(target_BCHW).abs()).abs()
    count = torch.full((width // 2 + 1,), 2.0, device=difference.device)
    count[0] = 1.0
    if width % 2 == 0:
        count[-1] = 1.0
    total_B: Tensor = (difference * count).sum(dim=(1, 2, 3))
    return total_B / pred_BCHW[0].numel()


def weighted_mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """f32[]: sum of weight * loss over the sum of the weights (None: all 1); 0 where all weights are 0."""
    if weight_B is None:
        weight_B = torch.ones_like(loss_B)
    return (loss_B * (weight_B / weight_B.sum().clamp_min(torch.finfo(torch.float32).tiny))).sum()
