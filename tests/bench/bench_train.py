"""What recipes reach in training: `make bench-train` (CPU), `make bench-gpu`.  `phenomhpc bench train` measures.

The GPU's part needs torch and numpy only, so it runs from a plain checkout; recipes are read line by line for that reason.  On a
CPU real crops come from a store of random fields that is made for it, and our loop is held against a bare step (aim: 3 % of
overhead at S/16).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phenomhpc.models.blocks import compile_blocks, recompute_blocks
from phenomhpc.models.mae import outline_mae
from phenomhpc.models.standardise import Standardiser
from phenomhpc.train.bench import COLUMNS, BareStep, Case, Measured, cells, matmul_tflops, measure, synthetic
from phenomhpc.train.optim import Lion

RECIPES = Path(__file__).resolve().parent.parent.parent / "jobs" / "model"
CHANNELS, SIDE, FIELDS = 6, 512, 12
# recipe -> crops of a step
ON_GPU = {
    "mae_vit_s16": 512,
    "mae_vit_b16": 512,
    "mae_vit_l16": 512,
    "mae_vit_b8": 256,
    "mae_vit_l8": 192,
    "mae_vit_g8": 64,
    "ca_mae_vit_b16": 64,
}
# Those whose activations would not fit beside weights, gradients and moments.
RECOMPUTED = ("mae_vit_g8",)
ON_CPU = {"mae_vit_tiny": 32, "mae_vit_s16": 8}
MAX_OVERHEAD, HELD_TO_IT = 0.03, "mae_vit_s16"


def read_recipe(name: str) -> dict[str, Any]:
    """A model's recipe: lines of NAME: VALUE, values as in JSON or words."""
    fields: dict[str, Any] = {}
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        key, colon, value = line.partition("#")[0].partition(":")
        if colon and value.strip():
            try:
                fields[key.strip()] = json.loads(value)
            except ValueError:
                fields[key.strip()] = value.strip()
    return fields


def plain(name: str, batch: int, device: torch.device, steps: int) -> Measured:
    """A recipe on random crops, with what a plain checkout has."""
    fields = read_recipe(name)
    torch._dynamo.reset()  # the compiled code of another recipe's blocks counts against a limit
    model = outline_mae(CHANNELS, **fields).to_empty(device=device)
    model.initialise(torch.Generator(device).manual_seed(0))
    model.train()
    if device.type == "cuda":
        compile_blocks(model)
    if name in RECOMPUTED:
        recompute_blocks(model)
    bare = BareStep(
        model=model,
        optimiser=Lion(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05),
        standardise=Standardiser(torch.full((CHANNELS,), 255.0, device=device)),
        precision="bf16",
        device=device,
    )
    batches = synthetic(CHANNELS, model.crop_px, model.num_patches, batch)
    again = ", recomputed" if name in RECOMPUTED else ""
    case = Case(name=f"{name}, {batch} crops{again}", forward=model, batches=batches)
    return measure([case], bare, fields=fields, num_channels=CHANNELS, batch=batch, steps=steps)[0]


@dataclass(frozen=True, kw_only=True)
class OnCpu:
    """What `phenomhpc bench train` tells of a recipe with a store."""

    name: str
    rows: tuple[tuple[str, ...], ...]
    overhead: float


def with_store(name: str, batch: int, store: Path, steps: int, *, compiled: bool) -> OnCpu:
    from phenomhpc.config import PretrainConfig, resolve
    from phenomhpc.jobs.train_bench import bench_train
    from phenomhpc.progress import silent

    settings = {"store": [str(store)], "device": "cpu", "optim.micro_batch": batch}
    config = resolve("pretrain", settings, [f"model={name}"], layers=[]).config
    assert isinstance(config, PretrainConfig)
    found = bench_train(config, steps=steps, compiled=compiled, progress=silent())
    assert found.overhead is not None
    rows = tuple((f"{name}, {batch}: {row[0]}", *row[1:]) for row in map(cells, found.cases))
    return OnCpu(name=name, rows=rows, overhead=found.overhead)


def make_store(folder: Path) -> Path:
    """A store of fields of noise."""
    from phenomhpc.progress import silent
    from phenomhpc.store.seal import seal
    from tests.unit.crop_store import add_plate, new_store, pixels_of

    store = new_store(folder / "store", channels=CHANNELS, chunk_px=128, fields_per_shard=FIELDS)
    add_plate(store, "EXP-1__1", pixels_of(0, FIELDS, CHANNELS, SIDE, SIDE))
    seal(store, silent())
    return folder / "store"


def show(rows: list[tuple[str, ...]]) -> None:
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Print a table; exit 1 where our loop costs more than it may."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", action="append", help="recipes; default: those of the device")
    parser.add_argument("--no-compile", action="store_true", help="on a CPU: not under torch.compile")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    name, precision = (torch.cuda.get_device_name(), "bf16") if on_gpu else ("CPU", "fp32")
    print(
        f"{name}, torch {torch.__version__}, {precision}: matrix product {matmul_tflops(device, precision):.3g} TFLOP/s"
    )
    sizes = ON_GPU if on_gpu else ON_CPU
    chosen = {recipe: sizes.get(recipe, 8) for recipe in arguments.model or sizes}
    if on_gpu:
        show([cells(plain(recipe, batch, device, arguments.steps)) for recipe, batch in chosen.items()])
        return
    with tempfile.TemporaryDirectory() as folder:
        store, compiled = make_store(Path(folder)), not arguments.no_compile
        found = [
            with_store(recipe, batch, store, arguments.steps, compiled=compiled) for recipe, batch in chosen.items()
        ]
    show([row for each in found for row in each.rows])
    for each in found:
        print(f"{each.name}: our loop's step against a bare one on ready crops {each.overhead:+.1%}")
    missed = [each for each in found if each.name == HELD_TO_IT and each.overhead > MAX_OVERHEAD]
    sys.exit(f"our loop costs more than {MAX_OVERHEAD:.0%}" if missed else 0)


if __name__ == "__main__":
    main()
