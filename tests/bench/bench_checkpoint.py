"""How long a checkpoint keeps training waiting, in the thread and without it: `make bench-checkpoint`.

A model of about 100 million parameters with AdamW's moments on the CPU, saved in turns with checkpoint.background on and off.
Blocking is the time until training may go on; written, until the checkpoint is committed.  The first save in the background
also makes the memory it copies into.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from phenomhpc.config import OptimConfig
from phenomhpc.config.training import CheckpointConfig
from phenomhpc.models.checkpoint import SCHEMA, CheckpointMeta
from phenomhpc.models.mae import build_mae
from phenomhpc.progress import silent
from phenomhpc.runs import TaskContext, claim_start, create_run, open_attempt
from phenomhpc.train.checkpoints import Checkpoints
from phenomhpc.train.optim import make_optimiser
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.state import TrainState

CHANNELS = tuple("abcdef")
MODEL = {
    "name": "B/16", "crop_px": 256, "patch_px": 16, "dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0,
    "qk_norm": True, "layer_scale": 1e-4, "drop_path": 0.1, "mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8,
    "decoder_heads": 16, "fourier_weight": 0.01,
}  # fmt: skip


def _describe(state: TrainState, weights: str) -> CheckpointMeta:
    return CheckpointMeta(
        schema=SCHEMA, step=state.step, next_index=0, global_batch=1, world_size=1, seed=0, model=MODEL,
        optimiser="adamw", channels=CHANNELS, dtype="uint8", scale=(255.0,) * 6, illumination="keep", snapshot="",
        config="", skip_ledger=(), random_scheme="", torch=torch.__version__, weights=weights,
    )  # fmt: skip


def measure(folder: Path, passes: int) -> dict[str, float]:
    """Medians over the passes, seconds; and bytes of the state."""
    model = build_mae(len(CHANNELS), seed=0, **MODEL)
    state = TrainState(model=model, optimiser=make_optimiser(model, OptimConfig(name="adamw")))
    for tensor in state.tensors().values():  # moments that were never written to are no memory yet
        tensor.uniform_()
    paths = create_run(folder, "pretrain", "kind: pretrain\n", {}, name="run")
    attempt, _ = open_attempt(paths)
    token = claim_start(paths, attempt, 0, 0)
    ctx = TaskContext(paths=paths, attempt=attempt, task=0, token=token, units=(), progress=silent())
    alone = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
    kinds = {
        name: Checkpoints(
            ctx=ctx, ranks=alone, config=CheckpointConfig(keep=1, background=name == "beside"), describe=_describe
        )
        for name in ("beside", "waiting")
    }
    blocking: dict[str, list[float]] = {name: [] for name in kinds}
    written: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(passes + 1):
        for name, checkpoints in kinds.items():
            state.step += 1
            began = time.perf_counter()
            checkpoints.begin(state)
            blocking[name].append(time.perf_counter() - began)
            checkpoints.finish()
            written[name].append(time.perf_counter() - began)
    figures: dict[str, float] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.tensors().values()),
        "first_blocking_s": blocking["beside"][0],
    }
    for name in kinds:
        figures[f"{name}_blocking_s"] = statistics.median(blocking[name][1:])
        figures[f"{name}_written_s"] = statistics.median(written[name][1:])
    return figures


def main() -> None:
    """Print the figures, and what they come to for a larger state."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        figures = measure(Path(folder), arguments.passes)
    figures["copied_gb_s"] = figures["bytes"] / 1e9 / figures["beside_blocking_s"]
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
