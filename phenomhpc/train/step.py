"""One optimisation step: micro-batches of fixed shape, gradients of the mean over the global batch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from phenomhpc.models.standardise import Standardiser
from phenomhpc.train.feed import DeviceBatch
from phenomhpc.train.optim import set_lr, step_unless
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import own_part
from phenomhpc.train.state import Replica, TrainState, zero_gradients

NUM_LOSSES = 3


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step needs beside state and data."""

    global_batch: int
    standardise: Standardiser
    precision: str
    clip_grad_norm: float | None


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """A step's figures, left on the device so that nothing waits for them: f64 [loss, mse, fourier] over this rank's
    crops, divided by the global batch (their sum over the ranks is the step's loss), and the global gradient's norm."""

    losses: Tensor
    grad_norm: Tensor


def run_step(
    state: TrainState,
    replica: Replica,
    micro: Iterable[DeviceBatch],
    num_micro: int,
    lr: float,
    settings: StepSettings,
    ranks: Ranks,
) -> StepSums:
    """Accumulate over the `num_micro` micro-batches, exchange gradients with the last one, update.  The state is one step further.

    Where the gradient is not finite, weights, their average and optimiser stay as they are: on all ranks, since it is the
    exchanged one.

    Each micro-batch's loss is a mean over its weights; times their sum, over the global batch, it is its share of the
    global mean.  DDP divides by the world, so the share is multiplied by it first.
    """
    device = ranks.device
    losses = torch.zeros(NUM_LOSSES, dtype=torch.float64, device=device)
    zero_gradients(state.model)
    for number, batch in enumerate(micro, 1):
        with nullcontext() if number == num_micro else replica.local():
            losses += _accumulate(replica, batch, settings, ranks)

    gradients = [own_part(p.grad) for p in state.model.parameters() if p.grad is not None]
    grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if replica.shards > 1:  # in the order of the ranks, so that all of them have the same bits
        grad_norm = torch.linalg.vector_norm(torch.cat(ranks.each(grad_norm[None])[: replica.shards]))
    if settings.clip_grad_norm is not None:
        torch._foreach_mul_(gradients, (settings.clip_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
    set_lr(state.optimiser, lr)
    bad = ~torch.isfinite(grad_norm)
    step_unless(state.optimiser, bad)
    if state.ema is not None:
        state.ema.update(bad)
    state.step += 1
    return StepSums(losses=losses, grad_norm=grad_norm)


def _accumulate(replica: Replica, batch: DeviceBatch, settings: StepSettings, ranks: Ranks) -> Tensor:
    """Forward and backward of one micro-batch; its share of the three losses, f64[3]."""
    pixels = batch.pixels if batch.is_ready else settings.standardise(batch.pixels)
    # Sharded: bf16 copies of the weights must not outlive their block.
    cached = replica.shards == 1
    with torch.autocast(ranks.device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=cached):
        output = replica.forward(pixels, batch.mask_noise, batch.drop_key, batch.weight)
    share = batch.weight.sum() / settings.global_batch
    # A loss that is not finite makes the gradient so, which the other ranks see.
    certain = torch.where(torch.isfinite(output.loss.detach()), 1.0, torch.nan)
    (output.loss * (share * ranks.world * certain)).backward()  # type: ignore[no-untyped-call]
    means = torch.stack([output.loss, output.loss_mse, output.loss_fourier]).detach()
    return means.double() * share
