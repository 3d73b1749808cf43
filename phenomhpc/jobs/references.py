"""Runs that a job's settings name: made paths when the command is given, since `last` is another run a minute later."""

from __future__ import annotations

from pathlib import Path

from phenomhpc.config import AnyConfig, EmbedConfig, EvaluateConfig, PipelineConfig
from phenomhpc.runs import find_run

# The setting that may name a run, and the kind of run it means.
_REFERENCES = {
    EmbedConfig: ("checkpoint", "pretrain"),
    EvaluateConfig: ("embeddings", "embed"),
    PipelineConfig: ("embeddings", "embed"),
}


def resolve_references(config: AnyConfig) -> AnyConfig:
    """The settings with a run's ID, the beginning of one, or `last` replaced by its directory.

    Raises UsageError naming the nearest runs.
    """
    for model, (key, kind) in _REFERENCES.items():
        name = getattr(config, key, "") if isinstance(config, model) else ""
        if name and not Path(name).exists():
            return config.model_copy(update={key: str(find_run(Path(config.runs), name, kind=kind).root)})
    return config
