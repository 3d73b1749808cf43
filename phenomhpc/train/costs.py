"""What a training step needs of a GPU's memory, and a checkpoint of a disk.  Numbers in, numbers out; without torch."""

from __future__ import annotations

from dataclasses import dataclass

from phenomhpc.models.costs import ModelCost

FP32, BF16 = 4, 2


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one rank, every rank holding the whole model.

    weights, gradients and average (the weights' moving one) in fp32; copies: of the weights in bf16, for a step's length; batch: a
    micro-batch's pixels.
    """

    weights: float
    gradients: float
    moments: float
    average: float
    copies: float
    activations: float
    batch: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.moments + self.average + self.copies + self.activations + self.batch


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
) -> StepMemory:
    """crop_values: pixels of a crop times its channels; itemsize: of the store's pixels, bytes; recompute: block by block."""
    weights = float(FP32 * cost.parameters)
    return StepMemory(
        weights=weights,
        gradients=weights,
        moments=MOMENTS[optimiser] * weights,
        average=weights if ema else 0.0,
        copies=BF16 * cost.parameters if precision == "bf16" else 0.0,
        activations=micro_batch * (cost.recomputed_bytes if recompute else cost.activation_bytes),
        batch=float(micro_batch * crop_values * itemsize),
    )


def checkpoint_bytes(cost: ModelCost, optimiser: str, *, ema: bool = False) -> int:
    """Weights, the optimiser's moments and the weights' moving average, fp32."""
    return FP32 * (1 + MOMENTS[optimiser] + ema) * cost.parameters
