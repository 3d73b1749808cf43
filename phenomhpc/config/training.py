"""Settings of pretraining: data, optimiser, checkpoints, faults, validation, tracking."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from phenomhpc.config.architecture import ModelConfig
from phenomhpc.config.base import Fraction, JobModel, Model, PositiveInt, Precision


class HoldoutConfig(Model):
    """What is kept for validation and never trained on."""

    plates: tuple[str, ...] = Field((), description="plates by name; * and ? as in a shell")
    wells: tuple[str, ...] = Field((), description="wells: A01 on every plate, or PLATE/A01")
    share: Fraction = Field(0.0, description="share of the wells or plates, by a hash of their names")
    by: Literal["well", "plate"] = Field("well", description="what `share` counts")


class DataConfig(Model):
    """Which crops are seen, in which order."""

    crops_per_visit: PositiveInt = Field(1, description="K: crops taken of a field at each visit")
    where: str | None = Field(
        None, description="filter on the fields table, e.g. \"focus > 0.2 and perturbation_type == 'gene'\""
    )
    subset: Annotated[float, Field(ge=1)] | None = Field(
        None, description="so many of the fields, chosen by number alone: a smaller subset lies within a larger one"
    )
    holdout: HoldoutConfig = HoldoutConfig()
    store_weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="how often a field of each store comes an epoch; default once"
    )
    weights: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = Field(
        {},
        description="column of the fields table: value: how often such a field comes an epoch, e.g. "
        "perturbation_type.control=0.1; 0 leaves it out",
    )
    flips: bool = Field(True, description="flips and quarter turns of the crops")
    illumination: Literal["keep", "apply"] = Field(
        "keep", description="apply: divide crops, as they are read, by the uneven light that their store keeps"
    )
    reader: Literal["own", "tensorstore"] = Field(
        "own", description="tensorstore: for plates that somebody has written anew with other codecs or chunks; slower"
    )
    cache: str | None = Field(
        None, description="folder on a disk of each node, where uncompressed shards are kept; filled while training"
    )
    cache_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="most that a node caches, GB; default: what fits, less a twentieth of the disk"
    )
    max_damaged: Fraction = Field(
        0.001, description="share of crops that others may stand in for because their field cannot be read"
    )
    backend: Literal["plain", "dali"] = Field(
        "plain",
        description="dali: crops are flipped and standardised by NVIDIA DALI (extra gpu), on the GPU where there is one",
    )
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="processes per rank that read crops ahead of training; 0 reads in the training thread"
    )
    prefetch_steps: Annotated[int, Field(ge=0)] = Field(
        2, description="most steps that workers read ahead; one at first, more where waiting shows that it helps"
    )

    @field_validator("cache")
    @classmethod
    def _whole_path(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError(f"{value}: give the whole path, as each node has it")
        return value

    @model_validator(mode="after")
    def _who_takes_a_cache(self) -> DataConfig:
        if self.cache is not None and self.reader != "own":
            raise ValueError(f"reader={self.reader} takes no cache; leave one of them out")
        return self


class OptimConfig(Model):
    """Optimiser and schedule (one-cycle cosine)."""

    name: Literal["lion", "adamw"] = "lion"
    peak_lr: Annotated[float, Field(gt=0)] = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_fraction: Fraction = 0.1
    global_batch: PositiveInt = Field(4096, description="crops per step over all ranks")
    micro_batch: PositiveInt = Field(64, description="crops per forward pass on one rank")
    steps: PositiveInt = 1000
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a moving average of the weights, kept beside them, which is then measured, embedded by and exported; "
        "default: none",
    )


class CheckpointConfig(Model):
    """When the training state is committed, and how much of it is kept."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = Field(3, description="newest committed checkpoints kept; the last step's is always kept")
    keep_every: PositiveInt | None = Field(None, description="those of every so many steps are kept for good, too")
    keep_best: Literal["val_loss", "val_mse", "val_fourier", "probe_accuracy"] | None = Field(
        None,
        description="the checkpoint with the lowest of these losses, or the highest accuracy, is kept, too (see eval)",
    )
    background: bool = Field(
        True,
        description="training goes on while a checkpoint is written, from a copy of the state in the host's memory",
    )


class FaultsConfig(Model):
    """What happens when a step goes wrong."""

    max_skipped: PositiveInt = Field(
        100,
        description="a step without a finite gradient changes nothing and is counted; so many in a row end the run",
    )
    spike_mads: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="a loss so many deviations (by the median absolute one) above the median of the last steps rolls the "
        "run back to its newest checkpoint and leaves that step's crops out; default: never",
    )
    spike_window: Annotated[int, Field(ge=20)] = Field(100, description="steps whose losses say what is usual")
    straggler_share: Annotated[float, Field(gt=0)] | None = Field(
        0.25,
        description="a rank whose own time (crops and computing, no waiting for others) is above the usual one's by such a share "
        "is told of, with its node; null: never",
    )
    straggler_intervals: PositiveInt = Field(
        3, description="logged intervals in a row in which it must be so slow, or not any more"
    )
    max_rollbacks: PositiveInt = Field(5, description="rollbacks of one attempt; one more ends it")


class EvalConfig(Model):
    """What is measured while a model trains; it changes nothing of the training."""

    every_steps: PositiveInt | None = Field(
        None, description="steps between two validations on held-out crops (data.holdout); default: none"
    )
    crops: PositiveInt = Field(
        256, description="fixed crops that the validation loss is over; ranks share and keep them"
    )
    shown: Annotated[int, Field(ge=0)] = Field(6, description="of them, those whose reconstructions are kept each time")
    probe_every_steps: PositiveInt | None = Field(
        None, description="steps between two linear probes of the encoder on held-out wells; default: none"
    )
    probe_wells: PositiveInt = Field(512, description="most wells that a probe embeds")
    probe_crops: PositiveInt = Field(4, description="crops of each of them")


class TrackingConfig(Model):
    """Where else metrics go, beside the run's own Parquet files."""

    tensorboard: bool = Field(False, description="event files in RUN/tensorboard (extra tracking)")
    mlflow: str | None = Field(
        None,
        description="an MLflow server, http(s)://HOST:PORT, which gets figures, settings and tags; logins are taken from "
        "MLFLOW_TRACKING_TOKEN, or _USERNAME and _PASSWORD, of the environment",
    )
    mlflow_experiment: str = Field("phenomhpc", description="the experiment there; made if absent")

    @field_validator("mlflow")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return value
        scheme, _, rest = value.partition("://")
        if scheme not in ("http", "https") or not rest.strip("/"):
            raise ValueError(
                f"{value}: give http://HOST:PORT of a server; one over a file is `mlflow server --backend-store-uri sqlite:///FILE`"
            )
        if "@" in rest.partition("/")[0]:
            raise ValueError(
                "a login in the address would be written down with the run; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD instead"
            )
        return value


class PretrainConfig(JobModel):
    """Masked-autoencoder pretraining on crops of one or more stores."""

    kind: ClassVar[str] = "pretrain"
    store: tuple[str, ...] = Field((), description="stores to train on")
    snapshot: str | None = Field(None, description="digest of the snapshot; default: the newest of the store")
    init_from: str | None = Field(
        None,
        description="weights to begin with: a step folder, an exported file, another run (its newest committed checkpoint), or a "
        "state dict of a timm ViT (.safetensors, .pt, .pth, .bin)",
    )
    adapt_channels: Literal["refuse", "mean", "repeat"] = Field(
        "refuse",
        description="for a file of timm's in init_from that was trained on other channels: each channel gets the mean of the old "
        "ones, or old channel c mod their number",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    faults: FaultsConfig = FaultsConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    compile: bool | Literal["auto"] = Field("auto", description="compile the model's blocks; auto: on GPUs")
    activation_checkpointing: bool = Field(
        False, description="keep the inputs of blocks alone and compute the rest again: less memory, a third more time"
    )
    sharding: Literal["none", "full", "hybrid"] = Field(
        "none",
        description="weights, gradients and the optimiser's state: none: whole on every rank (DDP); full: a part on each (FSDP2); "
        "hybrid: a part on each rank of a node, the same on every node. Never run with NCCL or several GPUs",
    )
    deterministic: bool = Field(
        False, description="on GPUs too a resumed run is bit for bit the undisturbed one; slower; on CPUs it always is"
    )
    ranks_per_node: PositiveInt | None = Field(
        None, description="training processes per node; default: one per GPU, else 1"
    )
    threads_per_rank: PositiveInt | None = Field(
        None, description="CPU threads of a rank; default: its share of the cores"
    )
    log_every_steps: PositiveInt = 10

    @field_validator("store", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _visits_fill_the_batch(self) -> PretrainConfig:
        if self.optim.global_batch % self.data.crops_per_visit:
            raise ValueError(
                f"optim.global_batch={self.optim.global_batch} is no multiple of data.crops_per_visit={self.data.crops_per_visit}"
            )
        return self
