"""Batches whose pixels NVIDIA DALI has flipped and standardised: on the GPU, or on a CPU by the same graph.

DALI has no reader of Zarr, so the loader feeds it (external_source) with the crops as our reader leaves them: integer
pixels, unflipped.  Which crop comes when, its flip and its masks are the sampler's; in DALI there is neither chance nor state.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.batches import Batch, StepBatch
from phenomhpc.crops.loader import Loader
from phenomhpc.crops.sampler import FLIP_X, FLIP_Y, TRANSPOSE
from phenomhpc.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, device

PIXELS, SWAPPED, ALONG_Y, ALONG_X = "pixels", "swapped", "along_y", "along_x"


@dataclass(frozen=True, kw_only=True)
class ReadyBatch(Batch):
    """A micro-batch that needs no further work: standardised f32 [B, C, h, w], flipped, on the device.

    `pixels` are those that it was made of, unflipped.
    """

    standardised: Tensor


def require_dali() -> None:
    """Raise UsageError where DALI is not installed.  It is looked for, not loaded (half a second)."""
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UsageError(
            "data.backend=dali: NVIDIA DALI is not installed; pip install 'phenomhpc[gpu]', or give data.backend=plain"
        )


class Flipper:
    """A DALI pipeline: integer pixels and flips in, standardised crops out.  Batches of one size.

    The same as `models.standardise` of the flipped pixels but for rounding.  With scale s, (x/s - mean/s) /
    sqrt(var/s^2 + e) is (x - mean) / sqrt(var + e s^2), which divides no pixel by the scale and rounds once less.
    Mean and deviation are subtracted and divided by arithmetic: fn.normalize takes them from the CPU only.
    """

    def __init__(self, scale_C: NDArray[np.float32], where: device, *, batch: int, threads: int = 1) -> None:
        """scale: grey levels that become 1.  threads: DALI's own on the CPU.  Raises UsageError without DALI."""
        require_dali()
        from nvidia.dali import pipeline_def

        self._where = where
        gpu = where.type == "cuda"
        # Nothing is run ahead: what is fed is what comes out, and the loader has read ahead already.
        self._pipeline: Any = pipeline_def(_graph, enable_conditionals=True)(
            scale_C,
            gpu,
            batch_size=batch,
            num_threads=threads,
            device_id=(where.index or 0) if gpu else None,
            prefetch_queue_depth=1,
        )

    def __call__(self, pixels: NDArray[np.generic], flip: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Flipped pixels, u8|u16, and standardised ones, f32; both [B, C, h, h], on the device, and the caller's to keep.

        `pixels` may be written to afterwards.
        """
        import torch
        from torch.utils.dlpack import from_dlpack

        # Bound to torch's stream, DALI takes a tensor's memory back only behind what torch still does with it.
        stream = torch.cuda.current_stream(self._where) if self._where.type == "cuda" else None
        feed = self._pipeline.feed_input
        feed(PIXELS, pixels)
        feed(SWAPPED, (flip & TRANSPOSE) != 0)
        feed(ALONG_Y, ((flip & FLIP_Y) != 0).astype(np.int32))
        feed(ALONG_X, ((flip & FLIP_X) != 0).astype(np.int32))
        flipped, standardised = self._pipeline.run(stream)
        return from_dlpack(flipped.as_tensor()), from_dlpack(standardised.as_tensor())

    def close(self) -> None:
        """Stop DALI's threads; tensors that were handed out stay."""
        self._pipeline = None


def _graph(scale_C: NDArray[np.float32], gpu: bool) -> Any:
    """What DALI does with a batch.  It rewrites this function: `if swapped` chooses for each crop."""
    from nvidia.dali import fn, math, types

    from phenomhpc.models.standardise import STANDARDISE_EPS

    # A GPU's copy may still be under way when the loader writes the next step into these pixels.
    pixels = fn.external_source(name=PIXELS, layout="CHW", no_copy=not gpu)
    swapped, along_y, along_x = (fn.external_source(name=name) for name in (SWAPPED, ALONG_Y, ALONG_X))
    if gpu:
        pixels = pixels.gpu()
    if swapped:
        turned = fn.transpose(pixels, perm=[0, 2, 1], transpose_layout=False)
    else:
        turned = pixels
    flipped = fn.flip(turned, vertical=along_y, horizontal=along_x)
    mean = fn.reductions.mean(flipped, axes=[1, 2], keep_dims=True)
    variance = fn.reductions.variance(flipped, mean, axes=[1, 2], keep_dims=True)
    epsilon_C = (STANDARDISE_EPS * scale_C.astype(np.float64) ** 2).astype(np.float32)
    return flipped, (flipped - mean) / math.sqrt(variance + types.Constant(epsilon_C[:, None, None]))


class DaliLoader:
    """A loader's steps, made ready by DALI: the same crops, weights, masks and keys in the same order.

    The loader must defer flips; it stays the caller's, to close.  Use as a context manager.
    """

    def __init__(self, loader: Loader, scale_C: NDArray[np.float32], where: device, *, threads: int = 1) -> None:
        """As Flipper."""
        require_dali()
        self._loader, self._scale_C, self._where, self._threads = loader, scale_C, where, threads
        self._flipper: Flipper | None = None

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        step = next(self._loader)
        began = time.perf_counter()
        ready: list[Batch] = [self._ready(batch) for batch in step.micro]
        return replace(step, micro=ready, data_wait_s=step.data_wait_s + time.perf_counter() - began)

    def _ready(self, batch: Batch) -> ReadyBatch:
        if self._flipper is None:
            self._flipper = Flipper(self._scale_C, self._where, batch=len(batch.pixels), threads=self._threads)
        _, standardised = self._flipper(batch.pixels, batch.flip)
        given = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return ReadyBatch(**given, standardised=standardised)

    def close(self) -> None:
        """Stop DALI's threads."""
        if self._flipper is not None:
            self._flipper.close()

    def __enter__(self) -> DaliLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
