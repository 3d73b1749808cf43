"""What every job is configured by: frozen models, units in the field names, bad values refused with the reason.

A recipe in jobs/ fills one of these; `compose.py` merges recipe, defaults and overrides and validates the result.
The resolved model, written to RUN/run.yaml, is the only input of every attempt.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["fp32", "bf16", "fp16"]


class Model(BaseModel):
    """Base: immutable, no unknown keys, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class ClusterConfig(Model):
    """What one attempt asks of Slurm; None leaves the cluster's own default."""

    nodes: PositiveInt = Field(1, description="nodes of a gang; arrays use one node per task")
    gpus_per_node: Annotated[int, Field(ge=0)] | None = Field(
        None, description="GPUs per node, one rank each; 0 for one CPU rank per node"
    )
    cpus_per_task: PositiveInt | None = Field(
        None, description="CPU cores of one task (an array task, or a node of a gang)"
    )
    mem_mb: PositiveInt | None = Field(None, description="memory per node, MiB")
    time_minutes: PositiveInt | None = Field(None, description="time limit of one task, minutes")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    max_tasks: Annotated[int, Field(gt=0, le=1_000_000)] | None = Field(
        None,
        description="most tasks of one array attempt; units are packed into them; default: 256, or what task_minutes asks for",
    )
    throttle: PositiveInt | None = Field(None, description="most tasks of one array running at once")
    requeue: bool = Field(True, description="let Slurm requeue after a node failure")
    max_attempts: PositiveInt = Field(3, description="attempts of one run before the steward gives up")
    steward: bool = Field(True, description="submit the one-CPU job that starts what comes next after log-out")
    # The gate and the exclusion ledger.
    gate: bool = Field(True, description="check the nodes of a gang, and the network between them, before training")
    gate_min_gbps: Annotated[float, Field(gt=0)] | None = Field(
        None, description="least bus bandwidth of the gate's all-reduce, Gbit/s; slower nodes are refused"
    )
    gate_wait_s: Annotated[float, Field(gt=0)] = Field(
        40, description="how long the nodes of a gang wait for each other's first word in the gate, seconds"
    )
    allow_drift: bool = Field(
        False, description="train on nodes that differ in what the site insists on (driver, Python environment, ...)"
    )
    exclude: tuple[str, ...] = Field((), description="nodes that this run must not use, beside the excluded ones")
    exclude_hours: Annotated[float, Field(gt=0)] = Field(24, description="how long a sick node stays excluded, hours")
    # Elastic gangs
    min_nodes: PositiveInt | None = Field(
        None, description="least nodes of a gang; with fewer than `nodes`, training goes on without a node that is lost"
    )
    lost_after_s: Annotated[float, Field(gt=0)] = Field(
        3, description="a node that is not heard of for so long is lost to the others of an elastic gang, seconds"
    )
    # Hangs
    hang_min_s: PositiveInt = Field(
        300,
        description="seconds without a sign of life before a task counts as hanging; 20 usual steps where that is more",
    )
    hang_slow_s: PositiveInt = Field(
        1800, description="the same for start-up and checkpoints, whose length nothing foretells"
    )
    # Packing
    task_minutes: Annotated[float, Field(gt=0)] = Field(
        10, description="estimated length of an array task above which a run is cut into more than 256 tasks, minutes"
    )

    # Telling of the end, and of the code
    mail_type: str | None = Field(
        None, description="mail at the end of a run, once: END, FAIL, ALL, or several with commas; sent by Slurm"
    )
    mail_user: str | None = Field(None, description="who gets the mail; default: the person who submits")
    on_end: str | None = Field(
        None,
        description="shell command run when a run has finished or failed; told by PHENOMHPC_RUN, PHENOMHPC_STATE, ...",
    )
    require_clean: bool = Field(False, description="refuse to submit code with changes that are not committed")
    # Containers
    container: str | None = Field(
        None,
        description="image in which the ranks run: a .sif file or a URI (docker://..., oras://...), or a .sqsh file",
    )
    container_runtime: Literal["auto", "apptainer", "pyxis"] = Field(
        "auto", description="auto: pyxis for .sqsh files, else apptainer"
    )
    container_mounts: tuple[str, ...] = Field(
        (), description="further folders seen in the container, HERE or HERE:THERE; the run's own always are"
    )

    @field_validator("mail_type")
    @classmethod
    def _mail_words(cls, value: str | None) -> str | None:
        known = {"NONE", "END", "FAIL", "ALL"}
        words = [word.strip().upper() for word in value.split(",")] if value else []
        wrong = next((word for word in words if word not in known), None)
        if wrong:
            raise ValueError(
                f"mail_type={wrong}: there are {', '.join(sorted(known))}; a run ends once, whatever its tasks do"
            )
        return ",".join(words) or None

    @model_validator(mode="before")
    @classmethod
    def _range_of_nodes(cls, value: Any) -> Any:
        """nodes="2:4" stands for min_nodes=2 and nodes=4."""
        nodes = value.get("nodes") if isinstance(value, dict) else None
        if not isinstance(nodes, str) or ":" not in nodes:
            return value
        least, _, most = nodes.partition(":")
        if not (least.isdigit() and most.isdigit()):
            raise ValueError(f"nodes={nodes}: give a number, or LEAST:MOST as in 2:4")
        return {**value, "nodes": int(most), "min_nodes": int(least)}

    @model_validator(mode="after")
    def _elastic(self) -> ClusterConfig:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes={self.min_nodes} is more than nodes={self.nodes}")
        return self

    @property
    def elastic(self) -> bool:
        """May a gang go on with fewer nodes than it began with?"""
        return self.min_nodes is not None and self.min_nodes < self.nodes

    @field_validator("exclude", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return tuple(name for name in value.replace(",", " ").split()) if isinstance(value, str) else value


class CodecConfig(Model):
    """How inner chunks are compressed; shuffle `auto` is byte shuffle for uint16 and bitshuffle for uint8."""

    cname: Literal["lz4", "lz4hc", "zstd"] = "lz4"
    level: Annotated[int, Field(ge=0, le=9)] = 5
    shuffle: Literal["auto", "bitshuffle", "bitshuffle_pairs", "shuffle", "noshuffle"] = Field(
        "auto",
        description="bitshuffle_pairs: of two pixels of uint8 at a time, which blosc decodes 1.4 times as fast, for other readers",
    )
    compress: bool = Field(True, description="false stores raw chunks")


class JobModel(Model):
    """Fields every job has."""

    kind: ClassVar[str]
    runs: str = Field("runs", description="folder of the run directories")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    cluster: ClusterConfig = ClusterConfig()


class ConvertConfig(JobModel):
    """Raw plates to one Zarr store."""

    kind: ClassVar[str] = "convert"
    plates: tuple[str, ...] = Field((), description="folders or globs of raw plates")
    store: str = Field("", description="folder of the store; made if absent")
    layout: Literal["auto", "phenix", "cellvoyager", "imagexpress", "gallery", "rxrx", "omezarr"] = "auto"
    metadata: str | None = Field(None, description="CSV joined by plate and well; default: the one the layout brings")
    metadata_columns: dict[str, str] = Field(
        {}, description="column of the store: column of that CSV, where the CSV does not use a known name"
    )
    plate_format: Literal[6, 12, 24, 48, 96, 384, 1536] | None = Field(
        None, description="wells of the plates, where the layout does not say"
    )
    z: str = Field(
        "all",
        description="all: each plane of a stack is a field; max, focus: one field of each stack; else one plane's name",
    )
    timepoint: Annotated[int, Field(ge=0)] | None = Field(None, description="the timepoint to convert; default: all")
    codec: CodecConfig = CodecConfig()
    chunk_px: PositiveInt = Field(128, description="edge of an inner chunk, pixels")
    shard_mb: PositiveInt = Field(
        1024, description="raw pixels of one shard, MiB; the number of fields per shard follows"
    )
    illumination: Literal["keep", "apply", "estimate"] = Field(
        "keep",
        description="uneven light: keep what the layout says beside the pixels; apply: divide by it; estimate: divide by what the "
        "plate's own fields say",
    )
    dtype: Literal["source", "uint8"] = Field(
        "source", description="uint8: 16-bit pixels through a look-up table for each plate and channel, which is stored"
    )
    uint8_percentiles: tuple[Annotated[float, Field(ge=0, lt=100)], Annotated[float, Field(gt=0, le=100)]] = Field(
        (0.1, 99.9), description="percentiles of a plate's channel that become 0 and 255, of a sample of its fields"
    )
    qc: bool = Field(True, description="measure focus, saturation, background, signal and nuclei of every field")
    verify: bool = Field(False, description="read every shard back from the disk before it counts as written")
    new: bool = Field(
        False, description="pass over plates that the store holds whole, without looking whether they changed"
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes of a run here; 0: one per core")
    max_set_aside: Fraction = Field(0.01, description="share of fields set aside above which the run fails")

    @field_validator("plates", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("uint8_percentiles")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"{value[0]:g} is not below {value[1]:g}")
        return value

    @field_validator("z", mode="before")
    @classmethod
    def _name_of_plane(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class RechunkConfig(JobModel):
    """A store in another codec, chunk edge or shard size."""

    kind: ClassVar[str] = "rechunk"
    store: str = Field("", description="the store to copy")
    to: str = Field("", description="folder of the copy; made if absent")
    codec: CodecConfig = CodecConfig()
    chunk_px: PositiveInt | None = Field(None, description="edge of an inner chunk, pixels; default: the source's")
    shard_mb: PositiveInt | None = Field(
        None, description="raw pixels of one shard, MiB; default: as many fields as in the source"
    )
    verify: bool = Field(False, description="read every shard back from the disk before it counts as written")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes of a run here; 0: one per core")


class ModelConfig(Model):
    """A masked autoencoder: by default a vision transformer encoder and a light decoder."""

    name: str = Field("mae_vit_s16", description="name of the recipe in jobs/model/")
    kind: str = Field(
        "mae_vit",
        description="architecture: mae_vit, ca_mae_vit (channel-agnostic), unet_mae, or PACKAGE.MODULE:CLASS of one's own",
    )
    crop_px: PositiveInt = Field(256, description="edge of a crop, pixels")
    patch_px: PositiveInt = Field(16, description="edge of a patch, pixels; patches are what is hidden")
    dim: PositiveInt = 384
    depth: PositiveInt = 12
    heads: PositiveInt = 6
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    block: Literal["parallel", "sequential"] = Field(
        "parallel",
        description="attention and MLP side by side (ViT-22B), or one after the other (most published weights)",
    )
    qkv_bias: bool = Field(False, description="a bias on queries, keys and values")
    qk_norm: bool = True
    positions: Literal["sincos", "learned"] = Field(
        "sincos", description="of the encoder; learned ones start as sincos"
    )
    registers: Annotated[int, Field(ge=0)] = Field(0, description="learned tokens beside the class token")
    layer_scale: Annotated[float, Field(ge=0)] = Field(1e-4, description="initial LayerScale; 0 for none")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_dim: PositiveInt = 512
    decoder_depth: PositiveInt = 8
    decoder_heads: PositiveInt = 16
    fourier_weight: Fraction = Field(0.01, description="weight of the Fourier loss; the MSE has the rest")
    options: dict[str, bool | int | float | str] = Field(
        {}, description="settings of an architecture that is no transformer, by the names of its class"
    )

    @property
    def is_transformer(self) -> bool:
        return self.kind in ("mae_vit", "ca_mae_vit")

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.crop_px % self.patch_px:
            raise ValueError(f"crop_px={self.crop_px} is no multiple of patch_px={self.patch_px}")
        if not self.is_transformer:
            return self
        for dim, heads, names in (
            (self.dim, self.heads, "dim, heads"),
            (self.decoder_dim, self.decoder_heads, "decoder_dim, decoder_heads"),
        ):
            if dim % heads:
                raise ValueError(f"{names}: {dim} is no multiple of {heads}")
            if dim % 4:
                raise ValueError(f"{names}: {dim} is no multiple of 4, which 2-D sin-cos positions need")
        return self

    @model_validator(mode="after")
    def _settings_of_the_kind(self) -> ModelConfig:
        if self.is_transformer:
            if self.options:
                raise ValueError(f"options.{next(iter(self.options))}: kind={self.kind} has its settings beside `kind`")
            return self
        for name in _OF_TRANSFORMERS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)}: kind={self.kind} has no such setting; its own are in options"
                )
        return self


_OF_TRANSFORMERS = (
    "dim",
    "depth",
    "heads",
    "mlp_ratio",
    "block",
    "qkv_bias",
    "qk_norm",
    "positions",
    "registers",
    "layer_scale",
    "drop_path",
    "decoder_dim",
    "decoder_depth",
    "decoder_heads",
)


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


class EmbedConfig(JobModel):
    """Every well of a store through the encoder of a checkpoint."""

    kind: ClassVar[str] = "embed"
    store: str = ""
    snapshot: str | None = None
    checkpoint: str = Field(
        "", description="a step folder, an exported file, or a run (its newest committed checkpoint)"
    )
    weights: Literal["model", "ema", "auto"] = Field(
        "auto", description="of the checkpoint: the model's own, or their moving average; auto: that where it holds one"
    )
    out: str | None = Field(None, description="folder of the embeddings; default RUN/embeddings")
    block: PositiveInt | None = Field(
        None, description="encoder block whose output is taken, 1-based; default the last"
    )
    pooling: Literal["mean", "class", "channelwise"] = Field(
        "mean", description="over the patches; channelwise: each channel's mean, for channel-agnostic models"
    )
    channels: tuple[str, ...] = Field(
        (),
        description="channels of the checkpoint to embed, in this order; default all. Fewer: channel-agnostic models only",
    )
    batch: PositiveInt = Field(64, description="crops per forward pass")
    baselines: tuple[Literal["untrained", "intensity"], ...] = Field(
        ("untrained", "intensity"), description="embedded beside the checkpoint from the same pixels, for comparison"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    blocks: tuple[PositiveInt | Literal["all"], ...] = Field(
        (), description="further blocks embedded in the same pass, into EMB/blocks/NN; [all]: every one"
    )
    crops: Literal["tiled", "random"] = Field(
        "tiled", description="tiled: all that fit side by side; random: drawn, keyed by seed, plate and field"
    )
    crops_per_field: PositiveInt | None = Field(
        None, description="random crops of a field; default as many as would be tiled"
    )
    level: Literal["well", "crop"] = Field("well", description="crop: beside the wells one row per crop, in EMB/crops")
    read_threads: PositiveInt | None = Field(
        None, description="threads that read fields ahead; default one per core, at most 8"
    )
    backend: Literal["torch", "onnx"] = Field(
        "torch", description="what runs the encoder; onnx: ONNX Runtime on TensorRT, CUDA or the CPU, as present"
    )
    compile: bool = Field(False, description="backend=torch: with compiled blocks")
    onnx: str | None = Field(
        None,
        description="file of `phenomhpc export CKPT --to onnx` for backend=onnx; default: exported when a task begins",
    )
    gate_wells: PositiveInt = Field(
        48, description="wells on which anything but fp32 torch is held against it before it may embed"
    )
    gate_crops: PositiveInt = Field(4, description="crops of each of these wells")
    min_cosine: Fraction = Field(0.9999, description="least cosine of a well's embedding to that of fp32 torch")
    max_recall_change: Fraction = Field(
        0.001,
        description="most that recall of the wells' relations may differ from that of fp32 torch; 1: whatever it does, and "
        "where no wells belong together",
    )
    new: bool = Field(False, description="take only what is absent under this checkpoint's digest")
    max_set_aside: Fraction = 0.01

    @model_validator(mode="after")
    def _go_together(self) -> EmbedConfig:
        if self.level == "crop" and self.blocks:
            raise ValueError("level=crop: of one block only; leave blocks out")
        if self.backend == "onnx" and self.compile:
            raise ValueError("compile=true: with backend=torch only; ONNX Runtime compiles by itself")
        if self.backend == "onnx" and self.precision == "bf16":
            raise ValueError("precision=bf16: with backend=torch only; backend=onnx has fp32 and fp16")
        return self


class ColumnsConfig(Model):
    """Names of columns in anybody's embeddings, where they are not found by themselves; null: by themselves."""

    plate: str | None = None
    experiment: str | None = None
    batch: str | None = None
    well: str | None = None
    gene: str | None = None
    perturbation: str | None = None
    treatment: str | None = None
    concentration_um: str | None = None
    is_control: str | None = Field(
        None, description="a control is a well that has true, 1, yes, or the value of `control`"
    )
    features: tuple[str, ...] = Field(
        (), description="beginnings of the names of feature columns, such as [Cells_, Nuclei_]; default: numeric ones"
    )


class EvaluateConfig(JobModel):
    """Embeddings scored as a map against known relationships."""

    kind: ClassVar[str] = "evaluate"
    embeddings: str = ""
    metadata: str | None = Field(
        None, description="CSV or Parquet with the wells' metadata, where the embeddings have none but well_id"
    )
    join: str = Field("well_id", description="column that metadata and embeddings share")
    columns: ColumnsConfig = ColumnsConfig()
    bad_features: Literal["refuse", "drop"] = Field(
        "refuse", description="features that are no finite number in some well; drop leaves those features out"
    )
    blocks: Literal["main", "all"] = Field(
        "main", description="all: probe every block, embedding those that are not there, and name the best"
    )
    annotations: str = Field("", description="folder of two-column relationship files (*.txt, *.csv)")
    unexpressed: str | None = Field(
        None, description="file of unexpressed genes; default: unexpressed.txt in annotations, if there"
    )
    arms: str | None = Field(
        None,
        description="table of the genes' chromosome arms: gene and arm, Approved_symbol and Locus, or gene, chromosome and end "
        "(base pairs); default: gene_chromosome_map.tsv in annotations, if there",
    )
    centromeres: str | None = Field(
        None,
        description="with arms of positions: table of chromosome, start and end of the centromeres; default: centromeres.tsv "
        "beside it",
    )
    align: Literal["none", "center_scale", "pca_cs", "tvn", "tvn_efaar", "coral"] = "tvn"
    batch: Literal["plate", "experiment", "batch"] = Field("plate", description="column whose values are the batches")
    control: str = Field("EMPTY_control", description="treatment of the control wells where is_control is absent")
    arm_correction: bool = False
    thresholds: tuple[tuple[Fraction, Fraction], ...] = ((0.05, 0.95), (0.1, 0.9))
    bootstrap: Annotated[int, Field(ge=0)] = Field(1000, description="bootstrap draws of the intervals; 0 for none")
    neighbours: Annotated[int, Field(ge=1, le=100)] = Field(
        10, description="neighbours of each perturbation that can be looked up in the report, on either side"
    )

    @property
    def tables(self) -> tuple[str, ...]:
        """The single files that it reads."""
        return tuple(name for name in (self.metadata, self.unexpressed, self.arms, self.centromeres) if name)


class RunConfig(JobModel):
    """Anybody's script as one gang, under the same gate, requeue, logs and provenance as the other jobs."""

    kind: ClassVar[str] = "run"
    command: tuple[str, ...] = Field((), description="the program and its words, as given behind --")
    workdir: str = Field("", description="folder in which the command is run; default: where it was given")
    launcher: Literal["torchrun", "plain"] = Field(
        "torchrun",
        description="torchrun: a process per rank with RANK, WORLD_SIZE, LOCAL_RANK; plain: one per node with NODE_RANK, NNODES",
    )
    ranks_per_node: PositiveInt | None = Field(
        None, description="processes per node under torchrun; default: one per GPU, else 1"
    )
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "none"] = Field(
        "SIGTERM", description="sent to a script that is to stop; none for one that looks for the stop file"
    )
    stop_wait_s: Annotated[float, Field(ge=0)] = Field(
        0, description="seconds between the stop file and the signal, for a script that looks for the file"
    )
    grace_s: Annotated[float, Field(ge=0)] | None = Field(
        None, description="seconds between the signal and the kill; default: nearly all of Slurm's warning time"
    )
    silent_limit_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="a rank that writes nothing for so long hangs; default: silence is no sign of anything"
    )
    snapshot_code: bool | Literal["auto"] = Field(
        "auto", description="run a copy of the git tree that workdir lies in; auto: where it is no larger than 100 MiB"
    )

    @model_validator(mode="after")
    def _fixed_size(self) -> RunConfig:
        if self.cluster.elastic:
            cluster = self.cluster
            raise ValueError(
                f"nodes={cluster.min_nodes}:{cluster.nodes}: a script keeps its number of nodes; give nodes={cluster.nodes}"
            )
        return self


class PipelineConfig(JobModel):
    """convert -> pretrain -> embed -> evaluate, each stage a run of its own."""

    kind: ClassVar[str] = "pipeline"
    plates: tuple[str, ...] = ()
    store: str = ""
    annotations: str = ""
    new: tuple[str, ...] = Field(
        (), description="raw plates to add to the store and to `embeddings`; then there is no pretraining"
    )
    embeddings: str = Field(
        "", description="with new: folder of embeddings (or the run that made it) to which they are added"
    )
    stages: tuple[Literal["convert", "pretrain", "embed", "evaluate"], ...] = (
        "convert",
        "pretrain",
        "embed",
        "evaluate",
    )
    convert: dict[str, Any] = Field(
        default_factory=dict, description="settings of the convert stage, beside its recipe"
    )
    pretrain: dict[str, Any] = Field(default_factory=dict)
    embed: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _stages_of_new(cls, value: Any) -> Any:
        """What is added to embeddings that are there needs no pretraining."""
        if isinstance(value, dict) and value.get("new") and "stages" not in value:
            return {**value, "stages": ("convert", "embed", "evaluate")}
        return value

    @model_validator(mode="after")
    def _new_goes_without_pretraining(self) -> PipelineConfig:
        if self.new and "pretrain" in self.stages:
            raise ValueError("new: is embedded by the checkpoint of `embeddings`; leave pretrain out of stages")
        if self.embeddings and not self.new:
            raise ValueError(f"embeddings={self.embeddings}: with new only; embed.out says where embeddings go")
        return self


JOBS: dict[str, type[JobModel]] = {
    model.kind: model
    for model in (ConvertConfig, RechunkConfig, PretrainConfig, EmbedConfig, EvaluateConfig, RunConfig, PipelineConfig)
}
AnyConfig = ConvertConfig | RechunkConfig | PretrainConfig | EmbedConfig | EvaluateConfig | RunConfig | PipelineConfig
