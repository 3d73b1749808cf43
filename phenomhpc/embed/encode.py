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
from torch import Tensor

from phenomhpc.errors import UsageError
from phenomhpc.models.blocks import compile_blocks
from phenomhpc.models.mae import MaskedAutoencoder
from phenomhpc.models.standardise import Standardiser

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Compute capability of the first NVIDIA GPUs that have bf16 (A100); on older ones (V100 7.0, T4 7.5) torch imitates it, slowly.
BF16_SINCE = (8, 0)


def require_precision(precision: str, device: torch.device) -> None:
    """Raise UsageError where the GPU has no such numbers.  A CPU has all of them, if slowly."""
    if device.type != "cuda" or precision != "bf16":
        return
    has = torch.cuda.get_device_capability(device)
    if has < BF16_SINCE:
        raise UsageError(
            f"embed: precision=bf16: {torch.cuda.get_device_name(device)} has compute capability {has[0]}.{has[1]}, and bf16 comes "
            f"with {BF16_SINCE[0]}.{BF16_SINCE[1]}; use precision=fp16"
        )


class CropEncoder(Protocol):
    """Anything that turns a batch of crops into one vector each, or several side by side.

    on_host: computed by threads of its own, beside the encoders that are not
    """

    on_host: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each of them."""

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Vectors f32[B, sum(widths)] of crops u8|u16[B, C, h, w], channels in the encoder's order; crops do not interact."""


class ModelEncoder:
    """The encoder of a masked autoencoder, in inference: nothing masked, no stochastic depth.

    scale: grey levels that become 1, of each channel of the crops; a channel-agnostic model takes any of them, in any order.
    blocks: whose vectors are given side by side; default the last one's
    compiled: the model's blocks are compiled, at the first batch
    """

    on_host = False

    def __init__(
        self,
        model: MaskedAutoencoder,
        scale: Sequence[float],
        *,
        device: torch.device,
        precision: Precision = "fp32",
        blocks: Sequence[int] = (),
        pooling: str = "mean",
        compiled: bool = False,
    ) -> None:
        self._model = model.to(device).eval()
        if compiled:
            compile_blocks(self._model)
        self._standardise = Standardiser(torch.tensor(scale, dtype=torch.float32, device=device))
        self._blocks = tuple(blocks) or (model.num_blocks,)
        self._widths = tuple(
            model.num_features(block=block, pooling=pooling, num_channels=len(scale)) for block in self._blocks
        )
        self._device, self._precision, self._pooling = device, precision, pooling

    @property
    def widths(self) -> tuple[int, ...]:
        return self._widths

    @property
    def num_features(self) -> int:
        return sum(self._widths)

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        return self.vectors(self.prepare(pixels)).cpu().numpy()

    @torch.inference_mode()
    def prepare(self, pixels: NDArray[np.generic]) -> Tensor:
        """Standardised crops on the device; on a CPU valid until the next call."""
        # Integer pixels cross to the device (a quarter of the bytes), arithmetic happens there.
        return self._standardise(torch.from_numpy(pixels).to(self._device))

    @torch.inference_mode()
    def vectors(self, crops_BCHW: Tensor) -> Tensor:
        """f32[B, sum(widths)] of standardised crops on the device, where it stays."""
        with torch.autocast(
            self._device.type, AUTOCAST.get(self._precision, torch.bfloat16), enabled=self._precision != "fp32"
        ):
            return self._model.encode_blocks(crops_BCHW, self._blocks, self._pooling)
