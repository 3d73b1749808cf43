"""What training changes, and nothing else: weights, optimiser, number of steps done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from phenomhpc.crops.ledger import Ledger
from phenomhpc.models.checkpoint import average_key, model_key
from phenomhpc.models.mae import MaeOutput, MaskedAutoencoder
from phenomhpc.train.ema import Average
from phenomhpc.train.optim import state_tensors
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import exchange_between_nodes, is_sharded


@dataclass(kw_only=True)
class TrainState:
    """One rank's copy of the training state.  `step` counts the steps done; it is the number of the next one.

    skip_ledger: the samples that are left out, [first, last) each.
    """

    model: MaskedAutoencoder
    optimiser: torch.optim.Optimizer
    step: int = 0
    skip_ledger: Ledger = ()
    init_from: dict[str, str] | None = None
    """The checkpoint whose weights the run began with, as CheckpointMeta says it."""
    ema: Average | None = None
    """The moving average of the weights, where there is one."""

    def weights(self) -> dict[str, Tensor]:
        """The parameters under the names of the model, sharing their memory."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds, sharing the memory of the state."""
        state = {model_key(name): tensor for name, tensor in self.weights().items()}
        if self.ema is not None:
            state |= {average_key(name): tensor for name, tensor in self.ema.weights.items()}
        optimiser = state_tensors(self.model, self.optimiser)
        return state | {f"optimiser.{name}": tensor for name, tensor in optimiser.items()}


Forward = Callable[[Tensor, Tensor, Tensor, Tensor], MaeOutput]


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The model as the loop calls it: plain for one rank, for several in DistributedDataParallel, or sharded."""

    forward: Forward
    ddp: DistributedDataParallel | None
    sharded: nn.Module | None = None
    shards: int = 1
    """Parts of every gradient; the ranks from the first on hold them in this order."""

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        """Inside, gradients are accumulated and not exchanged; sharded ones not between nodes, and stay cut."""
        if self.sharded is None:
            with contextlib.nullcontext() if self.ddp is None else self.ddp.no_sync():
                yield
            return
        exchange_between_nodes(self.sharded, False)
        try:
            yield
        finally:
            exchange_between_nodes(self.sharded, True)


def replicate(
    model: MaskedAutoencoder, ranks: Ranks, micro_batch: int, *, bf16_gradients: bool = False, shards: int = 1
) -> Replica:
    """The replica of this rank, warmed up, with gradients zeroed.  bf16_gradients: exchanged in half as many bytes.

    shards: into how many parts `shard` has cut the model, which then exchanges gradients by itself.

    DDP rearranges its buckets after the first backward pass, by the order in which gradients came; the order in which an
    all-reduce adds depends on the arrangement.  A pass over weightless crops before the first step brings that behind us:
    step s of a resumed run then adds in the same order as step s of an undisturbed one.
    """
    if ranks.world == 1:
        return Replica(forward=model, ddp=None)
    if shards > 1:
        return Replica(forward=model, ddp=None, sharded=model, shards=shards)
    on_gpu = ranks.device.type == "cuda"
    ddp = DistributedDataParallel(
        model,
        device_ids=[ranks.device] if on_gpu else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
    if bf16_gradients:
        ddp.register_comm_hook(None, bf16_compress_hook)
    side = model.crop_px
    for _ in range(2):  # the rearrangement happens at the beginning of the second pass
        output = ddp(
            torch.zeros(micro_batch, model.num_channels, side, side, device=ranks.device),
            torch.zeros(micro_batch, model.num_patches, device=ranks.device),
            torch.zeros(micro_batch, dtype=torch.int64, device=ranks.device),
            torch.zeros(micro_batch, device=ranks.device),
        )
        output.loss.backward()
    ddp.zero_grad(set_to_none=False)
    return Replica(forward=ddp, ddp=ddp)


def zero_gradients(model: nn.Module) -> None:
    """Zero the gradients in place: DDP's buckets are views of them, and their memory is used again.

    Sharded ones are dropped: what FSDP's exchange gives becomes the gradient, where there is none yet.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if any(is_sharded(gradient) for gradient in gradients):
        model.zero_grad(set_to_none=True)
    elif gradients:
        torch._foreach_zero_(gradients)
