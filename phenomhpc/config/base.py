"""What the settings of every job have: frozen models, units in the field names, bad values refused with the reason."""

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


class JobModel(Model):
    """Fields every job has."""

    kind: ClassVar[str]
    runs: str = Field("runs", description="folder of the run directories")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    cluster: ClusterConfig = ClusterConfig()
