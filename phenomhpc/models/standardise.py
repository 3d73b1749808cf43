"""Self-standardisation: integer pixels to what the model sees, on whatever device they lie.

On a CPU by compiled code, which sums integers exactly and writes each value once, where PyTorch's operators go over the pixels six
times; and into the same memory over and over, since fresh memory for a batch costs more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

STANDARDISE_EPS = 1e-5
_COMPILED = (torch.uint8, torch.uint16)
# Pixels of a plane from which on compiled code is loaded: that takes half a second, more than it saves on small crops.
_LEAST_PIXELS = 128 * 128


def standardise(pixels_BCHW: Tensor, scale_C: Tensor, out_BCHW: Tensor | None = None) -> Tensor:
    """Self-standardised crops f32[B, C, H, W] from u8, u16 or f32 pixels in grey levels.

    x / scale, then per crop and channel (x - mean) / sqrt(biased variance + 1e-5).  The scale (255 for uint8, the
    snapshot's 99.9th percentiles for uint16) matters only through that epsilon: blank crops stay near zero.
    out_BCHW: where a CPU's may be put, if given.
    """
    if _is_for_compiled(pixels_BCHW):
        done_BCHW = torch.empty(pixels_BCHW.shape) if out_BCHW is None else out_BCHW
        _on_cpu(pixels_BCHW.contiguous().numpy(), scale_C.double().numpy(), done_BCHW.numpy())
        return done_BCHW
    scaled = pixels_BCHW.to(torch.float32) / scale_C[:, None, None]
    return F.group_norm(scaled, scaled.shape[1], eps=STANDARDISE_EPS)


def _is_for_compiled(pixels_BCHW: Tensor) -> bool:
    large = pixels_BCHW.shape[2] * pixels_BCHW.shape[3] >= _LEAST_PIXELS
    return large and pixels_BCHW.device.type == "cpu" and pixels_BCHW.dtype in _COMPILED


class Standardiser:
    """standardise() for a loop.  On a CPU the crops are valid until the next call: they lie in the same memory."""

    def __init__(self, scale_C: Tensor) -> None:
        """scale_C: grey levels that become 1, on the device on which the pixels will be."""
        self.scale_C = scale_C
        self._room: Tensor | None = None

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        if not _is_for_compiled(pixels_BCHW):
            return standardise(pixels_BCHW, self.scale_C)
        if self._room is None or self._room.shape[1:] != pixels_BCHW.shape[1:] or len(self._room) < len(pixels_BCHW):
            self._room = torch.empty(pixels_BCHW.shape)
        return standardise(pixels_BCHW, self.scale_C, self._room[: len(pixels_BCHW)])


def _on_cpu(pixels: NDArray[Any], scale: NDArray[np.float64], done: NDArray[np.float32]) -> None:
    from phenomhpc.models.standardise_loops import standardise_planes

    batch, channels, height, width = pixels.shape
    planes = batch * channels
    standardise_planes(
        pixels.reshape(planes, height * width),
        np.tile(scale, batch),
        STANDARDISE_EPS,
        done.reshape(planes, height * width),
    )
