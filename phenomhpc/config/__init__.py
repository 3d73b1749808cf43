"""Settings: models say what they are, recipes compose, defaults layer, overrides read key=value, resolve decides."""

from phenomhpc.config.defaults import Layer, default_layers
from phenomhpc.config.models import (
    JOBS,
    AnyConfig,
    ClusterConfig,
    ConvertConfig,
    EmbedConfig,
    EvaluateConfig,
    JobModel,
    ModelConfig,
    OptimConfig,
    PipelineConfig,
    PretrainConfig,
    RechunkConfig,
    RunConfig,
)
from phenomhpc.config.resolve import Resolved, dump, load_run_config, require, resolve, validate

__all__ = [
    "JOBS",
    "AnyConfig",
    "ClusterConfig",
    "ConvertConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "JobModel",
    "Layer",
    "ModelConfig",
    "OptimConfig",
    "PipelineConfig",
    "PretrainConfig",
    "RechunkConfig",
    "Resolved",
    "RunConfig",
    "default_layers",
    "dump",
    "load_run_config",
    "require",
    "resolve",
    "validate",
]
