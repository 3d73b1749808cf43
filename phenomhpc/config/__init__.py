"""Settings: models say what they are, recipes compose, defaults layer, overrides read key=value, resolve decides."""

from phenomhpc.config.architecture import ModelConfig
from phenomhpc.config.base import ClusterConfig, JobModel
from phenomhpc.config.defaults import Layer, default_layers
from phenomhpc.config.maps import EmbedConfig, EvaluateConfig
from phenomhpc.config.models import JOBS, AnyConfig, PipelineConfig, RunConfig
from phenomhpc.config.resolve import Resolved, dump, load_run_config, require, resolve, validate
from phenomhpc.config.stores import ConvertConfig, RechunkConfig
from phenomhpc.config.training import OptimConfig, PretrainConfig

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
