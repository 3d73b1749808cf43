"""How long a bare training step takes, part by part: forward, backward and optimiser on batches from anywhere.

Needs torch and numpy alone (and on a CPU numba), so that it runs from a plain checkout with a machine's own torch.  Steps of all
cases come in turns and medians count, so that what else the machine does meets all of them.  Parts are told apart by events on
the device's stream, without waiting for it between them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from phenomhpc.models.blocks import compile_blocks
from phenomhpc.models.costs import model_cost
from phenomhpc.models.mae import MaskedAutoencoder
from phenomhpc.models.standardise import Standardiser
from phenomhpc.train.gpus import peak_tflops

TERA = 1e12
PARTS = ("data", "standardise", "forward", "backward", "optimiser")
COMMUNICATION = "communication"
WARM_UP = 2
# Edge of the square matrices whose product sets the machine's own limit.
MATMUL_GPU, MATMUL_CPU, MATMUL_TIMES = 8192, 1024, 10


class Crops(NamedTuple):
    """One micro-batch in host memory: integer pixels [B, C, h, w], mask noise f32[B, L]."""

    pixels: Tensor
    noise: Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """batches: without end.  forward: the model, eager or compiled, which share their weights."""

    name: str
    forward: Callable[..., Any]
    batches: Iterator[Crops]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one case; seconds are medians.  parts: by PARTS, and COMMUNICATION where there are several ranks: what exchanging
    gradients adds to the backward pass, whatever of it is hidden.

    tflops: of one rank's device; mfu: of the published peak, None where that is not known; of_matmul: of what this machine
    reaches in a plain matrix product; memory_gb: the most that torch held on a GPU, 10^9 bytes.
    """

    name: str
    batch: int
    memory_gb: float | None
    step_s: float
    crops_per_s: float
    tflops: float
    mfu: float | None
    of_matmul: float
    parts: Mapping[str, float]


class _Clock:
    """Moments on the device's own time line."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def between(self) -> list[float]:
        """Seconds from each mark to the next."""
        if not self._on_gpu:
            return [later - earlier for earlier, later in zip(self._marks, self._marks[1:], strict=False)]
        torch.cuda.synchronize()
        return [
            earlier.elapsed_time(later) / 1000 for earlier, later in zip(self._marks, self._marks[1:], strict=False)
        ]


@dataclass(kw_only=True)
class BareStep:
    """Forward, backward, optimiser, and nothing of our loop."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    standardise: Standardiser
    precision: str
    device: torch.device

    def run(self, case: Case, clock: _Clock, *, exchange: bool = True) -> None:
        """One step of the case, marked before and after every part.  exchange: gradients with other ranks."""
        clock.mark()
        crops = next(case.batches)
        pixels = crops.pixels.to(self.device, non_blocking=True)
        noise = crops.noise.to(self.device, non_blocking=True)
        clock.mark()
        ready = self.standardise(pixels)
        clock.mark()
        self.run_ready(case.forward, ready, noise, clock, exchange=exchange)

    def run_ready(
        self,
        forward: Callable[..., Any],
        pixels: Tensor,
        noise: Tensor,
        clock: _Clock | None = None,
        *,
        exchange: bool = True,
    ) -> None:
        """The same on standardised crops f32[B, C, h, w] that lie on the device."""
        mark = clock.mark if clock else lambda: None
        batch = len(pixels)
        keys = torch.arange(batch, device=self.device)
        self.optimiser.zero_grad(set_to_none=True)
        quiet = isinstance(self.model, DistributedDataParallel) and not exchange
        with self.model.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = forward(pixels, noise, keys, torch.ones(batch, device=self.device)).loss
            mark()
            loss.backward()
            mark()
        self.optimiser.step()
        mark()


def compiled_twin(model: nn.Module, outline: nn.Module) -> nn.Module:
    """Another module of the same parameters whose blocks are compiled; outline: the architecture, on the meta device."""
    twin = outline.to_empty(device=next(model.parameters()).device)
    twin.load_state_dict(dict(model.named_parameters()), assign=True)
    if isinstance(twin, MaskedAutoencoder):
        twin.lay_tables()
    compile_blocks(twin)
    return twin.train()


def measure(
    cases: Sequence[Case],
    bare: BareStep,
    *,
    fields: Mapping[str, Any],
    num_channels: int,
    batch: int,
    world: int = 1,
    steps: int = 5,
    advance: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """`steps` steps of every case in turns, after WARM_UP that compile and fill caches.  fields: of the recipe; advance: called
    after every step of every case."""
    matmul = 0.0
    if bare.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bare.device)
    times: dict[str, list[list[float]]] = {case.name: [] for case in cases}
    alone: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(WARM_UP + steps):
        matmul = max(matmul, matmul_tflops(bare.device, bare.precision))
        for case in cases:
            found = _timed(case, bare, exchange=True)
            quiet = _timed(case, bare, exchange=False) if world > 1 else found
            if number >= WARM_UP:
                times[case.name].append(found)
                alone[case.name].append(quiet[PARTS.index("backward")])
            advance()
    flop = model_cost(fields, num_channels).training_flop
    name = torch.cuda.get_device_name(bare.device) if bare.device.type == "cuda" else "CPU"
    peak = peak_tflops(name, bare.precision)
    return [_measured(case, times[case.name], alone[case.name], flop, peak, matmul, batch, world) for case in cases]


def _timed(case: Case, bare: BareStep, *, exchange: bool) -> list[float]:
    clock = _Clock(bare.device)
    bare.run(case, clock, exchange=exchange)
    return clock.between()


def _measured(
    case: Case,
    times: list[list[float]],
    alone: list[float],
    flop: float,
    peak: float | None,
    matmul: float,
    batch: int,
    world: int,
) -> Measured:
    parts = {part: statistics.median(step[place] for step in times) for place, part in enumerate(PARTS)}
    step_s = statistics.median(sum(step) for step in times)
    if world > 1:
        own = statistics.median(alone)
        parts[COMMUNICATION] = max(0.0, parts["backward"] - own)
        parts["backward"] = min(parts["backward"], own)
    tflops = batch * flop / step_s / TERA
    return Measured(
        name=case.name,
        batch=batch,
        memory_gb=torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        step_s=step_s,
        crops_per_s=batch * world / step_s,
        tflops=tflops,
        mfu=None if peak is None else tflops / peak,
        of_matmul=tflops / matmul,
        parts=parts,
    )


def synthetic(num_channels: int, crop_px: int, num_patches: int, batch: int, *, sets: int = 4) -> Iterator[Crops]:
    """Random uint8 crops, `sets` batches over and over, in pinned memory where there is a GPU."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(sets):
        pixels = torch.randint(0, 256, (batch, num_channels, crop_px, crop_px), dtype=torch.uint8, generator=generator)
        noise = torch.rand(batch, num_patches, generator=generator)
        made.append(
            Crops(pixels.pin_memory(), noise.pin_memory()) if torch.cuda.is_available() else Crops(pixels, noise)
        )
    while True:
        yield from made


def matmul_tflops(device: torch.device, precision: str) -> float:
    """Of a square matrix product in that precision on this device: the fastest of a few."""
    size = MATMUL_GPU if device.type == "cuda" else MATMUL_CPU
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    for _ in range(3):
        one @ one
    clock = _Clock(device)
    for _ in range(MATMUL_TIMES + 1):
        clock.mark()
        one @ one
    return 2 * size**3 / min(clock.between()) / TERA


COLUMNS = ("case", "crops/s", "ms a step", "TFLOP/s", "MFU", "of matmul", "GB", *PARTS, COMMUNICATION)


def cells(found: Measured) -> tuple[str, ...]:
    """A row of a table with COLUMNS; parts as shares of the step."""
    parts = [
        f"{found.parts[part] / found.step_s:.1%}" if part in found.parts else "" for part in (*PARTS, COMMUNICATION)
    ]
    mfu = "" if found.mfu is None else f"{found.mfu:.1%}"
    figures = (f"{found.crops_per_s:,.4g}", f"{found.step_s * 1000:,.4g}", f"{found.tflops:.3g}", mfu)
    memory = "" if found.memory_gb is None else f"{found.memory_gb:.1f}"
    return (found.name, *figures, f"{found.of_matmul:.1%}", memory, *parts)
