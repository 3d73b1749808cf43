"""Our training loop on a GPU, crops from a Zarr store: `make bench-gpu`.

The very loop that trains, on a store of synthetic fields that is made for it.  crops/s are a median over the steps behind those
that warm up, as the run's own metrics have them, and waiting is a share of all their time.  Aims at L/8 on an H200: 45 % of the
machine's own matrix product, 500 crops/s, data wait under 2 %.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch

from phenomhpc.config import PretrainConfig, dump, resolve
from phenomhpc.models.costs import model_cost
from phenomhpc.progress import silent
from phenomhpc.runs import TaskContext, claim_start, create_run, open_attempt
from phenomhpc.train.bench import TERA, matmul_tflops
from phenomhpc.train.loop import train
from phenomhpc.train.metrics import read_metrics
from tests.bench.bench_feed import corpus_of
from tests.bench.bench_loader import CHANNELS

# recipe -> crops of a micro-batch, of a step
SIZES = {"mae_vit_l8": (192, 384), "mae_vit_s16": (512, 1024)}
WARM_STEPS = 6


def config_of(name: str, store: Path, runs: Path, *, workers: int, steps: int, changes: list[str]) -> PretrainConfig:
    micro, batch = SIZES.get(name, (64, 128))
    settings = {
        "store": [str(store)],
        "runs": str(runs),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "precision": "bf16" if torch.cuda.is_available() else "fp32",
        "optim.micro_batch": micro,
        "optim.global_batch": batch,
        "optim.steps": steps + WARM_STEPS,
        "checkpoint.every_steps": steps + WARM_STEPS,
        "data.workers": workers,
        "log_every_steps": 5,
    }
    config = resolve("pretrain", settings, [f"model={name}", *changes], layers=[]).config
    assert isinstance(config, PretrainConfig)
    return config


def measured(config: PretrainConfig, matmul: float) -> tuple[str, ...]:
    """A row: crops/s, ms a step, TFLOP/s, of the matrix product, data wait, GB."""
    paths = create_run(Path(config.runs), config.kind, dump(config), {})
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0)
    train(config, TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent()))
    rows = [row for row in read_metrics(paths.metrics).to_pylist() if row["step"] >= WARM_STEPS]
    rate = statistics.median(row["crops_per_s"] for row in rows)
    wait = sum(row["data_wait"] for row in rows) / sum(config.optim.global_batch / row["crops_per_s"] for row in rows)
    flop = model_cost(config.model.model_dump(), CHANNELS).training_flop
    held = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    tflops = rate * flop / TERA
    return (
        f"{config.model.name}, {config.optim.micro_batch} of {config.optim.global_batch}, {config.data.workers} workers",
        f"{rate:,.4g}",
        f"{1000 * config.optim.global_batch / rate:,.4g}",
        f"{tflops:.3g}",
        f"{tflops / matmul:.1%}",
        f"{wait:.1%}",
        f"{held:.1f}",
    )


def main() -> None:
    """Print a row for each recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="append", help=f"recipes; default: {', '.join(SIZES)}")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--gb", type=float, default=1.0, help="pixels of the store")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 3))
    parser.add_argument("changes", nargs="*", help="settings, KEY=VALUE")
    given = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    matmul = matmul_tflops(device, "bf16" if on_gpu else "fp32")
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}: matrix product {matmul:.4g} TFLOP/s")
    print("| loop | crops/s | ms a step | TFLOP/s | of matmul | data wait | GB |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        corpus_of(store, given.gb)
        for model in given.model or SIZES:
            config = config_of(
                model, store, Path(folder), workers=given.workers, steps=given.steps, changes=given.changes
            )
            print(f"| {' | '.join(measured(config, matmul))} |", flush=True)


if __name__ == "__main__":
    main()
