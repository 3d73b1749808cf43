"""What a training step needs of a GPU's memory, and a checkpoint of a disk.  Numbers in, numbers out; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from phenomhpc.models.costs import ModelCost

FP32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one rank.

    weights, gradients and average (the weights' moving one) in fp32, of a sharded model this rank's parts; copies: of the weights
    in bf16, for a step's length; batch: a micro-batch's pixels; gathered: of a sharded model what is whole for a moment.
    """

    weights: float
    gradients: float
    moments: float
    average: float
    copies: float
    activations: float
    batch: float
    gathered: float = 0.0

    @property
    def total(self) -> float:
        held = self.weights + self.gradients + self.moments + self.average
        return held + self.copies + self.activations + self.batch + self.gathered


MOMENTS = {"lion": 1, "adamw": 2}


def step_memory(
    cost: ModelCost,
    *,
    optimiser: str,
    precision: str,
    micro_batch: int,
    crop_values: int,
    itemsize: int,
    ema: bool = False,
    recompute: bool = False,
    shards: int = 1,
    depth: int = 1,
) -> StepMemory:
    """crop_values: pixels of a crop times its channels; itemsize: of the store's pixels, bytes; recompute: block by block; shards:
    parts of the weights, each on another rank; depth: blocks of the encoder.

    FSDP gathers a block while the one before is computed: two blocks' weights are whole, and one block's gradients.  The copies in
    bf16 are kept for the backward pass, unless blocks are recomputed.
    """
    weights = FP32 * cost.parameters / shards
    block = cost.encoder_parameters / depth
    copied = block if shards > 1 and recompute else cost.parameters
    return StepMemory(
        weights=weights,
        gradients=weights,
        moments=MOMENTS[optimiser] * weights,
        average=weights if ema else 0.0,
        copies=BF16 * copied if precision == "bf16" else 0.0,
        activations=micro_batch * (cost.recomputed_bytes if recompute else cost.activation_bytes),
        batch=float(micro_batch * crop_values * itemsize),
        gathered=3 * FP32 * block if shards > 1 else 0.0,
    )


def checkpoint_bytes(cost: ModelCost, optimiser: str, *, ema: bool = False) -> int:
    """Weights, the optimiser's moments and the weights' moving average, fp32."""
    return FP32 * (1 + MOMENTS[optimiser] + ema) * cost.parameters
