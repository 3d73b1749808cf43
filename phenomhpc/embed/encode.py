"""Crops in, vectors out: a trained encoder, or the same encoder untrained (the statistics of the pixels: models/intensity.py).

Every batch has the same shape, the last one padded with blank crops; nothing in an encoder mixes the crops of a batch, so
the padding changes no result.  What does move the last bits of a float32 result is the shape of a batch, a crop's place in it
and the number of threads (the matrix kernels choose their blocking by them): with these the same, on one kind of machine,
results are reproducible bit by bit; otherwise they agree to rounding, about 1e-6 relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from phenomhpc.models.mae import MaskedAutoencoder
from phenomhpc.models.standardise import Standardiser

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CropEncoder(Protocol):
    """Anything that turns a batch of crops into one vector each."""

    @property
    def num_features(self) -> int: ...

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Vectors f32[B, num_features] of crops u8|u16[B, C, h, w], channels in the encoder's order; crops do not interact."""


class ModelEncoder:
    """The encoder of a masked autoencoder, in inference: nothing masked, no stochastic depth.

    scale: grey levels that become 1, of each channel of the crops; a channel-agnostic model takes any of them, in any order.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        scale: Sequence[float],
        *,
        device: torch.device,
        precision: Precision = "fp32",
        block: int | None = None,
        pooling: str = "mean",
    ) -> None:
        self._model = model.to(device).eval()
        self._standardise = Standardiser(torch.tensor(scale, dtype=torch.float32, device=device))
        self._num_features = model.num_features(block=block, pooling=pooling, num_channels=len(scale))
        self._device, self._precision, self._block, self._pooling = device, precision, block, pooling

    @property
    def num_features(self) -> int:
        return self._num_features

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        # Integer pixels cross to the device (a quarter of the bytes), arithmetic happens there.
        crops = self._standardise(torch.from_numpy(pixels).to(self._device))
        with torch.autocast(
            self._device.type, AUTOCAST.get(self._precision, torch.bfloat16), enabled=self._precision != "fp32"
        ):
            vectors = self._model.encode(crops, self._block, self._pooling)
        return vectors.float().cpu().numpy()
