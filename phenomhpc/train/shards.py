"""Sharding (FSDP2): each rank holds a part of every parameter, gradient and moment, and gathers a block's weights to compute it.

Parameters are DTensors then, cut along their first dimension; what is elementwise works on the own part, which shares their memory.
Where nothing is sharded every function here takes plain tensors as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from phenomhpc.errors import UsageError
from phenomhpc.models.blocks import blocks_of
from phenomhpc.train.ranks import Ranks

Sharding = Literal["none", "full", "hybrid"]


def num_shards(sharding: Sharding, ranks: Ranks) -> int:
    """Into how many parts the state is cut: 1 for none, the world for full, the ranks of a node for hybrid.

    Raises UsageError for hybrid where nodes have different numbers of ranks.
    """
    if sharding == "none":
        return 1
    if sharding == "full":
        return ranks.world
    if ranks.world % ranks.local_world:
        raise UsageError(
            f"sharding=hybrid: {ranks.world} ranks are no multiple of the {ranks.local_world} of this node; "
            "give every node as many, or sharding=full"
        )
    return ranks.local_world


def shard(model: nn.Module, ranks: Ranks, sharding: Sharding, *, bf16_gradients: bool = False) -> None:
    """Cut the parameters into parts, block by block, on the ranks' device; afterwards make optimiser and average of them.

    Compiled and recomputed blocks are to be so before.  The model may come on the CPU: a GPU then holds one whole block at most.
    bf16_gradients: exchanged in half as many bytes.  One part: nothing is done.  Called by all ranks together.

    An architecture without transformer blocks is gathered as a whole, and only at rest in parts.
    """
    shards = num_shards(sharding, ranks)
    if shards == 1:
        return
    mesh = _mesh(ranks, shards)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if bf16_gradients else None, cast_forward_inputs=False)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Cut again after a forward pass, too: a validation must leave nothing whole behind, which may be the average's weights.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    register_fsdp_forward_method(model, "encode")
    # The prediction is one; nobody writes into it.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(.*\) returned a view tensor", UserWarning)


def _mesh(ranks: Ranks, shards: int) -> DeviceMesh:
    kind = ranks.device.type
    if shards == ranks.world:
        return init_device_mesh(kind, (shards,), mesh_dim_names=("shard",))
    # The ranks of a node follow each other.
    return init_device_mesh(kind, (ranks.world // shards, shards), mesh_dim_names=("replicate", "shard"))


def exchange_between_nodes(model: nn.Module, exchange: bool) -> None:
    """Whether backward passes from now on add the parts of gradients of different nodes; within a node they always do."""
    assert isinstance(model, FSDPModule)
    model.set_requires_all_reduce(exchange)


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; it may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of it.  For a sharded one called by all ranks together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor, which all ranks have, into one that may be sharded; nothing is sent."""
    if isinstance(target, DTensor):
        source = distribute_tensor(
            source.detach().to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    own_part(target).copy_(own_part(source))


class WholeOnHost(Mapping[str, Tensor]):
    """Tensors as whole ones on the CPU, one at a time: all ranks together ask for the same, in the same order."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return whole(self._tensors[name]).cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
