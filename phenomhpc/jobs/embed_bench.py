"""phenomhpc bench embed: how fast each backend embeds a store's crops, beside the bare encoder, and its nearness to torch.

Ours is the very path that embeds (embed/unit.py): fields read ahead, cut into batches, encoded, summed per well.  Bare is the
encoder on a batch that is ready (of torch: standardised, on the device), and nothing else.  Both have as many batches, in turns,
so that they meet the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from phenomhpc.config import EmbedConfig
from phenomhpc.embed.encode import CropEncoder, ModelEncoder, require_precision
from phenomhpc.embed.feeding import Pixels, batches
from phenomhpc.embed.gate import Parity
from phenomhpc.embed.onnx import OnnxEncoder
from phenomhpc.embed.unit import CHECKPOINT, encode_wells
from phenomhpc.embed.wells import PlateWells
from phenomhpc.errors import UsageError
from phenomhpc.jobs.embed_encoders import checkpoint_encoder, choose_device, parity
from phenomhpc.jobs.embed_source import Source
from phenomhpc.progress import Progress, silent
from phenomhpc.store.litreader import open_pixels


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backend as the settings name it."""

    backend: str
    precision: str
    compile: bool = False

    @property
    def name(self) -> str:
        return f"{self.backend}{' compiled' * self.compile}"


ON_CPU = (
    Case(backend="torch", precision="fp32"),
    Case(backend="torch", precision="fp32", compile=True),
    Case(backend="onnx", precision="fp32"),
)
ON_GPU = (
    Case(backend="torch", precision="fp32"),
    Case(backend="torch", precision="bf16"),
    Case(backend="torch", precision="bf16", compile=True),
    Case(backend="torch", precision="fp16"),
    Case(backend="onnx", precision="fp16"),
)


@dataclass(frozen=True, kw_only=True)
class BackendRate:
    """crops_per_s: of our path; bare_crops_per_s: of the encoder alone; share: median over the passes of ours over the mean of
    the bare ones before and after it; device: what computes; min_cosine, recall_change: against fp32 torch (embed/gate.py), None
    where no wells belong together"""

    backend: str
    precision: str
    device: str
    crops_per_s: float
    bare_crops_per_s: float
    share: float
    min_cosine: float
    recall_change: float | None


@dataclass(frozen=True, kw_only=True)
class EmbedBench:
    """model: of the checkpoint; batch: crops of a forward pass; num_batches: of each pass; left_out: (backend, why) of those that
    cannot be run here."""

    model: str
    torch: str
    batch: int
    num_batches: int
    passes: int
    rates: tuple[BackendRate, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def bench_embed(
    config: EmbedConfig, cases: Sequence[Case], *, num_batches: int, passes: int, progress: Progress
) -> EmbedBench:
    """config: store, checkpoint, batch, device, gate_*.  Raises UsageError as embedding would where no case can be run here, and
    for a store with less than `num_batches` batches of crops in its first plate."""
    source = Source.open(config)
    device = choose_device(config)
    rates: list[BackendRate] = []
    left_out: list[tuple[str, str]] = []
    with open_pixels(source.snapshot, source.meta.illumination) as reader:
        pixels = source.pixels(config, reader)
        wells = _first_crops(source.wells(source.snapshot.plates[0]), num_batches * config.batch)
        with progress.stage("backends", len(cases), "backends") as stage:
            for case in cases:
                stage.note(f"{case.name} {case.precision}")
                own = config.model_copy(
                    update={"backend": case.backend, "precision": case.precision, "compile": case.compile}
                )
                try:
                    require_precision(case.precision, device)
                    encoder = checkpoint_encoder(own, source, device)
                except UsageError as error:
                    left_out.append((f"{case.name} {case.precision}", str(error)))
                else:
                    found = parity(own, source, pixels, device, encoder)
                    rates.append(
                        _rate(case, encoder, found, device, _rates(encoder, wells, pixels, config.batch, passes))
                    )
                stage.advance()
    if not rates:
        raise UsageError(f"bench embed: {'; '.join(f'{name}: {why}' for name, why in left_out)}")
    return EmbedBench(
        model=str(source.meta.model["name"]),
        torch=torch.__version__,
        batch=config.batch,
        num_batches=num_batches,
        passes=passes,
        rates=tuple(rates),
        left_out=tuple(left_out),
    )


def _rate(
    case: Case,
    encoder: CropEncoder,
    found: Sequence[Parity],
    device: torch.device,
    rates: tuple[float, float, float],
) -> BackendRate:
    ours, bare, share = rates
    return BackendRate(
        backend=case.name,
        precision=case.precision,
        device=_device_name(encoder, device),
        crops_per_s=ours,
        bare_crops_per_s=bare,
        share=share,
        min_cosine=min(each.min_cosine for each in found),
        recall_change=max((each.recall_change for each in found if each.recall_change is not None), default=None),
    )


def _first_crops(wells: PlateWells, number: int) -> PlateWells:
    """The wells up to so many crops."""
    ends = np.cumsum(wells.num_crops)
    if not len(ends) or ends[-1] < number:
        raise UsageError(
            f"bench embed: the first plate has {int(ends[-1]) if len(ends) else 0} crops, {number} are asked for"
        )
    last = int(np.searchsorted(ends, number)) + 1
    return replace(
        wells,
        metadata=wells.metadata.head(last),
        fields=wells.fields[:last],
        num_crops=wells.num_crops[:last],
        status=wells.status[:last],
    )


def _rates(
    encoder: CropEncoder, wells: PlateWells, pixels: Pixels, batch: int, passes: int
) -> tuple[float, float, float]:
    """Crops per second of our path and of the bare encoder, medians, and the median share."""
    ready = next(iter(batches(wells, pixels, batch))).pixels.copy()
    crops = int(wells.num_crops.sum())
    num_batches = -(-crops // batch)
    bare_batch = _bare(encoder, ready)

    def bare() -> float:
        began = time.perf_counter()
        for _ in range(num_batches):
            bare_batch()
        _wait()
        return time.perf_counter() - began

    def ours() -> float:
        began = time.perf_counter()
        with silent().stage("embed", None, "crops") as stage:
            encode_wells(wells, pixels, {CHECKPOINT: encoder}, batch, stage)
        return time.perf_counter() - began

    bare_batch(), ours()  # warm: compiled, mapped, allocated
    beside = [bare()]
    own = []
    for _ in range(passes):
        own.append(ours())
        beside.append(bare())
    # A padded last batch costs the encoder as much as a whole one: both are held by batches.
    shares = [(before + after) / (2 * each) for each, before, after in zip(own, beside, beside[1:], strict=False)]
    bare_crops = num_batches * batch
    return crops / statistics.median(own), bare_crops / statistics.median(beside), statistics.median(shares)


def _bare(encoder: CropEncoder, ready: np.ndarray) -> Callable[[], object]:
    if isinstance(encoder, ModelEncoder):
        crops = encoder.prepare(ready).clone()
        return lambda: encoder.vectors(crops)
    return lambda: encoder.encode(ready)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name(encoder: CropEncoder, device: torch.device) -> str:
    if isinstance(encoder, OnnxEncoder):
        return encoder.providers[0]
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
