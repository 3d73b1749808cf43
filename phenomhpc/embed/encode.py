"""Crops in, vectors out: a trained encoder, the same encoder untrained, or the statistics of the pixels.

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

from phenomhpc.errors import UsageError
from phenomhpc.models.mae import MaskedAutoencoder, standardise

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


class CropEncoder(Protocol):
    """Anything that turns a batch of crops into one vector each."""

    @property
    def num_features(self) -> int: ...

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Vectors f32[B, num_features] of crops u8|u16[B, C, h, w], channels in the encoder's order; crops do not interact."""


class VitEncoder:
    """The encoder of a masked autoencoder, in inference: nothing masked, no stochastic depth."""

    def __init__(
        self,
        model: MaskedAutoencoder,
        scale: Sequence[float],
        *,
        device: torch.device,
        precision: Precision = "fp32",
        block: int | None = None,
        pooling: Literal["mean", "class"] = "mean",
    ) -> None:
        self._model = model.to(device).eval()
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self._device, self._precision, self._block, self._pooling = device, precision, block, pooling

    @property
    def num_features(self) -> int:
        return self._model.dim

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        # Integer pixels cross to the device (a quarter of the bytes), arithmetic happens there.
        crops = standardise(torch.from_numpy(pixels).to(self._device), self._scale)
        with torch.autocast(
            self._device.type, AUTOCAST.get(self._precision, torch.bfloat16), enabled=self._precision != "fp32"
        ):
            vectors = self._model.encode(crops, self._block, self._pooling)
        return vectors.float().cpu().numpy()


class IntensityStatistics:
    """Mean, standard deviation and percentiles of the raw pixels, per channel: what a map can get without any network.

    Values are in units of the scale (grey levels / scale); percentiles are those of PERCENTILES, of the kind "lower"
    (a value that occurs).  Features: channel by channel, [mean, std, percentiles...].
    """

    PER_CHANNEL = 2 + len(PERCENTILES)

    def __init__(self, scale: Sequence[float]) -> None:
        self._scale = np.asarray(scale, dtype=np.float64)

    @property
    def num_features(self) -> int:
        return len(self._scale) * self.PER_CHANNEL

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        flat = pixels.reshape(*pixels.shape[:2], -1)
        last = flat.shape[-1] - 1
        ranks = [last * percentile // 100 for percentile in PERCENTILES]
        quantiles = np.partition(flat, sorted(set(ranks)), axis=-1)[..., ranks]
        mean = flat.mean(axis=-1, dtype=np.float64)
        std = flat.std(axis=-1, dtype=np.float64)
        statistics = np.concatenate([mean[..., None], std[..., None], quantiles], axis=-1) / self._scale[:, None]
        return statistics.reshape(len(pixels), -1).astype(np.float32)


def match_channels(store_channels: Sequence[str], encoder_channels: Sequence[str], store: str) -> list[int]:
    """Index into the store's channels of each of the encoder's, by name.

    Channels the encoder does not know are left out.  Raises UsageError naming a missing one.
    """
    missing = [name for name in encoder_channels if name not in store_channels]
    if missing:
        raise UsageError(
            f"store {store}: has no channel {', '.join(missing)} (it has {', '.join(store_channels)}); "
            "the checkpoint was trained with it, so embed a store that has it or train on this one"
        )
    return [list(store_channels).index(name) for name in encoder_channels]
