"""Settings of what comes after training: embeddings, and the map that is scored."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from phenomhpc.config.base import Fraction, JobModel, Model, PositiveInt, Precision


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
