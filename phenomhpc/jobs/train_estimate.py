"""pretrain --estimate: what a training run will cost in GPUs, before anything runs.  Arithmetic alone, without torch.

Communication, compilation, evaluations and checkpoints are in the MFU that is assumed, or nowhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from phenomhpc.config.training import PretrainConfig
from phenomhpc.crops.corpus import Corpus
from phenomhpc.errors import UsageError
from phenomhpc.jobs.base import Table
from phenomhpc.models.costs import ModelCost, model_cost
from phenomhpc.progress import duration
from phenomhpc.train.costs import StepMemory, checkpoint_bytes, step_memory
from phenomhpc.train.gpus import GIGABYTE, Gpu, gpu_named

DEFAULT_GPU = "h100"
# Of a GPU's published peak, with bf16 and compiled blocks: what L/8 reached on one H200 (docs/benchmarks.md); small ones less.
DEFAULT_MFU = 0.35
# Of a GPU's memory what torch, its libraries and fragments take.
USABLE_MEMORY = 0.92
TERA, PETA = 1e12, 1e15


@dataclass(frozen=True, kw_only=True)
class TrainEstimate:
    """gpu, mfu: as assumed (is_given: by a person, the MFU or the rate from which it follows); crops_per_s: of one GPU.

    computed_crops: crops a GPU computes in a step, padding of the last micro-batch among them; utilisation: share of them that
    are no padding.  epochs: how often each field is visited.  memory: of one GPU, bytes; kept_bytes: of all checkpoints kept.
    """

    gpu: Gpu
    num_gpus: int
    num_nodes: int
    mfu: float
    is_given: bool
    precision: str
    cost: ModelCost
    crops_per_s: float
    steps: int
    crops: int
    epochs: float
    computed_crops: int
    utilisation: float
    run_flop: float
    step_s: float
    wall_s: float
    gpu_hours: float
    memory: StepMemory
    checkpoint_bytes: int
    kept_bytes: int
    recomputes: bool

    @property
    def memory_share(self) -> float:
        """Of the GPU's memory that can be used."""
        return self.memory.total / (self.gpu.memory_gb * GIGABYTE * USABLE_MEMORY)

    def to_json(self) -> dict[str, Any]:
        cost = asdict(self.cost) | {
            "parameters": self.cost.parameters,
            "training_flop": self.cost.training_flop,
        }
        memory = asdict(self.memory) | {"total": self.memory.total, "share": self.memory_share}
        return asdict(self) | {"cost": cost, "memory": memory}


def estimate_train(
    config: PretrainConfig,
    *,
    num_channels: int,
    num_fields: int,
    itemsize: int,
    gpu: str | None = None,
    mfu: float | None = None,
    crops_per_s: float | None = None,
) -> TrainEstimate:
    """num_fields: dealt in an epoch; itemsize: of the pixels, bytes; gpu: a name of train/gpus.py; crops_per_s: of one GPU, from
    which the MFU follows.  Raises UsageError for a GPU that is not known or cannot compute in the precision."""
    card = gpu_named(gpu or DEFAULT_GPU)
    peak = card.peak_tflops(config.precision)
    if peak is None:
        raise UsageError(
            f"--gpu {card.name}: does not compute in {config.precision}; give precision=fp32, or another GPU"
        )
    optim, model = config.optim, config.model.model_dump()
    cost = model_cost(model, num_channels, precision="bf16" if config.precision == "bf16" else "fp32")
    if crops_per_s is not None:
        rate, share = crops_per_s, crops_per_s * cost.training_flop / (peak * TERA)
    else:
        share = DEFAULT_MFU if mfu is None else mfu
        rate = share * peak * TERA / cost.training_flop
    per_node = config.ranks_per_node or config.cluster.gpus_per_node or 1
    num_gpus = config.cluster.nodes * per_node
    micro, computed = shares_of(optim.global_batch, config.data.crops_per_visit, optim.micro_batch, num_gpus)
    step_s = computed / rate
    values = num_channels * config.model.crop_px**2
    averaged = optim.ema is not None
    checkpoint = checkpoint_bytes(cost, optim.name, ema=averaged)
    made = -(-optim.steps // config.checkpoint.every_steps)
    crops = optim.steps * optim.global_batch
    return TrainEstimate(
        gpu=card,
        num_gpus=num_gpus,
        num_nodes=config.cluster.nodes,
        mfu=share,
        is_given=mfu is not None or crops_per_s is not None,
        precision=config.precision,
        cost=cost,
        crops_per_s=rate,
        steps=optim.steps,
        crops=crops,
        epochs=crops / config.data.crops_per_visit / num_fields,
        computed_crops=computed,
        utilisation=optim.global_batch / (computed * num_gpus),
        run_flop=crops * cost.training_flop,
        step_s=step_s,
        wall_s=step_s * optim.steps,
        gpu_hours=step_s * optim.steps * num_gpus / 3600,
        memory=step_memory(
            cost,
            optimiser=optim.name,
            precision=config.precision,
            micro_batch=micro,
            crop_values=values,
            itemsize=itemsize,
            ema=averaged,
            recompute=config.activation_checkpointing,
            shards={"none": 1, "full": num_gpus, "hybrid": per_node}[config.sharding],
            depth=config.model.depth,
        ),
        checkpoint_bytes=checkpoint,
        kept_bytes=checkpoint * min(made, config.checkpoint.keep + 1),
        recomputes=config.activation_checkpointing,
    )


def shares_of(global_batch: int, crops_per_visit: int, micro_batch: int, world: int) -> tuple[int, int]:
    """(crops of a micro-batch, crops that each rank computes in a step), as crops.Loader cuts them: whole visits to ranks, the
    last micro-batch padded."""
    share = -(-global_batch // crops_per_visit // world) * crops_per_visit
    micro = min(micro_batch, share)
    return micro, -(-share // micro) * micro


def of_corpus(config: PretrainConfig, corpus: Corpus, **how: Any) -> TrainEstimate:
    """The estimate for opened stores.  how: gpu, mfu, crops_per_s of estimate_train."""
    return estimate_train(
        config,
        num_channels=len(corpus.channels),
        num_fields=int(config.data.subset or corpus.starts[-1]),
        itemsize=np.dtype(corpus.dtype).itemsize,
        **how,
    )


def table_of(found: TrainEstimate) -> Table:
    """For a person."""
    cost, memory = found.cost, found.memory
    rows = (
        (
            "parameters",
            f"{cost.parameters:,}",
            f"encoder {cost.encoder_parameters:,}, decoder {cost.decoder_parameters:,}",
        ),
        ("FLOP per crop", f"{cost.training_flop / 1e9:,.3g} G", "forward and backward (three times forward)"),
        ("memory per GPU", _gb(memory.total), _memory_words(found)),
        ("steps", f"{found.steps:,}", f"{found.crops:,} crops, each field visited {found.epochs:,.3g} time(s)"),
        ("FLOP of the run", f"{found.run_flop / PETA:,.3g} P", f"{found.run_flop:.2e}"),
        ("a GPU", f"{found.crops_per_s:,.4g} crops/s", _rate_words(found)),
        ("GPU hours", f"{found.gpu_hours:,.4g}", f"on {found.num_gpus} {found.gpu.name}"),
        (
            "wall time",
            duration(found.wall_s),
            f"{found.num_nodes} node(s), {found.step_s:.3g} s a step; no waiting, no stops",
        ),
        (
            "a checkpoint",
            _gb(found.checkpoint_bytes),
            f"weights{', their average' if memory.average else ''} and moments in fp32; {_gb(found.kept_bytes)} for those kept",
        ),
    )
    return Table(title="Training, expected", columns=("what", "how much", "how"), rows=rows)


def _memory_words(found: TrainEstimate) -> str:
    memory = found.memory
    parts = f"weights {_gb(memory.weights)}, gradients {_gb(memory.gradients)}, moments {_gb(memory.moments)}"
    average = f", their moving average {_gb(memory.average)}" if memory.average else ""
    copies = f", bf16 copies {_gb(memory.copies)}" if memory.copies else ""
    gathered = f", blocks gathered {_gb(memory.gathered)}" if memory.gathered else ""
    activations = f", activations about {_gb(memory.activations)}"
    return f"{parts}{average}{copies}{gathered}{activations}; {found.memory_share:.0%} of a {found.gpu.name}"


def _rate_words(found: TrainEstimate) -> str:
    how = "as given" if found.is_given else "assumed, not measured; give --mfu or --gpu-crops-per-s"
    peak = found.gpu.peak_tflops(found.precision)
    return f"MFU {found.mfu:.1%} of {peak:,g} TFLOP/s in {found.precision} ({how})"


def words_of(found: TrainEstimate) -> list[str]:
    """What stands out, one sentence a line."""
    lines = []
    if found.memory_share > 1:
        lines.append(
            f"too large: a micro-batch needs {_gb(found.memory.total)}, a {found.gpu.name} has {found.gpu.memory_gb:g} GB; "
            "give a smaller optim.micro_batch" + ("" if found.recomputes else ", or activation_checkpointing=true")
        )
    if found.utilisation < 0.95:
        lines.append(
            f"{1 - found.utilisation:.0%} of what is computed is padding: the global batch does not divide into "
            f"micro-batches of {found.num_gpus} GPU(s); change optim.micro_batch or optim.global_batch"
        )
    return lines


def line_of(found: TrainEstimate) -> str:
    """In one line, for a dry run."""
    return (
        f"{found.cost.parameters / 1e6:,.4g} M parameters, {found.cost.training_flop / 1e9:,.3g} GFLOP a crop, "
        f"{_gb(found.memory.total)} a GPU; about {found.gpu_hours:,.3g} GPU hours, {duration(found.wall_s)}, on "
        f"{found.num_gpus} {found.gpu.name} at an MFU of {found.mfu:.0%} (assumed; --estimate tells more)"
    )


def _gb(size: float) -> str:
    return f"{size / GIGABYTE:,.3g} GB" if size >= GIGABYTE / 10 else f"{size / 1e6:,.3g} MB"
