"""What every job is configured by: frozen models, units in the field names, bad values refused with the reason.

A recipe in jobs/ fills one of these; `compose.py` merges recipe, defaults and overrides and validates the result.
The resolved model, written to RUN/run.yaml, is the only input of every attempt.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from phenomhpc.config.base import JobModel, PositiveInt
from phenomhpc.config.maps import EmbedConfig, EvaluateConfig
from phenomhpc.config.stores import ConvertConfig, RechunkConfig
from phenomhpc.config.training import PretrainConfig


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
