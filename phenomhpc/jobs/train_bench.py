"""phenomhpc bench train: what a recipe reaches on this machine, on random crops and on a store's, and what our loop adds.

Our loop is the very one that trains (`train/loop.py`), in a run directory that is thrown away; after each of its steps comes a
bare step on crops of the same size, so that both meet the same machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phenomhpc.config import PretrainConfig, dump
from phenomhpc.errors import UsageError
from phenomhpc.models.mae import build_mae, outline_mae
from phenomhpc.models.standardise import Standardiser
from phenomhpc.progress import Progress, Stage
from phenomhpc.runs import TaskContext, claim_start, create_run, open_attempt
from phenomhpc.train.bench import BareStep, Case, Crops, Measured, compiled_twin, matmul_tflops, measure, synthetic
from phenomhpc.train.data import CropSource
from phenomhpc.train.loop import train
from phenomhpc.train.optim import make_optimiser
from phenomhpc.train.ranks import Ranks, joined

GREY_LEVELS = 255.0
# Steps of our loop that warm up, and the last, behind which a checkpoint is written.
LEFT_OUT = 2


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """device: its name; loop_s, bare_s: medians of our loop's step and of the bare one on ready crops beside it; overhead: the
    median over our steps of what each takes more than the mean of the bare ones before and after it, as a share; None where
    that was not measured (no store, or several ranks)."""

    device: str
    torch: str
    model: str
    precision: str
    world: int
    matmul_tflops: float
    cases: tuple[Measured, ...]
    loop_s: float | None = None
    bare_s: float | None = None
    overhead: float | None = None


def bench_train(
    config: PretrainConfig, *, channels: int = 6, steps: int = 5, compiled: bool = False, progress: Progress
) -> TrainBench:
    """config: the recipe, micro_batch, precision and device that are meant; its stores, where it has any, give the real
    crops and the number of channels.  compiled: also with compiled blocks, which real crops and our loop then
    have.  Raises UsageError as a training would."""
    with joined(config.device) as ranks, ExitStack() as stack:
        batch = config.optim.micro_batch
        config = config.model_copy(
            update={"optim": config.optim.model_copy(update={"global_batch": batch * ranks.world})}
        )
        source = CropSource.open(config) if config.store else None
        num_channels = source.num_channels if source else channels
        model = build_mae(num_channels, seed=config.seed, **config.model.model_dump()).to(ranks.device).train()
        scale_C = source.scale(ranks.device) if source else torch.full((num_channels,), GREY_LEVELS).to(ranks.device)
        forward: nn.Module = model if ranks.world == 1 else DistributedDataParallel(model, gradient_as_bucket_view=True)
        bare = BareStep(
            model=forward,
            optimiser=make_optimiser(model, config.optim),
            standardise=Standardiser(scale_C),
            precision=config.precision,
            device=ranks.device,
        )
        random = synthetic(num_channels, model.crop_px, model.num_patches, batch)
        cases = [Case(name="random crops", forward=forward, batches=random)]
        fast: nn.Module = model
        if compiled:
            fast = compiled_twin(model, outline_mae(num_channels, seed=config.seed, **config.model.model_dump()))
            forward = fast if ranks.world == 1 else DistributedDataParallel(fast, gradient_as_bucket_view=True)
            cases.append(Case(name="random crops, compiled", forward=forward, batches=random))
        if source:
            batches = stack.enter_context(_Real(source, ranks, model.num_patches))
            cases.append(Case(name="crops of the store", forward=forward, batches=batches))
        with progress.stage("steps", None, "steps") as stage:
            found = measure(
                cases,
                bare,
                fields=config.model.model_dump(),
                num_channels=num_channels,
                batch=batch,
                world=ranks.world,
                steps=steps,
                advance=stage.advance,
            )
        config = config.model_copy(update={"compile": compiled})
        beside = _overhead(config, fast, bare, random, steps) if source and ranks.world == 1 else (None, None, None)
        on_gpu = ranks.device.type == "cuda"
        return TrainBench(
            device=torch.cuda.get_device_name(ranks.device) if on_gpu else "CPU",
            torch=torch.__version__,
            model=config.model.name,
            precision=config.precision,
            world=ranks.world,
            matmul_tflops=matmul_tflops(ranks.device, config.precision),
            cases=tuple(found),
            loop_s=beside[0],
            bare_s=beside[1],
            overhead=beside[2],
        )


class _Real:
    """Crops of a store as the loader gives them, without end; the loader ends with the context."""

    def __init__(self, source: CropSource, ranks: Ranks, num_patches: int) -> None:
        # Each step has ended when the next one's crops are asked for.
        self._opened = source.loader(
            ranks, 0, num_patches, hold_steps=1, tell=lambda replaced: None, say=lambda text: None
        )

    def __enter__(self) -> Iterator[Crops]:
        loader = self._opened.__enter__()
        return (
            Crops(torch.from_numpy(batch.micro[0].pixels), torch.from_numpy(batch.micro[0].mask_noise))
            for batch in loader
        )

    def __exit__(self, *failure: Any) -> None:
        self._opened.__exit__(*failure)


class _Between:
    """Stands where a run's progress is drawn: called after each step of our loop, does a bare one, and takes both times."""

    def __init__(self, bare: BareStep, model: nn.Module, crops: Crops) -> None:
        self._bare, self._model = bare, model
        self._pixels = bare.standardise(crops.pixels.to(bare.device)).clone()
        self._noise = crops.noise.to(bare.device)
        self.loop: list[float] = []
        self.bare: list[float] = []
        self._since = 0.0

    def stage(self, name: str, total: int | None, unit: str) -> Stage:
        return self

    def advance(self, n: int = 1, **figures: float) -> None:
        self._wait()
        ended = time.perf_counter()
        if self._since:
            self.loop.append(ended - self._since)
        self._bare.run_ready(self._model, self._pixels, self._noise)
        self._wait()
        self._since = time.perf_counter()
        self.bare.append(self._since - ended)

    def _wait(self) -> None:
        if self._bare.device.type == "cuda":
            torch.cuda.synchronize()

    def say(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *failure: Any) -> None:
        pass


def _overhead(
    config: PretrainConfig, model: nn.Module, bare: BareStep, random: Iterator[Crops], steps: int
) -> tuple[float, float, float]:
    """Medians of our loop's step and of a bare step between two of them, seconds; and of what the first takes more."""
    if config.data.backend != "plain":
        raise UsageError(f"data.backend={config.data.backend}: bench train measures the plain one")
    total = LEFT_OUT + steps + 1
    changes: dict[str, Any] = {
        "optim": config.optim.model_copy(update={"steps": total}),
        "checkpoint": config.checkpoint.model_copy(update={"every_steps": total}),
    }
    between = _Between(bare, model, next(random))
    with tempfile.TemporaryDirectory(prefix="phenomhpc-bench-") as folder:
        own = config.model_copy(update={"runs": folder, **changes})
        paths = create_run(Path(folder), own.kind, dump(own), {})
        attempt, _ = open_attempt(paths)
        token = claim_start(paths, attempt, 0, 0)
        train(own, TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=between))
    # loop[i] lies between bare[i] and bare[i + 1].  The last has a checkpoint in it.
    loop, beside = between.loop[LEFT_OUT - 1 : -1], between.bare[LEFT_OUT - 1 : -1]
    ratios = [2 * step / (before + after) for step, before, after in zip(loop, beside, beside[1:], strict=False)]
    return statistics.median(loop), statistics.median(beside), statistics.median(ratios) - 1
