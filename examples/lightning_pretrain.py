"""Somebody's PyTorch Lightning script that trains our model on our loader, for `phenomhpc submit run`.

    phenomhpc submit run --nodes 2 --time 2:00:00 -- python lightning_pretrain.py --store /data/screen.store --steps 1000

Nothing in it knows Slurm.  To be continued after a time limit, a preemption or a power cut it keeps its checkpoints in the folder
PHENOMHPC_CHECKPOINTS and begins with the newest of them.  Asked to stop, it saves after the step that it is in and leaves with 75.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from phenomhpc.crops import Loader, Sampler
from phenomhpc.models.mae import build_mae
from phenomhpc.models.standardise import standardise
from phenomhpc.store import ShardReader, Snapshot, open_store

TINY = {
    "crop_px": 64, "patch_px": 8, "dim": 96, "depth": 4, "heads": 4, "mlp_ratio": 4.0, "qk_norm": True, "layer_scale": 0.1,
    "drop_path": 0.0, "mask_ratio": 0.75, "fourier_weight": 0.01, "decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 4,
}  # fmt: skip
CHECKPOINTS = Path(os.environ.get("PHENOMHPC_CHECKPOINTS", "checkpoints"))
OUTPUT = Path(os.environ.get("PHENOMHPC_OUTPUT", "."))
CONTINUE_ME = 75


class Crops(IterableDataset[dict[str, torch.Tensor]]):
    """This rank's crops from a step on, in the order that follows from the snapshot, the seed and the step alone."""

    def __init__(self, snapshot: Snapshot, num_patches: int, batch: int, trainer: lightning.Trainer) -> None:
        self.snapshot, self.num_patches, self.batch, self.trainer = snapshot, num_patches, batch, trainer

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        sampler = Sampler(self.snapshot.table, seed=0, crop_px=TINY["crop_px"], crops_per_visit=4, flips=True)
        with (
            ShardReader(self.snapshot.store, self.snapshot) as reader,
            Loader(
                reader, sampler, num_channels=len(self.snapshot.channels), dtype=self.snapshot.dtype,
                num_patches=self.num_patches, global_batch=self.batch * self.trainer.world_size, micro_batch=self.batch,
                rank=self.trainer.global_rank, world=self.trainer.world_size, start_step=self.trainer.global_step,
            ) as loader,
        ):  # fmt: skip
            for step in loader:
                (micro,) = step.micro
                arrays = {
                    "pixels": micro.pixels,
                    "noise": micro.mask_noise,
                    "key": micro.drop_key,
                    "weight": micro.weight,
                }
                yield {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


class Pretraining(lightning.LightningModule):
    """The masked autoencoder, its loss per step written to OUTPUT/losses-RANK.jsonl."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.mae = build_mae(len(snapshot.channels), seed=0, **TINY)
        self.register_buffer("scale", torch.from_numpy(snapshot.scale.copy()))

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        output = self.mae(standardise(batch["pixels"], self.scale), batch["noise"], batch["key"], batch["weight"])
        with (OUTPUT / f"losses-{self.global_rank}.jsonl").open("a") as file:
            restarts = int(os.environ.get("PHENOMHPC_RESTARTS", 0))
            print(json.dumps({"step": self.global_step, "loss": output.loss.item(), "start": restarts}), file=file)
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class LeaveWhenAsked(Callback):
    """Takes SIGTERM from Lightning: after a step all ranks agree, save, and leave.

    Lightning's own handler (2.6) tells the other ranks by a broadcast from within the signal handler, in the midst of whatever they
    exchange just then: the gradients of that step may be anything, and the next checkpoint with them.
    """

    asked = False

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object, **__: object) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False) and trainer.global_step < trainer.max_steps:
            trainer.save_checkpoint(CHECKPOINTS / f"{trainer.global_step:08d}.ckpt")
            trainer.should_stop = True


def main() -> None:
    """Train to the last step, from the newest checkpoint where there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="crops per rank and step")
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    asked = parser.parse_args()

    snapshot = Snapshot.open(open_store(asked.store))
    model = Pretraining(snapshot)
    newest = max(CHECKPOINTS.glob("*.ckpt"), default=None)  # by name: the step, with zeros in front
    keep = ModelCheckpoint(
        CHECKPOINTS,
        "{step:08d}",
        every_n_train_steps=asked.every,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    trainer = lightning.Trainer(
        accelerator="auto", devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "auto",
        max_steps=asked.steps, callbacks=[LeaveWhenAsked(), keep],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    crops = Crops(snapshot, model.mae.num_patches, asked.batch, trainer)
    trainer.fit(model, DataLoader(crops, batch_size=None), ckpt_path=newest, weights_only=False)
    if trainer.global_step < asked.steps:
        sys.exit(CONTINUE_ME)
    if trainer.is_global_zero:
        torch.save(model.mae.state_dict(), OUTPUT / "weights.pt")
        print(f"trained {trainer.global_step} steps")


if __name__ == "__main__":
    main()
